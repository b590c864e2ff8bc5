"""Jobs on Ray, on this machine: what one process gives, and nothing lost with an actor."""

from __future__ import annotations

import json
import os
import signal
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

import surgery
from surgery.demo import load
from surgery.errors import DatasetError, ModelLoadError
from surgery.evaluation import open_dataset
from surgery.jobs import PoolSettings, Prompts, Setup, clips_on, evaluate, track
from surgery.jobs.alone import nothing
from surgery.jobs.folder import VideoRow
from surgery.jobs.pool import Pool
from surgery.jobs.worker import Asked, Tracker
from surgery.recipe import Recipe
from tests.calibration.test_calibrate import clip_of, recipe
from tests.evaluation.test_interrupt import rows
from tests.evaluation.trees import folder_tree
from tests.jobs.conftest import BOX, masks, write_frames

pytest.importorskip("ray", reason="Ray is not installed: it has no wheel for this Python, or was left out")
PROMPTS = Prompts(boxes=(BOX,))
TWO = PoolSettings("local", actors=2, threads=1)


@pytest.fixture(scope="module")
def cluster() -> Iterator[None]:
    """Ray, started as a job starts it, or the cluster that SURGERY_RAY names; jobs inside use what is running."""
    address = os.environ.get("SURGERY_RAY", "local")
    with Pool(PoolSettings(address, actors=2, threads=1), Tracker, Setup("demo")):
        yield


@pytest.fixture
def videos(tmp_path: Path) -> Path:
    """Eight videos of 2 to 5 frames."""
    for number in range(8):
        write_frames(tmp_path / "videos" / f"v{number}", 2 + number % 4, 5 * number)
    return tmp_path / "videos"


class Deadly(Tracker):
    """Is killed on the second frame of v3 once, and on that of `poison` always."""

    poison = ""

    def run(self, asked: Asked, step: Callable[[], None] = nothing) -> VideoRow:
        name, marker, frames = asked[0].name, Path(self._folder).parent / "killed", 0

        def die() -> None:
            nonlocal frames
            frames += 1
            if frames == 2:
                os.kill(os.getpid(), signal.SIGKILL)

        if name == "v3" and not marker.exists():
            marker.touch()
            step = die
        return super().run(asked, die if name == self.poison else step)


class Poisoned(Deadly):
    poison = "v5"


def in_actors(kind: type[Tracker]) -> Any:
    """What makes the pool of a job, of other workers."""
    return lambda pool, _, *more: Pool(pool, kind, *more)


@pytest.mark.usefixtures("cluster")
def test_two_actors_of_which_one_is_killed_give_the_bytes_of_one_process(
    videos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    job: dict[str, Any] = {"model": "demo", "recipe": "faithful", "prompts": PROMPTS, "progress": False}
    alone = track([videos / f"v{number}" for number in range(8) if number != 6], out=tmp_path / "alone", **job)
    picture = videos / "v6/00001.png"
    picture.write_bytes(picture.read_bytes()[:-40])
    monkeypatch.setattr("surgery.jobs.job.Pool", in_actors(Deadly))
    out = tmp_path / "both"
    both = track(videos, out=out, ray="local", actors=2, threads=1, **job)
    assert both.complete and both.videos == {"asked": 8, "done": 7, "skipped": 0, "failed": 1}
    assert (both.workers, both.frames, both.dense_frames) == (2, alone.frames, alone.dense_frames)
    (broken,) = both.failed
    assert (broken.name, broken.tries) == ("v6", 1) and "00001.png" in broken.error
    assert (tmp_path / "killed").exists() and (out / "v3/masks/00004.png").exists()
    assert masks(out) == masks(tmp_path / "alone") and not list(out.glob(".*"))
    assert os.environ["RAY_USAGE_STATS_ENABLED"] == "0"
    # Who tracked a video does not matter to who goes on.
    assert track(videos, out=out, resume=True, **job).videos["skipped"] == 7


@pytest.mark.slow
@pytest.mark.usefixtures("cluster")
def test_a_poisoned_video_is_given_up(videos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("surgery.jobs.job.Pool", in_actors(Poisoned))
    summary = track(
        videos, model="demo", recipe="none", out=tmp_path / "out", prompts=PROMPTS, ray="local", actors=2, threads=1,
        tries=2, progress=False,
    )  # fmt: skip
    assert summary.complete and summary.videos == {"asked": 8, "done": 7, "skipped": 0, "failed": 1}
    (poisoned,) = summary.failed
    assert (poisoned.name, poisoned.tries) == ("v5", 2) and "given up after 2 tries" in poisoned.error


@pytest.mark.usefixtures("cluster")
def test_two_actors_give_the_scores_of_one_process(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder_tree(tmp_path / "clips", ("a", "b", "c"), 4)
    # Ray was started elsewhere: relative paths must mean the same to the actors.
    monkeypatch.chdir(tmp_path)
    root = Path("clips")
    dataset, chosen = open_dataset("folder", root), Recipe.load("faithful")
    settings: dict[str, Any] = {"dense_too": True, "name": "demo", "record": True}
    alone = surgery.evaluate(load(), dataset, recipe=chosen, out=tmp_path / "alone", **settings)
    seen: list[int] = []
    both = evaluate(
        dataset, Setup("demo", chosen), TWO, out="both", progress=lambda done, *_: seen.append(done),
        **settings,
    )  # fmt: skip
    assert rows(both) == rows(alone) and seen[-1] == 12
    assert both.head["settings"] == alone.head["settings"]
    written = sorted(path.relative_to(tmp_path / "alone") for path in (tmp_path / "alone").rglob("*.png"))
    assert len(written) == 24
    assert all((tmp_path / "both" / path).read_bytes() == (tmp_path / "alone" / path).read_bytes() for path in written)
    # Who ran a sequence does not matter to who goes on.
    again = surgery.evaluate(load(), dataset, recipe=chosen, out=tmp_path / "both", **settings)
    assert again.sequences == json.loads(json.dumps(both.sequences))


@pytest.mark.slow
@pytest.mark.usefixtures("cluster")
def test_a_sequence_that_fails_is_told_of_when_the_others_are_done(tmp_path: Path) -> None:
    root = folder_tree(tmp_path / "clips", ("a", "b", "c"), 4)
    (root / "a/masks/00002.png").write_bytes(b"")
    with pytest.raises(DatasetError, match=r"00002\.png"):
        evaluate(open_dataset("folder", root), Setup("demo"), PoolSettings("local", 1, 1), out=tmp_path / "out")
    assert {path.stem for path in (tmp_path / "out").glob("runs/*/sequences/*.json")} == {"b", "c"}


@pytest.mark.slow
@pytest.mark.usefixtures("cluster")
def test_two_actors_calibrate_as_one_process() -> None:
    found = []
    for pool in (None, TWO):
        model = load()
        with clips_on(model, Setup("demo"), pool) as each:
            report = surgery.calibrate(
                model, [clip_of(number) for number in range(4)], recipe(), runs=3, progress=False, each=each
            )
        found.append((report.record, [setting.scores for setting in report.search.settings], model.state_dict()))
    alone, both = found
    assert both[:2] == alone[:2]
    assert alone[2].keys() == both[2].keys() and all(bool((both[2][name] == alone[2][name]).all()) for name in alone[2])


@pytest.mark.slow
@pytest.mark.usefixtures("cluster")
def test_a_model_that_cannot_be_loaded_ends_the_job(videos: Path, tmp_path: Path) -> None:
    with pytest.raises(ModelLoadError, match="'nope' is not a model"):
        track(videos, model="nope", out=tmp_path / "o", prompts=PROMPTS, ray="local", actors=1, progress=False)

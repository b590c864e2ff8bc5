"""Jobs on Ray, on this machine: the masks of one process, and no video lost with an actor."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import pytest

from surgery.errors import ModelLoadError
from surgery.jobs import Prompts, track
from surgery.jobs.folder import VideoRow
from surgery.jobs.manifest import Task
from surgery.jobs.pool import Pool, PoolSettings
from surgery.jobs.worker import Setup, Worker
from tests.jobs.conftest import BOX, masks, write_frames

pytest.importorskip("ray")
pytestmark = pytest.mark.slow  # every actor loads torch and a model
PROMPTS = Prompts(boxes=(BOX,))


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Ray, started as a job starts it, or the cluster that SURGERY_RAY names; jobs inside use what is running."""
    address = os.environ.get("SURGERY_RAY", "local")
    with Pool(PoolSettings(address, actors=2, threads=1), Setup("demo", None), tmp_path_factory.mktemp("ray")):
        yield


@pytest.fixture
def videos(tmp_path: Path) -> Path:
    """Twelve videos of 2 to 5 frames."""
    for number in range(12):
        write_frames(tmp_path / "videos" / f"v{number:02d}", 2 + number % 4, 5 * number)
    return tmp_path / "videos"


class Deadly(Worker):
    """Is killed on the second frame of v03 once, and on that of v05 always."""

    def track(self, task: Task, key: str, folder: str, step: Callable[[], None] = lambda: None) -> VideoRow:
        marker, frames = Path(folder).parent / "killed", 0

        def die() -> None:
            nonlocal frames
            frames += 1
            if frames == 2:
                os.kill(os.getpid(), signal.SIGKILL)

        if task.name == "v05":
            step = die
        elif task.name == "v03" and not marker.exists():
            marker.touch()
            step = die
        return super().track(task, key, folder, step)


@pytest.mark.usefixtures("cluster")
def test_two_actors_give_the_bytes_of_one_process(videos: Path, tmp_path: Path) -> None:
    job = {"model": "demo", "recipe": "faithful", "prompts": PROMPTS, "progress": False}
    alone = track(videos, out=tmp_path / "alone", **job)
    both = track(videos, out=tmp_path / "both", ray="local", actors=2, threads=1, **job)
    assert both.complete and both.videos == alone.videos and both.frames == alone.frames
    assert (both.workers, both.dense_frames) == (2, alone.dense_frames)
    assert masks(tmp_path / "both") == masks(tmp_path / "alone")
    assert os.environ["RAY_USAGE_STATS_ENABLED"] == "0"
    again = track(videos, out=tmp_path / "alone", resume=True, ray="local", actors=2, threads=1, **job)
    assert again.videos["skipped"] == 12


@pytest.mark.usefixtures("cluster")
def test_a_killed_actors_video_runs_again_and_a_poisoned_one_is_given_up(
    videos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    picture = videos / "v06/00001.png"
    picture.write_bytes(picture.read_bytes()[:-40])
    monkeypatch.setattr("surgery.jobs.job.Pool", partial(Pool, worker=Deadly))
    out = tmp_path / "out"
    summary = track(
        videos, model="demo", recipe="none", out=out, prompts=PROMPTS, ray="local", actors=2, threads=1, tries=2,
        progress=False,
    )  # fmt: skip
    assert summary.complete and summary.videos == {"asked": 12, "done": 10, "skipped": 0, "failed": 2}
    failed = {one.name: one for one in summary.failed}
    assert failed["v05"].tries == 2 and "given up after 2 tries" in failed["v05"].error
    assert failed["v06"].tries == 1 and "00001.png" in failed["v06"].error
    assert (tmp_path / "killed").exists() and (out / "v03/masks/00004.png").exists()
    assert len(masks(out)) == sum(2 + number % 4 for number in range(12) if number not in (5, 6))
    assert not list(out.glob(".*"))


@pytest.mark.usefixtures("cluster")
def test_a_model_that_cannot_be_loaded_ends_the_job(videos: Path, tmp_path: Path) -> None:
    with pytest.raises(ModelLoadError, match="'nope' is not a model"):
        track(videos, model="nope", out=tmp_path / "o", prompts=PROMPTS, ray="local", actors=1, progress=False)

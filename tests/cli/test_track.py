"""`surgery track` when it is stopped, taken up and started over; what its files are called; what it says meanwhile."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner, Result
from PIL import Image

from surgery.cli.main import main
from surgery.cli.run_folder import RunFolder
from surgery.cli.stops import Stopped, held, stoppable
from surgery.demo import load
from surgery.errors import VideoError
from surgery.tracking import track
from surgery.video import BoxPrompt, continued, labels_from_logits, open_video, read_label_png
from tests.cli.test_cli import clip

BOXES = ("--box", "20,30,50,60@00011", "--box", "60,2,80,20@00013#7")


def invoke(*arguments: object, code: int = 0) -> Result:
    result = CliRunner().invoke(main, ["track", *map(str, arguments)])
    assert result.exit_code == code, (result.output, result.exception)
    assert not set(result.output) & {"\x1b", "\r"}
    return result


@pytest.fixture
def frames(tmp_path: Path) -> Path:
    """Seven pictures, called 00011 to 00017."""
    folder = tmp_path / "frames"
    folder.mkdir()
    for number, picture in enumerate(clip(7), start=11):
        picture[2:20, 60:80] = (40, 90, 220)
        Image.fromarray(picture).save(folder / f"{number:05d}.png")
    return folder


def masks(out: Path) -> dict[str, np.ndarray]:
    return {path.stem: read_label_png(path) for path in sorted((out / "masks").glob("*.png"))}


def names(*numbers: int) -> list[str]:
    return [f"{number:05d}" for number in numbers]


def test_masks_and_prompts_go_by_the_names_of_frames(tmp_path: Path, frames: Path) -> None:
    out = tmp_path / "out"
    summary = json.loads(invoke(frames, "--model", "demo", *BOXES, "--out", out, "--json").stdout)
    assert list(masks(out)) == names(*range(11, 18))
    assert [row["name"] for row in summary["per_frame"]] == names(*range(11, 18))
    assert [list(row["area"]) for row in summary["per_frame"]] == [["1"]] * 2 + [["1", "7"]] * 5
    error = invoke(frames, "--model", "demo", "--box", "20,30,50,60@18", "--out", tmp_path / "o", code=1).stderr
    assert "has frame '18' after '@', expected a frame's name (00011 to 00017) or its index, 0..6" in error


def test_times_are_end_to_end_and_of_the_model(tmp_path: Path, frames: Path) -> None:
    started = time.perf_counter()
    shown = invoke(frames, "--model", "demo", *BOXES, "--out", tmp_path / "out")
    took = time.perf_counter() - started
    summary = json.loads((tmp_path / "out/summary.json").read_text())
    model = sum(row["ms"] for row in summary["per_frame"]) / 1000
    assert model < summary["seconds"] < took
    assert summary["frames_per_second"] == pytest.approx(7 / summary["seconds"])
    assert f"{summary['seconds']:.1f} s end to end" in shown.stdout and "ms a frame (median)" in shown.stdout
    assert shown.stderr.splitlines()[:3] == ["starting", "loading demo", "tracking frames"]


@pytest.mark.parametrize("host", ["sam2", "transformers"])
def test_a_broken_frame_and_going_on(tmp_path: Path, frames: Path, host: str) -> None:
    command = (frames, "--model", "demo", "--host", host, "--recipe", "none", *BOXES, "--out", tmp_path / "out")
    broken = frames / "00015.png"
    whole = broken.read_bytes()
    broken.write_bytes(whole[:-30])
    stopped = invoke(*command, code=1)
    assert "00015.png: the picture cannot be read" in stopped.stderr
    assert f"4 masks in {tmp_path}/out/masks, beside overlay.mp4 and summary.json" in stopped.stderr
    assert "--resume" in stopped.stderr and "--overwrite" in stopped.stderr
    out = tmp_path / "out"
    before, summary = masks(out), json.loads((out / "summary.json").read_text())
    assert list(before) == names(11, 12, 13, 14)
    assert (summary["complete"], summary["frames"], len(summary["per_frame"])) == (False, 4, 4)
    assert "00015.png" in summary["runs"][0]["stopped"]
    assert len(list(open_video(out / "overlay.mp4"))) == 4
    assert (
        "not empty; --resume goes on with the run in it, --overwrite starts it over" in invoke(*command, code=1).stderr
    )
    assert "00015.png" in invoke(*command, "--resume", code=1).stderr
    assert masks(out).keys() == before.keys() and len(list(open_video(out / "overlay.mp4"))) == 4

    broken.write_bytes(whole)
    (out / "masks/.left-by-a-kill.part").touch()
    other = shutil.copytree(out, tmp_path / "other")
    shown = invoke(*command, "--resume")
    assert "going on after frame 00014 from its masks and the first prompts" in shown.stderr
    invoke(*command[:-1], other, "--resume")
    after, twin = masks(out), masks(other)
    assert list(after) == list(twin) == names(*range(11, 18))
    assert all(np.array_equal(after[name], twin[name]) for name in after)
    assert all(np.array_equal(after[name], before[name]) for name in before)
    assert not list(out.rglob(".*"))

    video = open_video(frames)
    prompts = [BoxPrompt(20, 30, 50, 60, 1, 0), BoxPrompt(60, 2, 80, 20, 7, 2)]
    again = continued(prompts, 3, lambda index: before[video.name_of(index)])
    for result in track(load(host=host), video, again, after=3):
        assert np.array_equal(labels_from_logits(result.logits), after[video.name_of(result.index)])

    summary = json.loads((out / "summary.json").read_text())
    assert (summary["complete"], summary["frames"], len(summary["per_frame"])) == (True, 7, 7)
    assert [run["frames"] for run in summary["runs"]] == [4, 3]
    assert summary["runs"][1]["after"] == "00014"
    assert summary["runs"][1]["masks_as_prompts"] == [{"frame": "00014", "object": number} for number in (1, 7)]
    assert len(list(open_video(out / "overlay.mp4"))) == 7
    assert "nothing left to track" in invoke(*command, "--resume").stderr


def test_going_on_is_with_the_same_command_and_starting_over_only_where_a_run_is(tmp_path: Path, frames: Path) -> None:
    out = tmp_path / "out"
    command = (frames, "--model", "demo", "--recipe", "none", "--box", "20,30,50,60", "--max-frames", 2, "--out", out)
    invoke(*command, "--resume")
    first = masks(out)
    other = [part if part != "20,30,50,60" else "20,30,50,61" for part in command]
    assert "differs in its prompts" in invoke(*other, "--resume", code=1).stderr
    changed = [part if part != "none" else "fast" for part in command]
    assert "differs in its recipe" in invoke(*changed, "--resume", code=1).stderr
    assert masks(out).keys() == first.keys()
    assert "expected one of them" in invoke(*command, "--resume", "--overwrite", code=2).stderr

    invoke(*command, "--resume", "--max-frames", 3)
    assert len(masks(out)) == 3
    invoke(*command, "--max-frames", 1, "--no-overlay", "--overwrite")
    assert list(masks(out)) == names(11)
    assert sorted(path.name for path in out.iterdir()) == ["masks", "summary.json"]

    precious = tmp_path / "data/masks"
    precious.mkdir(parents=True)
    (precious / "00011.png").write_bytes(b"mine")
    for flag in ("--resume", "--overwrite"):
        error = invoke(*command[:-1], precious.parent, flag, code=1).stderr
        assert "holds no run of `surgery track`" in error
    assert (precious / "00011.png").read_bytes() == b"mine"

    note = out / "summary.json"
    for damaged in ({"per_frame": [{"name": "00011"}]}, {"per_frame": [], "runs": [{}]}):
        note.write_text(json.dumps({**json.loads(note.read_text()), **damaged}))
        assert "holds no run of `surgery track`" in invoke(*command, "--resume", code=1).stderr


def test_an_error_before_the_first_frame_touches_nothing(tmp_path: Path, frames: Path) -> None:
    out = tmp_path / "out"
    command = (frames, "--model", "demo", "--recipe", "none", "--box", "20,30,50,60@1", "--max-frames", 2, "--out")
    invoke(*command, out)
    before = {path: path.read_bytes() for path in out.rglob("*") if path.is_file()}
    picture = frames / "00012.png"
    picture.write_bytes(picture.read_bytes()[:-30])
    error = invoke(*command, out, "--overwrite", code=1).stderr
    assert "00012.png" in error and "no new mask was written" in error
    assert {path: path.read_bytes() for path in out.rglob("*") if path.is_file()} == before
    invoke(*command, tmp_path / "new", code=1)
    assert not (tmp_path / "new").exists()
    (tmp_path / "file").touch()
    assert "is a file" in invoke(*command, tmp_path / "file/out", code=2).stderr
    assert "a name that can be written" in " ".join(invoke(*command, tmp_path / ("x" * 300), code=2).stderr.split())


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_signal_leaves_whole_files_and_says_which(tmp_path: Path, number: signal.Signals, code: int) -> None:
    folder, out = tmp_path / "frames", tmp_path / "out"
    folder.mkdir()
    for index, picture in enumerate(np.concatenate([clip()] * 8)):
        Image.fromarray(picture).save(folder / f"{index}.jpg")
    command = [sys.executable, "-m", "surgery.cli.main", "track", str(folder), "--model", "demo", "--recipe", "none"]
    process = subprocess.Popen(
        [*command, "--box", "20,30,50,60", "--out", str(out), "--json"],
        env={**os.environ, "OMP_NUM_THREADS": "1"}, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        # A suite that was started in the background ignores SIGINT, and its children would as well.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),
    )  # fmt: skip
    try:
        deadline = time.monotonic() + 300
        while not (out / "masks/2.png").exists():
            assert process.poll() is None and time.monotonic() < deadline
            time.sleep(0.01)
        process.send_signal(number)
        shown, said = process.communicate(timeout=120)
    finally:
        process.kill()
    assert (process.returncode, shown) == (code, "")
    found = masks(out)
    assert 3 <= len(found) < 80
    assert f"{len(found)} masks in {out}/masks, beside overlay.mp4 and summary.json" in said
    assert said.splitlines()[-1] == f"stopped by {number.name}" and "--resume" in said and "Traceback" not in said
    summary = json.loads((out / "summary.json").read_text())
    assert (summary["complete"], summary["frames"], summary["runs"][0]["stopped"]) == (False, len(found), number.name)
    assert len(list(open_video(out / "overlay.mp4"))) == len(found)
    assert not list(out.rglob(".*"))


def test_two_runs_do_not_share_a_folder(tmp_path: Path, frames: Path) -> None:
    first, second = (RunFolder(tmp_path / "out", open_video(frames), 0, False, False) for _ in range(2))
    first.begin(overlay=True)
    with pytest.raises(VideoError, match="another process is writing there"):
        second.begin(overlay=True)
    first.held.close()
    second.begin(overlay=True)
    second.held.close()


def test_a_signal_waits_for_what_belongs_together() -> None:
    done: list[str] = []
    before = signal.getsignal(signal.SIGTERM)

    def run() -> None:
        with stoppable():
            with held():
                os.kill(os.getpid(), signal.SIGTERM)
                time.sleep(0.01)
                done.append("written")
            done.append("not reached")

    with pytest.raises(Stopped, match="SIGTERM"):
        run()
    assert done == ["written"]
    assert signal.getsignal(signal.SIGTERM) is before

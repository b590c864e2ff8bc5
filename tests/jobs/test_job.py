"""Jobs of many videos in one process: what is written, gone on with, and told of."""

from __future__ import annotations

import html
import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner

from surgery.cli.main import main
from surgery.demo import load
from surgery.errors import JobError, ManifestError
from surgery.jobs import JobSummary, Line, Prompts, track
from surgery.jobs.folder import published
from surgery.jobs.worker import Tracker
from surgery.recipe import Recipe
from surgery.tracking import track as track_one
from surgery.video import BoxPrompt, labels_from_logits, open_video, read_label_png
from tests.jobs.conftest import BOX, masks, write_frames, write_manifest

PROMPTS = Prompts(boxes=(BOX,))


def run(source: Any, out: Path, **more: Any) -> JobSummary:
    return track(
        source, **{"model": "demo", "recipe": "none", "out": out, "prompts": PROMPTS, "progress": False, **more}
    )


def test_the_masks_are_those_of_each_video_alone(videos: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    summary = run(videos, out)
    assert summary.complete and summary.videos == {"asked": 4, "done": 4, "skipped": 0, "failed": 0}
    assert summary.frames == 3 + 4 + 5 + 6 and [one.frames for one in summary.slowest]
    assert sorted(path.name for path in out.iterdir()) == ["report.html", "summary.json", "v0", "v1", "v2", "v3"]
    model = load()
    for name in ("v0", "v3"):
        video = open_video(videos / name)
        for result in track_one(model, video, [BoxPrompt(20, 30, 50, 60)]):
            written = read_label_png(out / name / "masks" / f"{result.index:05d}.png")
            assert np.array_equal(written, labels_from_logits(result.logits))
    assert JobSummary.model_validate_json((out / "summary.json").read_text()) == summary


def test_going_on_tracks_what_is_not_done_or_has_changed(videos: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    first = run(videos, out)
    before = masks(out)
    with pytest.raises(JobError, match=r"not empty; --resume goes on .* --overwrite"):
        run(videos, out)
    assert run(videos, out, resume=True).videos["skipped"] == 4
    shutil.rmtree(out / "v1")
    (out / ".v1.0123.part").mkdir()
    os.utime(videos / "v2/00001.png")
    summary = run(videos, out, resume=True)
    assert (summary.videos["skipped"], summary.videos["done"], summary.frames) == (2, 2, 4 + 5)
    assert masks(out) == before and not list(out.glob(".*"))
    # What is said of the whole job is said of videos that were done before as well.
    assert {one.name for one in summary.slowest} == {"v0", "v1", "v2", "v3"}
    assert summary.frames_there == first.frames and summary.dense_frames == first.dense_frames
    assert run(videos, out, resume=True, prompts=Prompts(boxes=("20,30,50,61",))).videos["done"] == 4
    assert run(videos, out, resume=True, recipe="faithful", max_frames=2).frames == 8
    assert len(masks(out)) == 8
    assert run(videos, out, overwrite=True, max_frames=2).videos["done"] == 4


def test_a_folder_of_something_else_is_left_alone(videos: Path, tmp_path: Path) -> None:
    other = tmp_path / "other"
    (other / "v1").mkdir(parents=True)
    (other / "v1/letter.txt").write_text("mine")
    for how in ({"resume": True}, {"overwrite": True}):
        with pytest.raises(JobError, match="holds no job of many videos"):
            run(videos, other, **how)
    assert (other / "v1/letter.txt").read_text() == "mine"


def test_broken_videos_are_listed_and_stop_nothing(videos: Path, tmp_path: Path) -> None:
    picture = videos / "v1/00002.png"
    picture.write_bytes(picture.read_bytes()[:-40])
    (videos / "torn.mp4").write_bytes(b"no video")
    out = tmp_path / "out"
    summary = run(videos, out)
    assert summary.complete and summary.videos == {"asked": 5, "done": 3, "skipped": 0, "failed": 2}
    errors = {one.name: one.error for one in summary.failed}
    assert "00002.png" in errors["v1"] and "torn.mp4" in errors["torn"]
    assert not (out / "v1").exists() and not list(out.glob(".*"))
    page = (out / "report.html").read_text(encoding="utf-8")
    assert "<strong>3 of 5</strong>" in page and "0 done before, 2 failed" in page and "came to its end" in page
    assert errors["torn"] in html.unescape(page) and "Slowest videos" in page
    assert run(videos, out, resume=True).videos["failed"] == 2


def test_ctrl_c_leaves_what_goes_on(videos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    out, whole = tmp_path / "out", tmp_path / "whole"
    run(videos, whole)
    tracked: Callable[..., Any] = Tracker.run
    count = 0

    def stop() -> None:
        nonlocal count
        count += 1
        if count == 8:
            raise KeyboardInterrupt

    monkeypatch.setattr(Tracker, "run", lambda self, asked, step: tracked(self, asked, stop))
    with pytest.raises(KeyboardInterrupt):
        run(videos, out)
    monkeypatch.setattr(Tracker, "run", tracked)
    told = json.loads((out / "summary.json").read_text())
    assert (told["complete"], told["stopped"], told["videos"]["done"]) == (False, "KeyboardInterrupt", 1)
    # The longest came first; of the one begun nothing is left.
    assert sorted(path.name for path in out.iterdir()) == ["report.html", "summary.json", "v3"]
    assert run(videos, out, resume=True).videos["skipped"] == 1
    assert masks(out) == masks(whole)


def test_all_that_is_wrong_is_told_at_once_and_before_anything_runs(videos: Path, tmp_path: Path) -> None:
    manifest = write_manifest(
        tmp_path / "m.jsonl",
        [
            {"video": "videos/v0", "prompts": {"boxes": [BOX]}},
            {"video": "videos/nope.mp4"},
            {"video": "videos/v1", "name": "v0"},
            {"video": "videos/v1", "prompts": {"boxes": ["20,30,500,60"]}},
            {"video": "videos/v2", "prompts": {"boxes": ["20,30,50,60@7"]}},
            {"video": "videos/v3", "prompt": {"boxes": [BOX]}},
            {"video": "videos/v3", "name": "a/b"},
            {"video": "videos/v3", "name": "every", "prompts": "everything"},
            {"video": "videos/v3", "name": "masked", "prompts": {"masks": ["no.png"]}},
        ],
    )
    with manifest.open("a") as file:
        file.write('{"video": \n')
    with pytest.raises(ManifestError) as caught:
        run(manifest, tmp_path / "out")
    text = str(caught.value)
    assert not (tmp_path / "out").exists()
    for line, expected in {
        2: "no such file or folder", 3: "'v0' is also that of", 4: "leaves the frame", 5: "frame '7'",
        6: "did you mean 'prompts'", 7: "'a/b', expected one that a folder can have",
        8: "recipe has no segment_everything", 9: "no mask file at", 10: "Invalid JSON",
    }.items():  # fmt: skip
        (found,) = (one for one in text.splitlines() if f"m.jsonl:{line}:" in one.split(" ")[0])
        assert expected in found
    assert "9 of the videos" in text and "m.jsonl:1: " not in text
    with pytest.raises(ManifestError, match="no prompt, expected boxes"):
        run(videos, tmp_path / "out", prompts=None)


def test_a_manifest_has_paths_of_its_own_folder_and_prompts_and_names(videos: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    run(videos, out)
    shutil.copy(out / "v1/masks/00001.png", videos.parent / "first.png")
    manifest = write_manifest(
        tmp_path / "m.jsonl",
        [{"video": "videos/v1", "name": "late", "prompts": {"masks": ["first.png@00001"], "points": ["10,10#7"]}}],
    )
    summary = run([manifest, Line(video=str(videos / "v0"))], tmp_path / "named", prompts=PROMPTS)
    assert summary.videos["done"] == 2
    assert masks(tmp_path / "named").keys() >= {"late/masks/00003.png", "v0/masks/00002.png"}
    row = json.loads((tmp_path / "named/late/video.json").read_text())
    assert (row["frames"], row["name"], row["size"]) == (4, "late", [90, 120])


def test_everything_in_many_videos(videos: Path, tmp_path: Path) -> None:
    few = Recipe.load("everything-grid", ["everything.points=4"])
    summary = run([videos / "v0", videos / "v1"], tmp_path / "out", recipe=few, prompts=None, max_frames=2)
    assert summary.videos["done"] == 2 and summary.frames == 4


def test_a_folder_is_replaced_whole_or_not_at_all(tmp_path: Path) -> None:
    for text in ("old", "new"):
        with published(str(tmp_path), "a") as part:
            (part / "file").write_text(text)

    def fail() -> None:
        with published(str(tmp_path), "a") as part:
            (part / "file").write_text("half")
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        fail()
    assert (tmp_path / "a/file").read_text() == "new" and [path.name for path in tmp_path.iterdir()] == ["a"]


def test_the_command(videos: Path, tmp_path: Path) -> None:
    def invoke(*arguments: object, code: int = 0) -> str:
        result = CliRunner().invoke(main, ["track", *map(str, arguments), "--model", "demo", "--recipe", "none"])
        assert result.exit_code == code, (result.output, result.exception)
        return result.output

    out = tmp_path / "out"
    shown = invoke(f"{videos}/v[01]", "--box", BOX, "--out", out)
    assert "2 videos tracked, 0 done before, 0 failed; 7 frames" in shown and "tracking" in shown
    assert not list(out.rglob("*.mp4"))
    write_frames(tmp_path / "more/v9", 2)
    (tmp_path / "more/bad.mp4").write_bytes(b"")
    told = invoke(videos / "v0", tmp_path / "more/v9", "--box", BOX, "--out", out, "--resume", "--overlay")
    assert "2 videos tracked, 0 done before" in told and (out / "v9/overlay.mp4").exists()
    assert "bad: " in invoke(tmp_path / "more", "--box", BOX, "--out", tmp_path / "o", code=1)
    assert "are for one video" in invoke(videos, "--box", BOX, "--out", out, "--fps", 3, code=2)
    assert "expected x in 0..120" in invoke(videos, "--box", "20,30,500,60", "--out", tmp_path / "p", code=1)

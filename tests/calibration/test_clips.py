"""Which clips are taken, and what is said about the others."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from surgery.calibration import CalibrationClip, gather_clips
from surgery.demo.clips import make_clip, write_davis
from surgery.errors import CalibrationError
from surgery.video import BoxPrompt, MaskPrompt, open_video, write_label_png


def frames(count: int, side: int = 32) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 255, (count, side, side, 3), dtype=np.uint8)


def folder_of(path: Path, pictures: Any) -> Path:
    path.mkdir(parents=True)
    for index, picture in enumerate(pictures):
        Image.fromarray(picture).save(path / f"{index:05d}.png")
    return path


def labelled(path: Path, count: int, empty: bool = False) -> Path:
    folder_of(path / "frames", frames(count))
    (path / "masks").mkdir()
    for index in range(count):
        mask = np.zeros((32, 32), dtype=np.uint8)
        mask[4:12, 4:12] = 0 if empty else 2
        write_label_png(path / "masks" / f"{index:05d}.png", mask)
    return path


def test_folders_files_and_annotated_clips(tmp_path: Path) -> None:
    folder_of(tmp_path / "plain", frames(4))
    labelled(tmp_path / "annotated", 5)
    clips, skipped = gather_clips([tmp_path / "plain", tmp_path / "annotated"])
    assert not skipped
    assert [(clip.name, len(clip.prompts), clip.truth is not None) for clip in clips] == [
        ("plain", 0, False), ("annotated", 1, True),
    ]  # fmt: skip
    assert clips[1].prompts[0].obj_id == 2
    assert clips[1].truth is not None and clips[1].truth[4][5, 5] == 2
    together, _ = gather_clips(tmp_path)
    assert [clip.name for clip in together] == ["annotated", "plain"]


def test_masks_are_those_of_the_frames_they_are_called_as(tmp_path: Path) -> None:
    path = labelled(tmp_path / "late", 5)
    for index in range(5):
        for kind in ("frames", "masks"):
            (path / kind / f"{index:05d}.png").rename(path / kind / f"a{index + 1}.png")
    write_label_png(path / "masks" / "a0.png", np.full((32, 32), 7, dtype=np.uint8))
    clips, skipped = gather_clips([path, labelled(tmp_path / "other", 4)])
    assert not skipped
    assert [prompt.obj_id for prompt in clips[0].prompts] == [2]
    (path / "masks" / "a1.png").unlink()
    _, skipped = gather_clips([path, tmp_path / "other", labelled(tmp_path / "third", 4)])
    assert "no mask called a1.png" in str(skipped[0])


def test_a_davis_folder_stands_for_its_sequences(tmp_path: Path) -> None:
    write_davis([make_clip(5, 3, 64), make_clip(6, 3, 64)], tmp_path)
    clips, skipped = gather_clips([str(tmp_path)])
    assert not skipped
    assert len(clips) == 2
    assert all(clip.truth is not None and clip.prompts for clip in clips)


def test_useless_clips_are_named_with_the_reason(tmp_path: Path) -> None:
    folder_of(tmp_path / "good", frames(4))
    folder_of(tmp_path / "one", frames(1))
    folder_of(tmp_path / "resized", [*frames(2), frames(1, 48)[0]])
    labelled(tmp_path / "nothing", 4, empty=True)
    (tmp_path / "broken.mp4").write_bytes(b"not a video")
    short = labelled(tmp_path / "short", 4)
    (short / "masks" / "00003.png").unlink()
    names = ["good", "one", "resized", "nothing", "broken.mp4", "short", "missing"]
    clips, skipped = gather_clips([tmp_path / name for name in names])
    assert [clip.name for clip in clips] == ["good"]
    reasons = {clip.name: clip.reason for clip in skipped}
    for name, part in {
        "one": "1 frame, expected at least 3", "resized": "48x48", "nothing": "empty", "broken.mp4": "broken.mp4",
        "short": "3 masks for 4 frames", "missing": "no such file",
    }.items():  # fmt: skip
        assert part in reasons[name], (name, reasons[name])


def test_prompts_must_fit_and_leave_frames_to_track() -> None:
    video = open_video(frames(5))
    outside = CalibrationClip("outside", video, (BoxPrompt(0, 0, 99, 9),))
    late = CalibrationClip("late", video, (MaskPrompt(np.ones((32, 32), bool), 1, 4),))
    clips, skipped = gather_clips([outside, late])
    assert not clips
    assert [clip.name for clip in skipped] == ["outside", "late"]


def test_only_the_first_frames_are_used() -> None:
    clips, _ = gather_clips([CalibrationClip("a", open_video(frames(9)))], max_frames=4)
    assert clips[0].video.num_frames == 4
    assert len(list(clips[0].video)) == 4
    assert len(list(clips[0].video)) == 4, "a clip is read more than once"
    with pytest.raises(CalibrationError, match="at least 3"):
        gather_clips([CalibrationClip("a", open_video(frames(9)))], max_frames=2)


def test_one_name_twice_is_an_error_and_so_is_nothing() -> None:
    clip = CalibrationClip("a", open_video(frames(4)))
    with pytest.raises(CalibrationError, match="two clips are called 'a'"):
        gather_clips([clip, clip])
    with pytest.raises(CalibrationError, match="no clip given"):
        gather_clips([])

from __future__ import annotations

import os
import warnings
from collections.abc import Iterator
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest

import surgery.files
from surgery.errors import VideoError
from surgery.video import VideoWriter, open_video, write_video

from .clips import close_to, picture


def files(folder: Path) -> list[str]:
    return sorted(os.listdir(folder))


def test_round_trip(tmp_path: Path) -> None:
    path = tmp_path / "out.mp4"
    with VideoWriter(path, 30000 / 1001) as writer:
        for index in range(8):
            writer.write(picture(index))
        assert not path.exists()
    assert files(tmp_path) == ["out.mp4"]
    assert writer.num_frames == 8
    video = open_video(path)
    assert (video.size, video.num_frames) == ((48, 64), 8)
    assert video.fps == pytest.approx(30000 / 1001, abs=1e-9)
    assert all(close_to(frame, picture(index), 6) for index, frame in enumerate(video))


def test_colours_are_tagged_and_kept(tmp_path: Path) -> None:
    flat = np.zeros((32, 32, 3), np.uint8) + np.array([200, 40, 90], np.uint8)
    write_video(tmp_path / "a.mp4", [flat] * 3, 25)
    frame = next(iter(open_video(tmp_path / "a.mp4")))
    assert np.abs(frame.astype(int) - flat).max() <= 4
    with av.open(str(tmp_path / "a.mp4")) as container:
        assert container.streams.video[0].codec_context.colorspace == 1  # BT.709


@pytest.mark.parametrize("size", [(47, 64), (48, 63), (47, 63), (1, 1)])
def test_odd_sizes_repeat_the_last_row_and_column(tmp_path: Path, size: tuple[int, int]) -> None:
    height, width = size
    frames = [picture(index, 48, 64)[:height, :width] for index in range(2)]
    write_video(tmp_path / "a.mp4", iter(frames), 25)
    video = open_video(tmp_path / "a.mp4")
    assert video.size == (height + height % 2, width + width % 2)
    expected = np.pad(frames[0], ((0, height % 2), (0, width % 2), (0, 0)), mode="edge")
    assert close_to(next(iter(video)), expected)


@pytest.mark.parametrize("fps", [0.5, 1, 23.976, 24, Fraction(60000, 1001), 240])
def test_rates(tmp_path: Path, fps: float) -> None:
    write_video(tmp_path / "a.mp4", [picture(0)] * 3, fps)
    video = open_video(tmp_path / "a.mp4")
    assert video.fps == pytest.approx(float(fps), rel=1e-4)
    assert len(list(video)) == 3


def test_a_failing_block_leaves_nothing(tmp_path: Path) -> None:
    path = tmp_path / "out.mp4"
    path.write_bytes(b"the old one")
    seen = []

    def frames() -> Iterator[np.ndarray]:
        yield picture(0)
        seen.extend(files(tmp_path))
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write_video(path, frames(), 25)
    assert len(seen) == 2
    assert files(tmp_path) == ["out.mp4"]
    assert path.read_bytes() == b"the old one"


@pytest.mark.parametrize(
    ("bad", "message"),
    [
        (picture(0, 20, 20), r"frame 1: 20x20 pixels .*expected 48x64 as in frame 0"),
        (picture(0)[..., 0], r"frame 1: got uint8 values of shape"),
    ],
)
def test_a_bad_frame_leaves_nothing(tmp_path: Path, bad: np.ndarray, message: str) -> None:
    with pytest.raises(VideoError, match=rf"out\.mp4, {message}"):
        write_video(tmp_path / "out.mp4", [picture(0), bad], 25)
    assert files(tmp_path) == []


def test_no_frame(tmp_path: Path) -> None:
    with pytest.raises(VideoError, match=r"out\.mp4: no frame was written, expected at least one"):
        write_video(tmp_path / "out.mp4", [], 25)
    assert files(tmp_path) == []


def test_a_disk_that_fills_up(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(surgery.files.os, "replace", full)
    with pytest.raises(VideoError, match=r"out\.mp4: cannot be written .*No space left"):
        write_video(tmp_path / "out.mp4", [picture(0)], 25)
    assert files(tmp_path) == []


def test_a_folder_that_goes_away(tmp_path: Path) -> None:
    folder = tmp_path / "gone"
    folder.mkdir()
    writer = VideoWriter(folder / "out.mp4", 25)
    folder.rmdir()
    with pytest.raises(VideoError, match=r"out\.mp4, frame 0: cannot be written"), writer:
        writer.write(picture(0))


def test_only_inside_a_with_block(tmp_path: Path) -> None:
    writer = VideoWriter(tmp_path / "out.mp4", 25)
    with pytest.raises(VideoError, match="the writer is not open, expected `with VideoWriter"):
        writer.write(picture(0))
    with writer:
        writer.write(picture(0))
    with pytest.raises(VideoError, match="the writer is not open"):
        writer.write(picture(0))
    assert files(tmp_path) == ["out.mp4"]


@pytest.mark.parametrize(
    ("name", "fps", "message"),
    [
        ("a.avi", 25, r"cannot write \.avi, expected \.mp4"),
        ("a", 25, r"cannot write a file without suffix, expected \.mp4"),
        ("nowhere/a.mp4", 25, "nowhere does not exist"),
        ("a.mp4", 0, "fps is 0, expected 0.01 to 1000"),
        ("a.mp4", float("nan"), "fps is nan, expected 0.01 to 1000"),
        ("a.mp4", 1e9, "fps is 1000000000.0, expected 0.01 to 1000"),
    ],
)
def test_arguments(tmp_path: Path, name: str, fps: float, message: str) -> None:
    with pytest.raises(VideoError, match=message):
        VideoWriter(tmp_path / name, fps)


def test_a_folder_as_the_file(tmp_path: Path) -> None:
    (tmp_path / "a.mp4").mkdir()
    with pytest.raises(VideoError, match=r"a folder, expected the name of an \.mp4 file"):
        VideoWriter(tmp_path / "a.mp4", 25)


def test_without_libx264(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def absent(*_: object, **__: object) -> None:
        raise av.error.EncoderNotFoundError(1, "Encoder not found", "libx264")

    monkeypatch.setattr(av.container.OutputContainer, "add_stream", absent, raising=False)
    with pytest.raises(VideoError, match=r"out\.mp4, frame 0: cannot be written .*Encoder not found.*libx264"):
        write_video(tmp_path / "out.mp4", [picture(0)], 25)
    assert files(tmp_path) == []


def test_no_warning_as_a_rule(tmp_path: Path) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        write_video(tmp_path / "a.mp4", [picture(0)], 25)

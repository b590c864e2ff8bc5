from __future__ import annotations

import gc
import weakref
from collections.abc import Iterator

import numpy as np
import pytest

from surgery.errors import VideoError
from surgery.video import open_video

from .clips import picture


def clip(count: int = 4) -> list[np.ndarray]:
    return [picture(index) for index in range(count)]


class Camera:
    """An iterable without a length that starts anew each time."""

    def __iter__(self) -> Iterator[np.ndarray]:
        return iter(clip(3))


@pytest.mark.parametrize(
    ("source", "count"), [(clip(), 4), (tuple(clip()), 4), (np.stack(clip()), 4), (Camera(), None)]
)
def test_sources_that_can_be_read_again(source: object, count: int | None) -> None:
    video = open_video(source)  # type: ignore[arg-type]
    assert (video.name, video.fps, video.size, video.num_frames) == ("frames", None, (48, 64), count)
    for _ in range(3):
        for index, frame in enumerate(video):
            np.testing.assert_array_equal(frame, picture(index))


def test_a_generator_is_read_once() -> None:
    video = open_video(iter(clip()))
    assert video.num_frames is None
    assert [int(frame[0, 0, 2]) for frame in video] == [0, 8, 16, 24]
    with pytest.raises(VideoError, match="one-shot iterator that was already read: expected a single pass"):
        iter(video)


def test_opening_takes_one_frame_and_loses_none() -> None:
    taken = []

    def camera() -> Iterator[np.ndarray]:
        for index in range(1000):
            taken.append(index)
            yield picture(index)

    video = open_video(camera())
    assert taken == [0]
    frames = iter(video)
    np.testing.assert_array_equal(next(frames), picture(0))
    assert taken == [0]
    next(frames)
    assert taken == [0, 1]


def test_frames_of_an_iterator_are_not_kept() -> None:
    alive: list[weakref.ref[np.ndarray]] = []
    most = 0
    video = open_video(picture(index) for index in range(50))
    for frame in video:
        alive = [ref for ref in alive if ref() is not None] + [weakref.ref(frame)]
        most = max(most, len(alive))
    del frame
    gc.collect()
    assert most <= 3
    assert not [ref for ref in alive if ref() is not None]


def test_the_error_of_a_broken_source_comes_through() -> None:
    def camera() -> Iterator[np.ndarray]:
        yield picture(0)
        raise RuntimeError("unplugged")

    with pytest.raises(RuntimeError, match="unplugged"):
        list(open_video(camera()))


class Tensor:
    def __array__(self) -> np.ndarray:
        return picture(0)


@pytest.mark.parametrize(
    ("bad", "message"),
    [
        (np.zeros((4, 5), np.uint8), r"uint8 values of shape \(4, 5\), expected a \(height, width, 3\) uint8 RGB"),
        (np.zeros((4, 5, 1), np.uint8), r"shape \(4, 5, 1\).*numpy\.repeat"),
        (np.zeros((4, 5, 4), np.uint8), r"shape \(4, 5, 4\).*drop the alpha channel"),
        (np.zeros((3, 4, 5), np.uint8), r"shape \(3, 4, 5\).*transpose\(1, 2, 0\)"),
        (np.zeros((2, 4, 5, 3), np.uint8), r"shape \(2, 4, 5, 3\), expected"),
        (np.zeros((4, 5, 3), np.float32), r"got float32 values of shape .*, expected"),
        (np.zeros((0, 5, 3), np.uint8), r"shape \(0, 5, 3\), expected"),
        ("frame", "got a str, expected"),
        (Tensor(), r"got a Tensor, expected .*numpy\.asarray"),
    ],
)
def test_frames_that_are_no_frames(bad: object, message: str) -> None:
    with pytest.raises(VideoError, match=f"frame 0: .*{message}"):
        open_video([bad])  # type: ignore[list-item]
    later = open_video([picture(0), bad])  # type: ignore[list-item]
    with pytest.raises(VideoError, match=f"frame 1: .*{message}"):
        list(later)


@pytest.mark.parametrize("source", [[], np.zeros((0, 4, 5, 3), np.uint8), iter(())])
def test_no_frames(source: object) -> None:
    with pytest.raises(VideoError, match="holds no frames, expected at least one"):
        open_video(source)  # type: ignore[arg-type]


def test_one_array_that_is_not_a_clip() -> None:
    with pytest.raises(VideoError, match=r"one array of shape \(48, 64, 3\) as the video, expected .* a 4-D"):
        open_video(picture(0))


@pytest.mark.parametrize("source", [3, None])
def test_something_else_entirely(source: object) -> None:
    with pytest.raises(VideoError, match="as the video, expected a folder, a video file"):
        open_video(source)  # type: ignore[arg-type]


def test_size_that_changes() -> None:
    with pytest.raises(VideoError, match=r"frames, frame 2: 20x30 pixels .*expected 48x64 as in the first frame"):
        list(open_video([picture(0), picture(1), picture(2, 20, 30)]))

"""A video: frames that are read as they are asked for, wherever they come from.

A frame is a (height, width, 3) uint8 RGB array, and nothing else.
"""

from __future__ import annotations

import copy
from abc import ABC, abstractmethod
from collections.abc import Iterator
from itertools import islice
from typing import Any

import numpy as np
import numpy.typing as npt

from surgery.errors import VideoError

Frame = npt.NDArray[np.uint8]


def require_rgb(frame: Any, where: str) -> Frame:
    """Return `frame` unchanged if it is a frame, otherwise say what is wrong with it.

    Args:
        frame: anything; a good one is a (height, width, 3) uint8 array with height and width of at least 1.
        where: starts the message, e.g. `"clip.mp4, frame 12"`.

    Raises:
        VideoError: not a numpy array, not uint8, greyscale, RGBA, channels first, or without a pixel.
    """
    found, fix = f"a {type(frame).__name__}", ""
    if isinstance(frame, np.ndarray):
        if frame.ndim == 3 and frame.shape[2] == 3 and frame.dtype == np.uint8 and frame.size:
            return frame
        found = f"{frame.dtype} values of shape {frame.shape}"
        match frame.shape:
            case (_, _) | (_, _, 1):
                fix = ": repeat the channel with numpy.repeat(grey.reshape(height, width, 1), 3, axis=2)"
            case (_, _, 4):
                fix = ": drop the alpha channel with frame[..., :3]"
            case (3, _, columns) if columns != 3:
                fix = ": move the channels last with frame.transpose(1, 2, 0)"
    elif hasattr(frame, "__array__"):
        fix = ": convert it with numpy.asarray(...)"
    raise VideoError(f"{where}: got {found}, expected a (height, width, 3) uint8 RGB numpy array{fix}")


def require_size(size: tuple[int, ...], expected: tuple[int, ...], where: str, first: str = "the first frame") -> None:
    """Raise `VideoError` unless two (height, width) are the same; `first` is what has the expected one."""
    if size != expected:
        raise VideoError(
            f"{where}: {size[0]}x{size[1]} pixels (height x width), expected {expected[0]}x{expected[1]} as in {first}"
        )


class Video(ABC):
    """Frames that are read as they are asked for: memory does not grow with the length of the video.

    Attributes:
        name: the folder's name, the file's name without suffix, or `"frames"` for arrays.
        fps: frames per second (the average, if the rate varies); None for folders and arrays, which have no clock.
        size: (height, width) in pixels of every frame, turned upright.
        num_frames: how many frames there are, or None when only reading to the end can tell (iterators, mkv, webm).
            For other files this is what the file declares; an edited clip may hold a few more than it shows.
        names: what the frames are called, in order: the names of a folder's pictures without suffix; None elsewhere.

    Iterating yields contiguous or strided (height, width, 3) uint8 RGB arrays; arrays that came from memory are passed
    on as they are, without a copy. Folders, files, sequences and arrays can be iterated again, also at the same time; a
    one-shot iterator only once (`VideoError`). A frame of another size, or one that cannot be decoded, is a
    `VideoError` that names the file and the frame.
    """

    name: str
    size: tuple[int, int]
    fps: float | None = None
    num_frames: int | None = None
    names: tuple[str, ...] | None = None
    _stop: int | None = None

    @abstractmethod
    def _frames(self) -> Iterator[Any]:
        """Start a pass over what should be frames: whether it is, is for iterating to see."""

    def name_of(self, index: int) -> str:
        """What files that belong to frame `index` are called: the frame's name, or five digits where it has none."""
        return f"{index:05d}" if self.names is None else self.names[index]

    def where(self, index: int) -> str:
        """Frame `index` as errors call it."""
        return f"{self.name}, frame {index}"

    def __iter__(self) -> Iterator[Frame]:
        return self._alike(islice(self._frames(), self._stop))

    def __repr__(self) -> str:
        length = "?" if self.num_frames is None else self.num_frames
        return f"Video({self.name!r}, {length} frames of {self.size[0]}x{self.size[1]}, fps={self.fps})"

    def _alike(self, frames: Iterator[Any]) -> Iterator[Frame]:
        for index, frame in enumerate(frames):
            require_size(require_rgb(frame, self.where(index)).shape[:2], self.size, self.where(index))
            yield frame


def first_frames(video: Video, count: int) -> Video:
    """The first `count` frames of `video`, which must have that many, as a video of its own."""
    head = copy.copy(video)
    head.num_frames = head._stop = count
    # No clock: the count is certain, where that of a file with a frame rate is only declared.
    head.fps = None
    head.names = None if video.names is None else video.names[:count]
    return head

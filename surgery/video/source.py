"""A video: frames that are read as they are asked for, wherever they come from."""

from __future__ import annotations

import copy
from abc import ABC, abstractmethod
from collections.abc import Iterator
from itertools import islice

from surgery.errors import VideoError
from surgery.video.rgb import Frame


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
    def _frames(self) -> Iterator[Frame]:
        """Start a pass over the frames."""

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

    def _alike(self, frames: Iterator[Frame]) -> Iterator[Frame]:
        for index, frame in enumerate(frames):
            self._require_size(frame.shape[:2], index)
            yield frame

    def _require_size(self, size: tuple[int, ...], index: int) -> None:
        if size != self.size:
            raise VideoError(
                f"{self.where(index)}: {size[0]}x{size[1]} pixels (height x width), "
                f"expected {self.size[0]}x{self.size[1]} as in the first frame"
            )


def first_frames(video: Video, count: int) -> Video:
    """The first `count` frames of `video`, which must have that many, as a video of its own."""
    head = copy.copy(video)
    head.num_frames = head._stop = count
    # No clock: the count is certain, where that of a file with a frame rate is only declared.
    head.fps = None
    head.names = None if video.names is None else video.names[:count]
    return head

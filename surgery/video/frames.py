"""One way in for every kind of video: a folder of pictures, a video file, or arrays from memory."""

from __future__ import annotations

import copy
import os
from collections.abc import Iterable, Iterator
from itertools import islice
from pathlib import Path
from typing import Protocol

import numpy as np

from surgery.errors import VideoError, nearest
from surgery.video.arrays import ArrayReader
from surgery.video.file import FileReader
from surgery.video.folder import KINDS, FolderReader
from surgery.video.rgb import Frame

VideoSource = str | os.PathLike[str] | np.ndarray | Iterable[Frame]


class _Reader(Protocol):
    name: str
    fps: float | None
    size: tuple[int, int]
    num_frames: int | None
    names: tuple[str, ...] | None

    def frames(self) -> Iterator[Frame]: ...


class Video:
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

    def __init__(self, reader: _Reader) -> None:
        self._reader = reader
        self.name = reader.name
        self.fps = reader.fps
        self.size = reader.size
        self.num_frames = reader.num_frames
        self.names = reader.names
        self._stop: int | None = None

    def name_of(self, index: int) -> str:
        """What files that belong to frame `index` are called: the frame's name, or five digits where it has none."""
        return f"{index:05d}" if self.names is None else self.names[index]

    def __iter__(self) -> Iterator[Frame]:
        return self._same_size(islice(self._reader.frames(), self._stop))

    def __repr__(self) -> str:
        length = "?" if self.num_frames is None else self.num_frames
        return f"Video({self.name!r}, {length} frames of {self.size[0]}x{self.size[1]}, fps={self.fps})"

    def _same_size(self, frames: Iterator[Frame]) -> Iterator[Frame]:
        height, width = self.size
        for index, frame in enumerate(frames):
            if frame.shape[:2] != (height, width):
                raise VideoError(
                    f"{self.name}, frame {index}: {frame.shape[0]}x{frame.shape[1]} pixels (height x width), "
                    f"expected {height}x{width} as in frame 0"
                )
            yield frame


def open_video(source: VideoSource) -> Video:
    """Open a video and look at its first frame, so that a broken one fails here and not inside a model run.

    Args:
        source: one of
            - a folder of JPEG or of PNG pictures, ordered by the integer at the end of their names; EXIF orientation
              is applied;
            - a video file that FFmpeg reads (mp4, mov, avi, mkv, webm, ...); the rotation that phones store beside the
              pixels is applied: quarter turns and mirrors;
            - a (frames, height, width, 3) uint8 RGB array, or any iterable of (height, width, 3) uint8 RGB arrays.

    Raises:
        VideoError: nothing there, an empty folder, a file that is no video, is damaged or cut short, no frame, frames
            of different sizes or formats in a folder, or a first frame that is not RGB.
    """
    if not isinstance(source, (str, os.PathLike)):
        return Video(ArrayReader(source))
    if "://" in str(source):
        raise VideoError(
            f"{source}: an address, expected a folder or a video file: download it first, or pass an iterator of frames"
        )
    path = Path(source).expanduser()
    try:
        path.exists()
    except OSError as error:
        raise VideoError(f"{path}: {error.strerror}, expected a folder of frames or a video file") from error
    if path.is_dir():
        return Video(FolderReader(path))
    if not path.exists():
        raise VideoError(f"{path}: no such file or folder, expected a folder of frames or a video file{_near(path)}")
    if not path.is_file():
        raise VideoError(f"{path}: neither a file nor a folder, expected a folder of frames or a video file")
    if path.suffix.lower() in KINDS:
        raise VideoError(f"{path}: a single picture, expected a video file or the folder of frames: {path.parent}")
    return Video(FileReader(path))


def first_frames(video: Video, count: int) -> Video:
    """The first `count` frames of `video`, which must have that many, as a video of its own."""
    head = copy.copy(video)
    head.num_frames = head._stop = count
    # No clock: the count is certain, where that of a file with a frame rate is only declared.
    head.fps = None
    head.names = None if video.names is None else video.names[:count]
    return head


def _near(path: Path) -> str:
    if not path.parent.is_dir():
        return f" (the folder {path.parent} does not exist either)"
    try:
        return nearest(path.name, (entry.name for entry in path.parent.iterdir()))
    except OSError:
        return ""

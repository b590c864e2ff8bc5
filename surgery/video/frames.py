"""One way in for every kind of video: a folder of pictures, a video file, or arrays from memory."""

from __future__ import annotations

import os
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path

import numpy as np

from surgery.errors import VideoError, nearest
from surgery.video.arrays import ArrayVideo
from surgery.video.file import FileVideo
from surgery.video.folder import KINDS, FolderVideo
from surgery.video.source import Frame, Video

VideoSource = str | os.PathLike[str] | np.ndarray | Iterable[Frame]

_EXPECTED = "expected a folder of frames or a video file"


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
        return ArrayVideo(source)
    if "://" in str(source):
        raise VideoError(f"{source}: an address, {_EXPECTED}: download it first, or pass an iterator of frames")
    path = Path(source).expanduser()
    try:
        path.stat()
    except (OSError, ValueError) as error:
        reason = str(getattr(error, "strerror", None) or error).lower()
        raise VideoError(f"{path}: {reason}, {_EXPECTED}{_near(path)}") from error
    if path.is_dir():
        return FolderVideo(path)
    if not path.is_file():
        raise VideoError(f"{path}: neither a file nor a folder, {_EXPECTED}")
    if path.suffix.lower() in KINDS:
        raise VideoError(f"{path}: a single picture, expected a video file or the folder of frames: {path.parent}")
    return FileVideo(path)


def _near(path: Path) -> str:
    if not path.parent.is_dir():
        return f" (the folder {path.parent} does not exist either)"
    with suppress(OSError):
        return nearest(path.name, os.listdir(path.parent))
    return ""

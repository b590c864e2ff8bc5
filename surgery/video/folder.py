"""Frames from a folder of JPEG or PNG pictures, in the order of their numbers."""

from __future__ import annotations

import re
import struct
import zlib
from collections.abc import Iterable, Iterator
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps

from surgery.errors import VideoError
from surgery.video.rgb import Frame

KINDS = {".jpg": "JPEG", ".jpeg": "JPEG", ".png": "PNG"}
# Pictures that are not frames of ours: next to frames they mean that somebody mixed two things in one folder.
_OTHER_PICTURES = {".bmp", ".gif", ".tif", ".tiff", ".webp", ".heic", ".avif", ".jp2", ".ppm", ".pgm", ".exr", ".tga"}
# What Pillow raises, by experience, on pictures cut short or damaged.
BROKEN_PICTURE = (OSError, SyntaxError, ValueError, EOFError, struct.error, zlib.error, Image.DecompressionBombError)
_EIGHT_BIT_MODES = {"1", "L", "LA", "P", "PA", "RGB", "RGBA", "RGBX", "CMYK", "YCbCr"}
_TRAILING_INTEGER = re.compile(r"([0-9]+)\Z")
_ORIENTATION = 0x0112


def natural_sort(paths: Iterable[Path]) -> list[Path]:
    """Sort frame files by the integer at the end of their names: `f2.jpg` comes before `f10.jpg`.

    Raises:
        VideoError: a name that does not end in an integer, or two names with the same one (the order is ambiguous).
    """
    by_number: dict[int, Path] = {}
    for path in paths:
        match = _TRAILING_INTEGER.search(path.stem)
        if match is None:
            raise VideoError(
                f"{path}: the name has no frame number, expected one at its end, such as 00012{path.suffix}"
            )
        other = by_number.setdefault(int(match[1]), path)
        if other is not path:
            first, second = sorted((other, path))
            raise VideoError(
                f"{first} and {second.name} have the same frame number {int(match[1])}, expected one file each"
            )
    return [by_number[number] for number in sorted(by_number)]


class FolderReader:
    """Pictures of one folder, decoded one at a time; hidden files and files that are no pictures are left out.

    EXIF orientation is applied (`PIL.ImageOps.exif_transpose`); greyscale and palette pictures become RGB and an alpha
    channel is dropped. All headers are read when the folder is opened, so that a stray size fails there.

    Raises:
        VideoError: no picture, JPEG and PNG (or another picture format) mixed, a name without a frame number, a
            picture that cannot be read, or pictures of different sizes.
    """

    fps: float | None = None

    def __init__(self, folder: Path) -> None:
        self.name = folder.resolve().name
        self._paths = natural_sort(_list_pictures(folder))
        self.num_frames: int | None = len(self._paths)
        # Numbers are unique, so names are.
        self.names: tuple[str, ...] | None = tuple(path.stem for path in self._paths)
        first = self._paths[0]
        expected = _header_size(first)
        for path in self._paths[1:]:
            size = _header_size(path)
            if size != expected:
                raise VideoError(
                    f"{path}: {size[0]}x{size[1]} pixels (height x width), "
                    f"expected {expected[0]}x{expected[1]} as in {first.name}"
                )
        peeked = _read(first)
        self.size = (peeked.shape[0], peeked.shape[1])

    def frames(self) -> Iterator[Frame]:
        """Start a pass over the frames; a picture that cannot be decoded is a `VideoError` that names it."""
        for path in self._paths:
            frame = _read(path)
            if frame.shape[:2] != self.size:
                raise VideoError(
                    f"{path}: {frame.shape[0]}x{frame.shape[1]} pixels (height x width), "
                    f"expected {self.size[0]}x{self.size[1]} as in {self._paths[0].name}"
                )
            yield frame


def _list_pictures(folder: Path) -> list[Path]:
    try:
        files = sorted(path for path in folder.iterdir() if not path.name.startswith(".") and path.is_file())
    except OSError as error:
        raise VideoError(f"{folder}: the folder cannot be listed ({error}), expected a readable folder") from error
    frames = [path for path in files if path.suffix.lower() in KINDS]
    others = [path for path in files if path.suffix.lower() in _OTHER_PICTURES]
    if not frames:
        if not files:
            found = "nothing"
        else:
            found = f"{len(files)} other file{'s' if len(files) > 1 else ''} such as {files[0].name}"
        raise VideoError(f"{folder}: no frames, expected .jpg, .jpeg or .png files, found {found}")
    kind = KINDS[frames[0].suffix.lower()]
    for path in [*frames, *others]:
        other = KINDS.get(path.suffix.lower(), path.suffix)
        if other != kind:
            raise VideoError(f"{path}: a {other} picture among {kind} frames, expected one format in the folder")
    return frames


def _header_size(path: Path) -> tuple[int, int]:
    try:
        with Image.open(path) as image:
            width, height = image.size
            # A PNG may carry its EXIF data after the pixels: asking for it here would decode the whole picture.
            turned = image.format == "JPEG" and image.getexif().get(_ORIENTATION, 1) in (5, 6, 7, 8)
    except BROKEN_PICTURE as error:
        raise _broken(path, error) from error
    return (width, height) if turned else (height, width)


def _read(path: Path) -> Frame:
    try:
        with Image.open(path) as image:
            if image.mode in _EIGHT_BIT_MODES:
                return np.array(ImageOps.exif_transpose(image).convert("RGB"))
            mode = image.mode
    except BROKEN_PICTURE as error:
        raise _broken(path, error) from error
    raise VideoError(f"{path}: a picture of mode {mode!r}, expected 8 bits per channel: save it as 8-bit RGB")


def _broken(path: Path, error: BaseException) -> VideoError:
    return VideoError(f"{path}: the picture cannot be read ({error}), expected a whole JPEG or PNG file")

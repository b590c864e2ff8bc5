"""Frames from a folder of JPEG or PNG pictures, in the order of their numbers."""

from __future__ import annotations

import re
import struct
import zlib
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
from PIL import ExifTags, Image, ImageOps

from surgery.errors import VideoError
from surgery.video.source import Frame, Video, require_size

KINDS = {".jpg": "JPEG", ".jpeg": "JPEG", ".png": "PNG"}
# Pictures that are not frames of ours: next to frames they mean that somebody mixed two things in one folder.
_OTHER_PICTURES = {".bmp", ".gif", ".tif", ".tiff", ".webp", ".heic", ".avif", ".jp2", ".ppm", ".pgm", ".exr", ".tga"}
# What Pillow raises, by experience, on pictures cut short or damaged.
BROKEN_PICTURE = (OSError, SyntaxError, ValueError, EOFError, struct.error, zlib.error, Image.DecompressionBombError)
_EIGHT_BIT_MODES = {"1", "L", "LA", "P", "PA", "RGB", "RGBA", "RGBX", "CMYK", "YCbCr"}


def natural_sort(paths: Iterable[Path]) -> list[Path]:
    """Sort frame files by the integer at the end of their names: `f2.jpg` comes before `f10.jpg`.

    Raises:
        VideoError: a name that does not end in an integer, or two names with the same one (the order is ambiguous).
    """
    by_number: dict[int, Path] = {}
    for path in paths:
        match = re.search(r"[0-9]+\Z", path.stem)
        if match is None:
            raise VideoError(f"{path}: the name has no frame number, expected one at its end, like 00012{path.suffix}")
        number = int(match[0])
        other = by_number.setdefault(number, path)
        if other is not path:
            first, second = sorted((other, path))
            raise VideoError(f"{first} and {second.name} have the same frame number {number}, expected one file each")
    return [by_number[number] for number in sorted(by_number)]


class FolderVideo(Video):
    """Pictures of one folder, decoded one at a time; hidden files and files that are no pictures are left out.

    EXIF orientation is applied (`PIL.ImageOps.exif_transpose`); greyscale and palette pictures become RGB and an alpha
    channel is dropped. All headers are read when the folder is opened, so that a stray size fails there.

    Raises:
        VideoError: no picture, JPEG and PNG (or another picture format) mixed, a name without a frame number, a
            picture that cannot be read, or pictures of different sizes.
    """

    def __init__(self, folder: Path) -> None:
        self.name = folder.resolve().name
        self._paths = natural_sort(_list_pictures(folder))
        self.num_frames = len(self._paths)
        # Numbers are unique, so names are.
        self.names = tuple(path.stem for path in self._paths)
        height, width, _ = next(self._frames()).shape
        self.size = (height, width)
        for path in self._paths:
            with _opened(path) as image:
                # A PNG may carry its EXIF data after the pixels: asking for it would decode the whole picture.
                turned = image.format == "JPEG" and image.getexif().get(ExifTags.Base.Orientation, 1) in (5, 6, 7, 8)
                require_size(image.size if turned else image.size[::-1], self.size, str(path))

    def where(self, index: int) -> str:
        """The file of frame `index`."""
        return str(self._paths[index])

    def _frames(self) -> Iterator[Frame]:
        for path in self._paths:
            with _opened(path) as image:
                if image.mode not in _EIGHT_BIT_MODES:
                    raise VideoError(
                        f"{path}: a picture of mode {image.mode!r}, expected 8 bits per channel: save it as 8-bit RGB"
                    )
                frame = np.array(ImageOps.exif_transpose(image).convert("RGB"))
            yield frame


def _list_pictures(folder: Path) -> list[Path]:
    try:
        files = sorted(path for path in folder.iterdir() if not path.name.startswith(".") and path.is_file())
    except OSError as error:
        raise VideoError(f"{folder}: the folder cannot be listed ({error}), expected a readable folder") from error
    frames = [path for path in files if path.suffix.lower() in KINDS]
    if not frames:
        found = f"{len(files)} others such as {files[0].name}" if files else "nothing"
        raise VideoError(f"{folder}: no frames, expected .jpg, .jpeg or .png files, found {found}")
    kind = KINDS[frames[0].suffix.lower()]
    for path in files:
        other = KINDS.get(path.suffix.lower(), path.suffix)
        if other != kind and other.lower() in {"jpeg", "png", *_OTHER_PICTURES}:
            raise VideoError(f"{path}: a {other} picture among {kind} frames, expected one format in the folder")
    return frames


@contextmanager
def _opened(path: Path) -> Iterator[Image.Image]:
    try:
        with Image.open(path) as image:
            yield image
    except BROKEN_PICTURE as error:
        raise VideoError(f"{path}: the picture cannot be read ({error}), expected a whole JPEG or PNG file") from error

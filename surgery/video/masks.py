"""Label maps: one uint8 per pixel, 0 for the background and 1..255 for the objects, kept in palette PNG files."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image

from surgery.errors import PromptError, VideoError
from surgery.files import replacing
from surgery.video.folder import BROKEN_PICTURE

Labels = npt.NDArray[np.uint8]
Mask = npt.NDArray[np.bool_]
MAX_ID = 255

_SAVE_AS = "save it as an 8-bit palette or greyscale PNG whose pixel values are the object ids"


def davis_palette() -> list[int]:
    """Return the 256 colours of PASCAL VOC and DAVIS as 768 integers 0..255: r, g, b of label 0, then of label 1, ...

    The bits of a label, three at a time from the lowest, become bits of red, green and blue from the highest.
    """
    return [
        sum((label >> (3 * bit + channel) & 1) << (7 - bit) for bit in range(3))
        for label in range(256)
        for channel in range(3)
    ]


def write_label_png(path: str | os.PathLike[str], labels: Labels) -> None:
    """Write a label map as a palette PNG (mode "P", DAVIS colours), the format of the DAVIS benchmark.

    The file is there whole or not at all; one that was there is replaced when the new one is complete.

    Args:
        path: the file to write; its suffix is `.png`.
        labels: (height, width) uint8, 0 is the background.

    Raises:
        PromptError: not a (height, width) uint8 array.
        VideoError: another suffix, or a file that cannot be written.
    """
    path = Path(path)
    if labels.ndim != 2 or labels.dtype != np.uint8 or labels.size == 0:
        raise PromptError(f"{path}: {labels.dtype} of shape {labels.shape}, expected a (height, width) uint8 label map")
    if path.suffix.lower() != ".png":
        raise VideoError(f"{path}: cannot write labels as {path.suffix or 'a file without suffix'}, expected .png")
    image = Image.fromarray(np.ascontiguousarray(labels))
    image.putpalette(davis_palette())
    try:
        with replacing(path) as part:
            image.save(part, format="PNG")
    except OSError as error:
        raise VideoError(f"{path}: the labels cannot be written ({error}), expected a writable folder") from error


def read_label_png(path: str | os.PathLike[str]) -> Labels:
    """Read a label map: the palette indices, or the grey values, as (height, width) uint8.

    A black and white PNG of 1 bit per pixel reads as labels 0 and 1. Colours of the palette are not looked at.

    Raises:
        PromptError: missing, damaged, not a PNG, in colour without a palette, or not of 8 bits (1 bit is fine).
    """
    return read_with_mode(path)[0]


def read_with_mode(path: str | os.PathLike[str]) -> tuple[Labels, str]:
    """As `read_label_png`, and the Pillow mode of the file: `"P"`, `"L"` or `"1"`."""
    path = Path(path)
    try:
        if not path.is_file():
            raise PromptError(f"{path}: no such file, expected a label PNG")
        with Image.open(path) as image:
            if image.format != "PNG":
                raise PromptError(f"{path}: a {image.format} picture, whose values are not exact labels: {_SAVE_AS}")
            if image.mode.startswith("I"):
                raise PromptError(f"{path}: a 16-bit greyscale PNG, expected 8 bits per pixel (ids 1..255): {_SAVE_AS}")
            if image.mode not in ("P", "L", "1"):
                raise PromptError(f"{path}: a {image.mode} picture, colours are not object ids: {_SAVE_AS}")
            # Pillow stretches 2- and 4-bit greyscale to 0..255, which would turn label 1 into label 85 or 17.
            depth = path.read_bytes()[24]
            if image.mode == "L" and depth != 8:
                raise PromptError(f"{path}: a {depth}-bit greyscale PNG, expected 8 bits per pixel: {_SAVE_AS}")
            return np.array(image, dtype=np.uint8), image.mode
    except BROKEN_PICTURE as error:
        raise PromptError(f"{path}: the file cannot be read ({error}), expected a whole label PNG") from error


def labels_from_logits(logits: Mapping[int, npt.NDArray[np.floating]]) -> Labels:
    """Put the mask logits of several objects into one label map: the highest logit wins, if it is above 0.

    Args:
        logits: object id (1..255) -> (height, width) of floats, all of one size; equal ones go to the lower id.

    Returns:
        (height, width) uint8, 0 where no logit is above 0.

    Raises:
        PromptError: no logits, an id outside 1..255, logits that are not 2-D, of another size or NaN.
    """
    if not logits:
        raise PromptError("no logits, expected those of at least one object")
    shape = next(iter(logits.values())).shape
    labels, best = np.zeros(shape, np.uint8), np.zeros(shape, np.float32)
    for obj_id in sorted(logits):
        require_id(obj_id)
        values = logits[obj_id]
        if values.ndim != 2 or values.shape != shape or np.isnan(values).any():
            fault = "with NaN" if np.isnan(values).any() else f"of shape {values.shape}"
            raise PromptError(f"logits of object {obj_id} {fault}, expected (height, width) numbers all of one size")
        wins = values > best
        labels[wins] = obj_id
        best[wins] = values[wins]
    return labels


def require_id(obj_id: Any) -> None:
    """Raise `PromptError` unless `obj_id` is an integer 1..255 (what a label PNG can hold)."""
    if not isinstance(obj_id, (int, np.integer)) or isinstance(obj_id, bool) or not 1 <= obj_id <= MAX_ID:
        raise PromptError(f"object id {obj_id!r}, expected an integer 1..{MAX_ID} (0 is the background)")


def deepest_pixel(mask: Mask) -> tuple[int, int]:
    """(row, column) of a pixel left last when a bool [H, W] mask, not empty, is eroded from all sides."""
    while mask.any():
        inside, padded = mask, np.pad(mask, 1)
        mask = inside & padded[:-2, 1:-1] & padded[2:, 1:-1] & padded[1:-1, :-2] & padded[1:-1, 2:]
    row, column = np.argwhere(inside)[0]
    return int(row), int(column)

"""Ground-truth masks off the disk, with one error type: a `DatasetError` that names the file."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from surgery.errors import DatasetError, PromptError
from surgery.video.masks import Labels, Mask, read_with_mode

VOID = 255


def read_labels(path: Path, size: tuple[int, int]) -> Labels:
    """Read a label map, uint8 [H, W]: 0 background, object ids above it.

    In a palette PNG 255 is void and becomes background (DAVIS 2017); a greyscale PNG of 0 and 255 is one object, id 1.

    Args:
        path: an 8-bit palette or greyscale PNG. size: (height, width) of the video.

    Raises:
        DatasetError: no such file, damaged, in colour without a palette, 16 bits, another size, or a greyscale
            picture with 255 and other values, whose meaning is not clear.
    """
    labels, mode = _read(path, size)
    void = labels == VOID
    if mode == "L" and void.any():
        others = np.setdiff1d(np.unique(labels), [0, VOID])
        if len(others):
            raise DatasetError(
                f"{path}: a greyscale mask with 255 and {len(others)} other values above 0, expected 0 and 255 (one "
                "object) or object ids below 255: save it as a palette PNG, where 255 is void"
            )
        return (labels > 0).astype(np.uint8)
    return np.where(void, 0, labels).astype(np.uint8)


def read_binary(path: Path, size: tuple[int, int]) -> Mask:
    """Read the mask of one object, bool [H, W]: everything above 0. Errors as in `read_labels`, and two ids in it."""
    labels = _read(path, size)[0]
    values = np.unique(labels[labels > 0])
    if len(values) > 1:
        raise DatasetError(
            f"{path}: {len(values)} different values above 0, expected the mask of a single object (one value)"
        )
    return labels > 0


def _read(path: Path, size: tuple[int, int]) -> tuple[Labels, str]:
    try:
        labels, mode = read_with_mode(path)
    except PromptError as error:
        raise DatasetError(str(error)) from error
    if labels.shape != size:
        raise DatasetError(
            f"{path}: {labels.shape[0]}x{labels.shape[1]} pixels (height x width), expected {size[0]}x{size[1]} as the "
            "frames of the sequence"
        )
    return labels, mode

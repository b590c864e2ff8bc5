"""J and F of DAVIS (Perazzi et al., CVPR 2016), for one object on one frame.

J is the intersection over union. F is the harmonic mean of boundary precision and recall, a boundary pixel counting as
found when the other mask has one within `tolerance` of the image diagonal (0.8 %). Two empty masks score 1 in both.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from surgery.errors import VideoError
from surgery.video.masks import Mask

TOLERANCE = 0.008


def region_j(guess: Mask, truth: Mask) -> float:
    """Intersection over union of two bool [H, W] masks; 1 when both are empty. Raises VideoError on other shapes."""
    _same_shape(guess, truth)
    union = int(np.count_nonzero(guess | truth))
    return int(np.count_nonzero(guess & truth)) / union if union else 1.0


def boundary_f(guess: Mask, truth: Mask, tolerance: float = TOLERANCE) -> float:
    """Boundary F of two bool [H, W] masks, in [0, 1].

    Args:
        guess, truth: the masks.
        tolerance: share of the image diagonal, rounded up to whole pixels; a value of 1 or more is in pixels.

    Raises:
        VideoError: the shapes differ.
    """
    _same_shape(guess, truth)
    radius = int(tolerance) if tolerance >= 1 else math.ceil(tolerance * math.hypot(*guess.shape))
    mine, theirs = _crop(boundary(guess), boundary(truth), radius)
    found, wanted = int(mine.sum()), int(theirs.sum())
    if not found and not wanted:
        return 1.0
    if not found or not wanted:
        return 0.0
    precision = int((mine & _dilate(theirs, radius)).sum()) / found
    recall = int((theirs & _dilate(mine, radius)).sum()) / wanted
    return 2 * precision * recall / (precision + recall) if precision + recall else 0.0


def j_and_f(guess: Mask, truth: Mask) -> float:
    """Mean of both."""
    return (region_j(guess, truth) + boundary_f(guess, truth)) / 2


def boundary(mask: Mask) -> Mask:
    """One-pixel boundary: pixels that differ from their right, lower or lower-right neighbour (DAVIS `seg2bmap`)."""
    padded = np.pad(mask, ((0, 1), (0, 1)), mode="edge")
    here, right, down, across = padded[:-1, :-1], padded[:-1, 1:], padded[1:, :-1], padded[1:, 1:]
    edge = (here ^ right) | (here ^ down) | (here ^ across)
    edge[-1, -1] = False
    return edge


def statistics(values: Sequence[float]) -> tuple[float, float, float]:
    """Mean, recall and decay of an object's J or F over its frames (Perazzi et al., CVPR 2016, section 5.2).

    Recall: share of frames above 0.5. Decay: mean over the first quarter of the frames minus mean over the last;
    neighbouring quarters share their border frame, as in `db_statistics` of davis2017-evaluation.

    Raises:
        VideoError: no value.
    """
    array = np.asarray(values, dtype=np.float64)
    if not len(array):
        raise VideoError("no frame to take the statistics of, expected at least one J or F value")
    borders = (np.round(np.linspace(1, len(array), 5) + 1e-10) - 1).astype(np.int64)
    first, last = array[borders[0] : borders[1] + 1], array[borders[3] : borders[4] + 1]
    return float(array.mean()), float((array > 0.5).mean()), float(first.mean() - last.mean())


def _crop(one: Mask, other: Mask, margin: int) -> tuple[Mask, Mask]:
    """Both maps cut to their common bounding box and a margin: nothing outside can match."""
    both = one | other
    rows, columns = np.flatnonzero(both.any(1)), np.flatnonzero(both.any(0))
    if not len(rows):
        return one, other
    box = (
        slice(max(0, rows[0] - margin), rows[-1] + margin + 1),
        slice(max(0, columns[0] - margin), columns[-1] + margin + 1),
    )
    return one[box], other[box]


def _dilate(edge: Mask, radius: int) -> Mask:
    """Dilation by a disk: every offset with dx^2 + dy^2 <= radius^2."""
    height, width = edge.shape
    padded = np.pad(edge, radius)
    out = np.zeros_like(edge)
    for dy in range(-radius, radius + 1):
        reach = math.isqrt(radius * radius - dy * dy)
        rows = padded[radius + dy : radius + dy + height]
        sums = np.cumsum(np.pad(rows, ((0, 0), (1, 0))), axis=1, dtype=np.int32)
        start = radius - reach
        out |= (sums[:, start + 2 * reach + 1 : start + 2 * reach + 1 + width] - sums[:, start : start + width]) > 0
    return out


def _same_shape(guess: Mask, truth: Mask) -> None:
    if guess.shape != truth.shape or guess.ndim != 2:
        raise VideoError(f"masks of {guess.shape} and {truth.shape}: expected two of the same height and width")

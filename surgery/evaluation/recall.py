"""How much of what is in a picture a set of masks finds: mask AR@K, as COCO and LVIS count it."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

Masks = npt.NDArray[np.bool_]
THRESHOLDS = tuple(0.5 + 0.05 * step for step in range(10))
KS = (10, 100, 320)


def mask_ious(found: Masks, truth: Masks) -> npt.NDArray[np.float64]:
    """IoU of masks [n, H, W] with [m, H, W]: [n, m]; 0 where both are empty."""
    one, other = (each.reshape(len(each), math.prod(each.shape[1:])).astype(np.float32) for each in (found, truth))
    both = (one @ other.T).astype(np.float64)
    union = one.sum(1, dtype=np.float64)[:, None] + other.sum(1, dtype=np.float64) - both
    return np.where(union > 0, both / np.maximum(union, 1), 0.0)


def recall(ious: npt.NDArray[np.float64], threshold: float) -> float:
    """Share of the truth [n, m] that is found, each mask counted for one object at most, the best masks first."""
    free = np.ones(ious.shape[1], dtype=bool)
    for row in ious:
        left = np.where(free, row, -1.0)
        best = int(left.argmax())
        if left[best] >= threshold - 1e-9:
            free[best] = False
    return float(1 - free.mean())


def average_recall(found: Masks, truth: Masks, most: int | None = None) -> float:
    """Mean recall over IoU 0.5 to 0.95.

    Args:
        found: [n, H, W], best first. truth: [m, H, W], m at least 1.
        most: only so many of the best.
    """
    if not len(truth):
        raise ValueError("average recall of no object")
    ious = mask_ious(found[:most], truth)
    return float(np.mean([recall(ious, threshold) for threshold in THRESHOLDS]))


def average_recalls(found: Masks, truth: Masks, ks: Sequence[int] = KS) -> dict[str, float]:
    """`average_recall` at several numbers of masks, by "ar@K"."""
    return {f"ar@{most}": average_recall(found, truth, most) for most in ks}

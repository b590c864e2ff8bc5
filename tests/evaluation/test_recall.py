"""Mask AR@K against numbers worked out by hand."""

from __future__ import annotations

import numpy as np
import pytest

from surgery.evaluation.recall import average_recall, average_recalls, mask_ious, recall


def masks(*columns: tuple[int, int]) -> np.ndarray:
    """Masks of a picture [1, 100]: columns from, to."""
    found = np.zeros((len(columns), 1, 100), dtype=bool)
    for mask, (first, last) in zip(found, columns, strict=True):
        mask[0, first:last] = True
    return found


def test_ious() -> None:
    found = mask_ious(masks((0, 10), (0, 0)), masks((0, 10), (5, 15), (0, 0)))
    assert found == pytest.approx(np.array([[1, 5 / 15, 0], [0, 0, 0]]))


def test_a_mask_counts_for_one_object() -> None:
    truth = masks((0, 10), (0, 12))
    assert recall(mask_ious(masks((0, 11)), truth), 0.5) == 0.5
    assert recall(mask_ious(masks((0, 11), (0, 11)), truth), 0.5) == 1.0


def test_average_over_thresholds_and_the_best_k() -> None:
    truth = masks((0, 20), (50, 70))
    found = masks((90, 99), (0, 20), (50, 65))  # nothing, IoU 1, IoU 0.75
    assert average_recall(found, truth) == pytest.approx((1 + 0.6) / 2)
    assert average_recalls(found, truth, (1, 2, 3)) == pytest.approx({"ar@1": 0.0, "ar@2": 0.5, "ar@3": 0.8})
    assert average_recall(found[:0], truth) == 0.0
    with pytest.raises(ValueError, match="no object"):
        average_recall(found, truth[:0])

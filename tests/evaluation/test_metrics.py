"""J and F on hand-computed cases and against a brute-force boundary match."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from surgery import VideoError
from surgery.evaluation import boundary, boundary_f, region_j


def box(top: int, left: int, bottom: int, right: int, size: int = 20) -> np.ndarray:
    mask = np.zeros((size, size), dtype=bool)
    mask[top:bottom, left:right] = True
    return mask


def test_hand_computed_cases() -> None:
    assert region_j(box(0, 0, 4, 4), box(0, 2, 4, 6)) == 8 / 24
    empty, full = box(0, 0, 0, 0), box(2, 2, 9, 9)
    assert (region_j(empty, empty), boundary_f(empty, empty)) == (1.0, 1.0)
    assert (region_j(full, empty), boundary_f(full, empty)) == (0.0, 0.0)
    assert (region_j(full, full), boundary_f(full, full)) == (1.0, 1.0)
    assert boundary_f(box(0, 0, 3, 3), box(15, 15, 18, 18), 1) == 0.0
    assert boundary_f(box(5, 5, 10, 10), box(5, 6, 10, 11), 1) == 1.0


def test_boundary_of_a_box_is_one_pixel_wide() -> None:
    edge = boundary(box(5, 5, 8, 8))
    expected = np.zeros((20, 20), dtype=bool)
    expected[4:8, 4:8] = True
    expected[5:7, 5:7] = False
    assert (edge == expected).all()


def test_shapes_must_agree() -> None:
    with pytest.raises(VideoError, match="same height and width"):
        region_j(np.zeros((3, 4), bool), np.zeros((4, 3), bool))


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 2**32 - 1), st.integers(1, 4))
def test_f_equals_brute_force(seed: int, radius: int) -> None:
    random = np.random.default_rng(seed)
    guess, truth = (random.random((2, 12, 15)) < 0.4).astype(bool)
    mine, theirs = np.argwhere(boundary(guess)), np.argwhere(boundary(truth))

    def matched(points: np.ndarray, others: np.ndarray) -> float:
        near = [min(math.dist(point, other) for other in others) <= radius for point in points]
        return sum(near) / len(near)

    precision, recall = matched(mine, theirs), matched(theirs, mine)
    expected = 2 * precision * recall / (precision + recall) if precision + recall else 0.0
    assert boundary_f(guess, truth, radius) == pytest.approx(expected, abs=1e-12)

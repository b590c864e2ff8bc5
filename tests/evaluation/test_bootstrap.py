"""Intervals of a mean over clips."""

from __future__ import annotations

import statistics

import pytest

from surgery.evaluation.bootstrap import mean_interval


@pytest.mark.parametrize("values", [[0.1] * 3, [0.81] * 6, [0.825] * 6, [0.01, 0.02, 0.05]])
def test_the_mean_lies_in_its_own_interval(values: list[float]) -> None:
    found = mean_interval(values)
    assert found is not None and found[0] <= statistics.fmean(values) <= found[1]


def test_one_clip_has_no_interval() -> None:
    assert mean_interval([0.5]) is None

"""How sure a mean over clips is: the percentile bootstrap."""

from __future__ import annotations

import statistics
from collections.abc import Sequence

import numpy as np

_DRAWS, _BATCH = 10_000, 500


def mean_interval(values: Sequence[float], confidence: float = 0.95, seed: int = 0) -> tuple[float, float] | None:
    """Percentile bootstrap interval of the mean of `values`, one value per clip; None for a single one, which says
    nothing of how much clips differ.

    Args:
        values: at least one.
        confidence: share of the resampled means inside, in (0, 1).
        seed: of the resamples; same seed, same interval.

    Raises:
        ValueError: no value, or one that is not finite.
    """
    array = np.asarray(values, dtype=np.float64)
    if array.ndim != 1 or not len(array) or not np.isfinite(array).all():
        raise ValueError(f"expected a non-empty list of finite numbers, got {list(values)!r:.80}")
    if len(array) == 1:
        return None
    generator = np.random.default_rng(seed)
    draws = (generator.integers(0, len(array), (_BATCH, len(array))) for _ in range(_DRAWS // _BATCH))
    means = np.concatenate([array[each].mean(1) for each in draws])
    tail = (1 - confidence) / 2
    low, high = np.quantile(means, [tail, 1 - tail])
    # Of equal values, rounding would leave the mean outside.
    mean = statistics.fmean(values)
    return min(float(low), mean), max(float(high), mean)

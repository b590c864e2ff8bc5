"""From measured series to the figures of a row."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

_DRAWS = 2000


def latency(ms: Sequence[float]) -> dict[str, float]:
    """Median, mean, p95 and p99 of per-frame milliseconds, and frames per second at the mean."""
    mean = float(np.mean(ms))
    return {
        "median": float(np.median(ms)),
        "mean": mean,
        "p95": float(np.quantile(ms, 0.95)),
        "p99": float(np.quantile(ms, 0.99)),
        "fps": 1000 / mean,
    }


def speedup(*clips: tuple[Sequence[float], Sequence[float]]) -> tuple[float, tuple[float, float] | None]:
    """How many times as fast: the median frame time of the stock model / that of the sparse one. Every speed-up that
    this library states is this one.

    Both models run in one process and take every frame in turn, so that what else the machine does meets both. All
    tracked frames count, those that routing computes in full as well.

    Args:
        clips: per clip the times of its frames, (stock, sparse), any unit; the n-th of both are of the same frame.

    Returns:
        The ratio over the frames of all clips, and its 95 % bootstrap interval: clips are drawn anew where there are
        several, else pairs of frames. None for an interval when there is but one pair.

    Raises:
        ValueError: no frame, two models with other numbers of frames, or times that are not above zero.
    """
    pairs = [np.asarray(list(zip(*clip, strict=True)), dtype=np.float64).reshape(-1, 2) for clip in clips]
    pairs = [each for each in pairs if len(each)]
    if not pairs or not all((each > 0).all() for each in pairs):
        raise ValueError(f"expected times above zero of at least one frame, got {clips!r:.80}")
    units = pairs if len(pairs) > 1 else np.split(pairs[0], len(pairs[0]))
    if len(units) == 1:
        return _ratio(pairs), None
    generator = np.random.default_rng(0)
    drawn = [_ratio([units[at] for at in generator.integers(0, len(units), len(units))]) for _ in range(_DRAWS)]
    low, high = np.quantile(drawn, [0.025, 0.975])
    return _ratio(pairs), (float(low), float(high))


def _ratio(pairs: Sequence[npt.NDArray[np.float64]]) -> float:
    stock, sparse = np.median(np.concatenate(pairs), axis=0)
    return float(stock / sparse)


def module_rows(
    names: Sequence[str], tables: dict[str, tuple[dict[str, float], dict[str, float]]]
) -> list[dict[str, Any]]:
    """One row per part of a frame, means per frame; parts that neither model runs are left out.

    Args:
        names: parts in the order of a frame. tables: "ms" and "gflop": (dense, sparse) totals per frame by part.
    """
    rows: list[dict[str, Any]] = [
        {"name": name} | {
            f"{model}_{unit}": max(0.0, tables[unit][which].get(name, 0.0))
            for which, model in enumerate(("dense", "sparse")) for unit in ("ms", "gflop")
        }
        for name in names
    ]  # fmt: skip
    return [row for row in rows if row["dense_ms"] > 0 or row["sparse_ms"] > 0]

"""Which windows the next frame needs (Efficient-SAM2, arXiv 2602.08224, section 3.2).

Pure functions of tensors: evidence of the previous frame in, window ids out.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from surgery.core.evidence import union, widened
from surgery.core.windows import WindowGrid, longest_waiting


def mask_windows(masks: Sequence[Tensor], grid: WindowGrid, dilation: int) -> Tensor:
    """Windows touched by any object.

    Args:
        masks: one bool [h, w] low-resolution mask per object (the union of its candidates).
        grid: the window geometry.
        dilation: odd max-pool kernel in mask pixels; 1 means none.

    Returns:
        bool [grid.count], on the device of the masks.
    """
    return grid.cells(widened(union(masks), dilation))


def salient_windows(saliency: Tensor, grid: WindowGrid, mass: float) -> Tensor:
    """Windows that hold the attention: per map the shortest prefix, by falling sum, that reaches `mass`.

    Args:
        saliency: [n, height * width] prompt-to-image attention, one row per object, each summing to about 1.
        grid: the window geometry.
        mass: share in (0, 1]; the window that crosses it is included, and if it is never reached all are.

    Returns:
        bool [grid.count], the union over the rows.
    """
    sums = grid.mass(saliency)
    value, order = sums.sort(dim=-1, descending=True, stable=True)
    needed = (value.cumsum(-1) < mass).sum(-1, keepdim=True) + 1
    taken = torch.arange(grid.count, device=sums.device) < needed
    return torch.zeros_like(taken.expand_as(sums)).scatter(-1, order, taken.expand_as(sums)).any(0)


def thumbnail(pixels: Tensor, size: int = 32) -> Tensor:
    """Normalised pixels [1, 3, S, S] -> fp32 [3, size, size] block means, for the scene-cut test."""
    return F.adaptive_avg_pool2d(pixels.to(torch.float32), size)[0]


def scene_change(current: Tensor, previous: Tensor) -> Tensor:
    """Mean absolute change of two thumbnails, in standard deviations of the normalised pixels; 0-d tensor."""
    return (current - previous).abs().mean()


def window_changes(current: Tensor, seen: Tensor, grid: WindowGrid) -> Tensor:
    """How much the picture of each window differs from the one it was last computed on.

    Args:
        current, seen: fp32 [3, height, width] block means of the normalised pixels, one per token.
        grid: the window geometry.

    Returns:
        fp32 [grid.count], mean absolute change over a window's real tokens, in standard deviations of the pixels.
    """
    return grid.means((current - seen).abs().mean(0))


AGE_WEIGHT = 0.02
"""Change, in standard deviations, that one frame of waiting is worth, so that still windows are renewed as well."""
FEW = 10
"""Below so many windows budgets are rounded up."""
SIZES = 3
"""How many sizes a frame within a budget may have before it is dense."""


def urgencies(taken: Sequence[bool], changes: Sequence[float], ages: Sequence[int], background: float) -> list[float]:
    """How much each window wants to be computed.

    Args:
        taken: whether the router wants the window (an object is there). changes: see `window_changes`.
        ages: frames since each window was computed. background: weight of the others.
    """
    return [
        (1.0 if wanted else background) * (change + AGE_WEIGHT * (age + 1))
        for wanted, change, age in zip(taken, changes, ages, strict=True)
    ]


def most_urgent(urgency: Sequence[float], count: int, certain: Sequence[int] = ()) -> list[int]:
    """Ids of `count` windows, rising: the `certain` ones, then the most urgent; ties go to the lower id."""
    first = set(certain)
    order = sorted(range(len(urgency)), key=lambda window: (window not in first, -urgency[window], window))
    return sorted(order[:count])


def budgeted(budget: float, count: int) -> int:
    """How many of `count` windows a budget is: the nearest number; where there are few, from a quarter of a window on
    the next, since of large windows an object lies in a larger share."""
    share = budget * count
    return max(1, math.floor(share + 0.75) if count < FEW else round(share))


def sizes(count: int, budget: float) -> list[int]:
    """How many of `count` windows a frame within a budget may compute: the budget, and evenly on towards all."""
    least = budgeted(budget, count)
    return sorted({least + (count - least) * step // SIZES for step in range(SIZES)})


def must_run(
    touched: Sequence[bool], ages: Sequence[int], urgency: Sequence[float], most: int, max_wait: int
) -> list[int]:
    """Windows of objects that a frame must compute so that none ever waits longer than `max_wait` frames.

    Those that are due now, and as many of the others as would otherwise not fit into later frames of `most` windows;
    the longest waiting first.
    """

    def left(window: int) -> int:
        return max(0, max_wait - ages[window])

    mine = sorted((each for each, here in enumerate(touched) if here), key=lambda each: (left(each), -urgency[each]))
    needed = max(sum(left(each) <= later for each in mine) - later * most for later in range(max_wait + 1))
    return mine[: max(0, needed)]


def allot(
    taken: Sequence[bool], ages: Sequence[int], rolling: int = 0, round_to: int = 1, fill: bool = False
) -> list[int]:
    """Ids of the windows to compute without a budget: the wanted ones and those that waited longest, at least one.

    Args:
        taken: whether the router wants the window. ages: frames since each window was computed.
        rolling: windows added to the wanted ones. round_to: the count is rounded up to a multiple of this.
        fill: compute all.
    """
    if fill:
        return list(range(len(taken)))
    waiting = longest_waiting(ages, taken, wanted_count(taken, rolling, round_to) - sum(taken))
    return sorted([*(window for window, wanted in enumerate(taken) if wanted), *waiting])


def wanted_count(taken: Sequence[bool], rolling: int, round_to: int) -> int:
    """How many windows are wanted, at least one."""
    return max(1, -(-(sum(taken) + rolling) // round_to) * round_to)


def within_budget(
    taken: Sequence[bool], touched: Sequence[bool], ages: Sequence[int], changes: Sequence[float], *, budget: float,
    rolling: int = 0, round_to: int = 1, fill: bool = False, max_wait: int | None = None, background: float = 0.5,
    unsure: bool = False,
) -> tuple[list[int], str | None]:  # fmt: skip
    """Ids of the windows to compute within a budget, and why there are more than it allows.

    Args:
        taken: whether the router wants the window. touched: whether an object's mask is there.
        ages: frames since each window was computed. changes: see `window_changes`.
        budget: largest share of all windows, unless windows of objects would wait longer than `max_wait` frames: then
            the next of `sizes`, or all. fill: use it up. rolling, round_to: see `allot`. background: see `urgencies`.
        unsure: whether a mask is: then the frame has the next of `sizes` at least.
    """
    allowed = sizes(len(taken), budget)
    least = allowed[1] if unsure and len(allowed) > 1 else allowed[0]
    urgency = urgencies(taken, changes, ages, background)
    count = least if fill else min(wanted_count(taken, rolling, round_to), least)
    # As on a sure frame: the frames to come may be sure, and have the budget only.
    certain = [] if max_wait is None else must_run(touched, ages, urgency, allowed[0], max_wait)
    reason = "unsure mask" if unsure else None
    if len(certain) > least:
        count, reason = next((size for size in allowed if size >= len(certain)), len(taken)), "large object"
    return most_urgent(urgency, max(count, len(certain)), certain), reason

"""Which windows the next frame needs (Efficient-SAM2, arXiv 2602.08224, section 3.2).

Pure functions of tensors: evidence of the previous frame in, window ids out.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from surgery.core.evidence import dilated
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
    union = masks[0]
    for mask in masks[1:]:
        union = union | mask
    return grid.cells(dilated(union, dilation))


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
    change = (current - seen).abs().mean(0)
    both = grid.mass(torch.stack([change, torch.ones_like(change)]).flatten(1))
    return both[0] / both[1]


BACKGROUND_WEIGHT = 0.5
"""What a window's change counts for when no object is in it: background matters through attention only."""
AGE_WEIGHT = 0.02
"""Change, in standard deviations, that one frame of waiting is worth, so that still windows are renewed as well."""


def most_urgent(taken: Sequence[bool], changes: Sequence[float], ages: Sequence[int], count: int) -> list[int]:
    """Ids of the `count` windows to compute when not all that are wanted may be; ties go to the lower id.

    Args:
        taken: whether the router wants the window (an object is there). changes: see `window_changes`.
        ages: frames since each window was computed. count: how many to choose, at least 1.
    """
    urgency = [
        (1.0 if wanted else BACKGROUND_WEIGHT) * (change + AGE_WEIGHT * (age + 1))
        for wanted, change, age in zip(taken, changes, ages, strict=True)
    ]
    return sorted(sorted(range(len(urgency)), key=lambda window: (-urgency[window], window))[:count])


def allot(
    taken: Sequence[bool], ages: Sequence[int], changes: Sequence[float] | None, rolling: int = 0, round_to: int = 1,
    budget: float = 1.0, fill: bool = False,
) -> list[int]:  # fmt: skip
    """Ids of the windows to compute: the wanted and the rolling ones, at least one, rounded up, within the budget.

    Args:
        taken: whether the router wants the window. ages: frames since each window was computed.
        changes: see `window_changes`; None without a budget, where windows that waited longest fill up.
        rolling: windows added to the wanted ones. round_to: the count is rounded up to a multiple of this.
        budget: largest share of all windows. fill: use it up.
    """
    wanted = max(1, -(-(sum(taken) + rolling) // round_to) * round_to)
    if changes is not None:
        most = max(1, round(budget * len(taken)))
        return most_urgent(taken, changes, ages, most if fill else min(wanted, most))
    if fill:
        return list(range(len(taken)))
    chosen = list(taken)
    for window in longest_waiting(ages, taken, wanted - sum(taken)):
        chosen[window] = True
    return [window for window, is_chosen in enumerate(chosen) if is_chosen]

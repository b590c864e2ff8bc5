"""What a host keeps of a video and will not read again, given back: the part that both hosts share."""

from __future__ import annotations

from collections.abc import MutableMapping
from typing import Any

import torch
from torch import Tensor

from surgery.errors import RecipeError
from surgery.hosts.base import HostView
from surgery.recipe import Recipe

_BLANK = torch.empty(0)


def check_caches(view: HostView, recipe: Recipe) -> None:
    """Raises RecipeError when frames would be dropped that the model reads again."""
    frames = recipe.caches.frames if recipe.caches is not None else None
    if frames is not None and frames < view.reach():
        raise RecipeError(
            f"trim_caches: frames {frames}: this model reads up to {view.reach()} frames back; expected {view.reach()} "
            "or more, or null to keep all"
        )


def drop_far(frames: MutableMapping[int, Any], frame: int, keep: int) -> None:
    """Remove what lies more than `keep` frames before or after `frame`; what stays is at most 2 * keep + 1 entries."""
    for far in [number for number in frames if abs(number - frame) > keep]:
        del frames[far]


def blank_images(images: MutableMapping[int, Tensor], frame: int, keep: int, reverse: bool) -> None:
    """Empty the images more than `keep` frames behind `frame`, up to the first that is empty or missing.

    One empty tensor takes the place of all, because `transformers` numbers a stream's next frame by how many it holds.
    """
    step = 1 if reverse else -1
    behind = frame + step * (keep + 1)
    while behind in images and images[behind].numel():
        images[behind] = _BLANK
        behind += step


def one_copy(positions: Tensor, kept: Tensor | None) -> Tensor:
    """The position code to store for a memory frame: the one `kept` where it is the same code, else `positions`.

    It depends on shape, type and device alone.
    """
    if kept is None or (kept.shape, kept.dtype, kept.device) != (positions.shape, positions.dtype, positions.device):
        return positions.clone()
    return kept

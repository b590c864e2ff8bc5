"""Which tokens of a tracked memory frame stand for the others: an even sample of the object and one of the rest.

A query reads an object by its tokens among all others. Where the tokens that mattered are kept and the rest goes, the
object is nearly all that is left, and what looks a little like it reads mostly it: a look-alike takes over. So what is
left of the rest weighs as much as the rest did, by the logarithm of how many tokens each stands for, added to its
logits. Nothing is measured for it.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from surgery.core.constants import constant, steps
from surgery.operations.memory_retrieval.bank import Kept
from surgery.operations.memory_retrieval.saliency import kept_count, on_object

OBJECT_SHARE = 0.6
"""Of the tokens that are kept, at most so many are the object's."""
_STEPS = (0.7548776662466927, 0.5698402909980532)
"""Of the sequence R2 (Roberts 2018), whose points fill a square evenly however many they are."""


def sampled(mask: Tensor | None, tokens: int, keep: float, frame: int, device: torch.device) -> Kept:
    """A sample of a memory frame: of as many tokens as `keep` says, the same in all layers.

    Args:
        mask: of the object on that frame, bool [h, w]; None: it is not known, and all tokens are alike.
        tokens: T, of a square map. keep: share of them to keep. frame: its number; frames in a row keep tokens
            between one another's.

    Returns:
        Tokens int64 [1, k], rising, and bias fp32 [k]. No length depends on the mask: nobody waits for a device.
    """
    count = kept_count(tokens, keep)
    order = _order(tokens, device).roll(-(frame * count) % tokens)
    if mask is None:
        chosen = order[:count].sort().values
        return Kept(chosen[None], torch.full((count,), math.log(tokens / count), device=device))
    its = on_object(mask, tokens, device)
    inside = its.index_select(0, order)
    first = inside & (inside.cumsum(0) <= int(OBJECT_SHARE * count))
    # The object's first, then the rest, then what is left of the object; each in order.
    rank = 2.0 * first + ~inside - steps(tokens, device) / tokens
    chosen = order.index_select(0, rank.topk(count, sorted=False).indices).sort().values
    mine = its.index_select(0, chosen)
    own, all_own = mine.sum(), its.sum()
    stands = torch.stack([(tokens - all_own) / (count - own).clamp(min=1), all_own / own.clamp(min=1)])
    return Kept(chosen[None], stands.clamp(min=1).log().index_select(0, mine.long()))


def _order(tokens: int, device: torch.device) -> Tensor:
    """Tokens of a square map, every stretch of which is spread over all of it: int64 [T]."""

    def make() -> Tensor:
        side = math.isqrt(tokens)
        line = torch.arange(side, dtype=torch.float64)
        return ((line[:, None] * _STEPS[1] + line * _STEPS[0]) % 1.0).flatten().argsort(stable=True)

    return constant(("even order", tokens), device, make)

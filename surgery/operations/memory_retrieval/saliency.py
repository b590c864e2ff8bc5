"""Which tokens of a memory frame mattered when it was first read (Efficient-SAM2, arXiv 2602.08224, section 3.3)."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from surgery.core.constants import constant
from surgery.core.evidence import mask_tokens

_ROWS = 512
NEAR = 16
"""A token is on the object as far beside its mask as the map's side over this."""
OBJECT_WEIGHT = 3.0
"""What a query on the object counts. From 2 to 20 the error of attention on the object, synthetic or real, changes by a
tenth at most; what the background reads is better with less."""


def memory_saliency(query: Tensor, key: Tensor, stride: int = 1, weights: Tensor | None = None) -> Tensor:
    """How much attention each token of one memory frame receives, softmax over that frame's tokens alone.

    Args:
        query: [heads, N, d] rotated queries of the current frame.
        key: [heads, T, d] rotated keys of the memory frame.
        stride: only every `stride`-th query is asked; 1 is the published measure.
        weights: None: the mean over queries, as published. Else fp32 [N], positive: the largest that one gives, times
            its weight.

    Returns:
        fp32 [T], sums to 1. The [N, T] logits are never held at once: query rows go through in chunks.
    """
    query = query[:, ::stride] * query.shape[-1] ** -0.5
    keys = key.transpose(-1, -2)
    # As many chunks as the whole grid would need, whatever the queries: a compiled graph has a fixed number of them.
    count = query.shape[1]
    chunks = min(-(-key.shape[-2] // (_ROWS * stride)), count)
    rows = count // chunks
    asked = None if weights is None else weights[::stride, None]
    parts = []
    for chunk in range(chunks):
        some = slice(chunk * rows, count if chunk == chunks - 1 else (chunk + 1) * rows)
        given = (query[:, some] @ keys).softmax(-1, dtype=torch.float32)
        parts.append(given.sum((0, 1)) if asked is None else (given * asked[some]).amax((0, 1)))
    if asked is None:
        return torch.stack(parts).sum(0) / (query.shape[0] * count)
    largest = torch.stack(parts).amax(0)
    return largest / largest.sum()


def asked_by(mask: Tensor | None, tokens: int, device: torch.device) -> Tensor:
    """Weights of the queries for `memory_saliency`: fp32 [T].

    Args:
        mask: of the object on the frame before, bool [h, w]; None: nothing is known of it, every query counts 1.
        tokens: T, of a square map.
    """
    if mask is None:
        return constant(("ones", tokens), device, lambda: torch.ones(tokens))
    return torch.where(on_object(mask, tokens, device), OBJECT_WEIGHT, 1.0)


def on_object(mask: Tensor, tokens: int, device: torch.device) -> Tensor:
    """Tokens of a square map on or beside a bool [h, w] mask: bool [T]."""
    side = math.isqrt(tokens)
    return mask_tokens(mask.to(device), side, side, max(1, side // NEAR))


def kept_count(tokens: int, keep: float) -> int:
    """Tokens kept of a pruned frame: the published rounding, `int(keep * tokens)`, at least 1 (204 of 4096 at 5 %)."""
    return max(1, min(tokens, int(keep * tokens + 1e-9)))


def top_tokens(saliency: Tensor, keep: float) -> Tensor:
    """Sorted int64 indices of the most salient tokens: [T] -> [kept_count(T, keep)]."""
    return saliency.topk(kept_count(saliency.shape[-1], keep), sorted=False).indices.sort().values

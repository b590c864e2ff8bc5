"""Which tokens of a memory frame mattered when it was first read (Efficient-SAM2, arXiv 2602.08224, section 3.3)."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

_ROWS = 512


def memory_saliency(query: Tensor, key: Tensor, stride: int = 1, weights: Tensor | None = None) -> Tensor:
    """Mean attention each token of one memory frame receives, softmax over that frame's tokens alone.

    Args:
        query: [heads, N, d] rotated queries of the current frame.
        key: [heads, T, d] rotated keys of the memory frame.
        stride: only every `stride`-th query is averaged; 1 is the published measure.
        weights: fp32 [N], positive, of the queries in the mean; None: all alike, as published.

    Returns:
        fp32 [T], sums to 1. The [N, T] logits are never held at once: query rows go through in chunks.
    """
    query = query[:, ::stride] * query.shape[-1] ** -0.5
    keys = key.transpose(-1, -2)
    # As many chunks as the whole grid would need, whatever the queries: a compiled graph has a fixed number of them.
    chunks = -(-key.shape[-2] // (_ROWS * stride))
    rows = -(-query.shape[1] // chunks)
    if weights is not None:
        weights = weights[::stride, None]
    total: Tensor | None = None
    for chunk in range(chunks):
        some = slice(chunk * rows, (chunk + 1) * rows)
        part = (query[:, some] @ keys).softmax(-1, dtype=torch.float32)
        part = (part if weights is None else part * weights[some]).sum((0, 1))
        total = part if total is None else total + part
    assert total is not None
    return total / (query.shape[0] * (query.shape[1] if weights is None else weights.sum()))


def near(mask: Tensor, side: int) -> Tensor:
    """Tokens of a map of `side` that a bool [h, w] mask touches or lies a sixteenth of it beside: fp32 [T], 0 or 1."""
    there = F.adaptive_max_pool2d(mask.to(torch.float32)[None], side)
    reach = max(1, side // 16)
    return F.max_pool2d(there, 2 * reach + 1, 1, reach).flatten()


def kept_count(tokens: int, keep: float) -> int:
    """Tokens kept of a pruned frame: the published rounding, `int(keep * tokens)`, at least 1 (204 of 4096 at 5 %)."""
    return max(1, min(tokens, int(keep * tokens + 1e-9)))


def top_tokens(saliency: Tensor, keep: float) -> Tensor:
    """Sorted int64 indices of the most salient tokens: [T] -> [kept_count(T, keep)]."""
    return saliency.topk(kept_count(saliency.shape[-1], keep), sorted=False).indices.sort().values

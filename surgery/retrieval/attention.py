"""Cross-attention over a subset of memory rows, with positions by explicit index."""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from surgery.retrieval.bank import KeyPlan
from surgery.retrieval.saliency import memory_saliency, top_tokens


class Projections(NamedTuple):
    """The projections of one attention module, whatever the host calls them."""

    query: nn.Module
    key: nn.Module
    value: nn.Module
    output: nn.Module
    heads: int


def rotate(tokens: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Rotary position: tokens [heads, n, d], cos and sin [n, d / 2]; interleaved pairs, computed in fp32."""
    pairs = tokens.to(torch.float32).unflatten(-1, (-1, 2))
    even, odd = pairs[..., 0], pairs[..., 1]
    turned = torch.stack([even * cos - odd * sin, even * sin + odd * cos], dim=-1)
    return turned.flatten(-2).to(tokens.dtype)


def split_heads(tokens: Tensor, heads: int) -> Tensor:
    """[n, heads * d] -> [heads, n, d]."""
    return tokens.unflatten(-1, (heads, -1)).transpose(0, 1)


def measure(
    query: Tensor, memory_key: Tensor, plan: KeyPlan, layer: int, parts: Projections, cos: Tensor, sin: Tensor
) -> None:
    """Note the salient tokens of every frame in `plan.measures`, and the attention they hold.

    Args:
        query: [heads, N, d] rotated queries. memory_key: [M, 64] unprojected keys. cos, sin: [T, d / 2] grid tables.
    """
    for item in plan.measures:
        key = split_heads(parts.key(memory_key.index_select(0, item.rows)), parts.heads)
        saliency = memory_saliency(query, rotate(key, cos, sin), plan.query_stride)
        if plan.listener is not None:
            plan.listener(not item.counts, layer, saliency)
        picked = top_tokens(saliency, item.keep)
        item.picked[layer], item.offset[layer] = picked, -saliency.index_select(0, picked).sum().log()


def rotated_query(tokens: Tensor, parts: Projections, cos: Tensor, sin: Tensor) -> Tensor:
    """Normed queries [N, C] -> projected and rotated [heads, N, d]; token i sits at grid position i."""
    return rotate(split_heads(parts.query(tokens), parts.heads), cos, sin)


def pruned_attention(
    query: Tensor, memory_key: Tensor, memory_value: Tensor, plan: KeyPlan, layer: int, parts: Projections, cos: Tensor,
    sin: Tensor,
) -> Tensor:  # fmt: skip
    """Attention of rotated queries over the rows `plan.index[layer]` of the memory.

    Args:
        query: [heads, N, d] rotated queries.
        memory_key: [M, 64] memory with position; memory_value: [M, 64] memory without. Rows are gathered before they
            are projected; pointers and padding, at the end, are not rotated. The plan's bias is added to the logits.
        cos, sin: [T, d / 2] tables of the token grid.

    Returns:
        [N, C] after the output projection.
    """
    index, rows = plan.index[layer], plan.rows[layer]
    assert index is not None and rows is not None
    key = split_heads(parts.key(memory_key.index_select(0, index)), parts.heads)
    value = split_heads(parts.value(memory_value.index_select(0, index)), parts.heads)
    placed = rows.shape[0]
    turned = rotate(key[:, :placed], cos.index_select(0, rows), sin.index_select(0, rows))
    key = torch.cat([turned, key[:, placed:]], dim=1)
    bias = plan.bias[layer] if plan.bias is not None else None
    if bias is not None:
        bias = bias.to(query.dtype)[None, None, None].expand(1, query.shape[0], query.shape[1], -1)
    mixed = F.scaled_dot_product_attention(query[None], key[None], value[None], attn_mask=bias)[0]
    return parts.output(mixed.transpose(0, 1).flatten(-2))

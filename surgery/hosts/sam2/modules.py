"""Stock `sam2`: what is put in front of the parts of a `SAM2VideoPredictor`."""

from __future__ import annotations

from functools import partial
from typing import Any

import torch
from torch import Tensor

from surgery.core.attention import AttentionCall
from surgery.core.seams import Attention, FeedForward, PositionCode, TokenToImage
from surgery.hosts.sam21.modules import HieraBlock, MemoryAttention
from surgery.hosts.sam21.names import Names

NAMES = Names(
    heads="num_heads",
    output="out_proj",
    norm="norm",
    stride="q_stride",
    memory=("curr", "memory", "curr_pos", "memory_pos", "num_obj_ptr_tokens"),
)


class Sam2Block(HieraBlock):
    """`MultiScaleBlock`."""

    _names = NAMES


class Sam2TokenToImage(TokenToImage):
    """`Attention` of the two-way transformer, token to image."""

    def forward(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        self._note(q, k)
        return super().forward(q=q, k=k, v=v)  # type: ignore[misc]


class Sam2Attention(Attention):
    """`RoPEAttention` of memory attention: among the tokens of the frame, or from them to memory."""

    def forward(self, q: Tensor, k: Tensor, v: Tensor, num_k_exclude_rope: int = 0) -> Tensor:
        site = self._surgery
        stock = partial(super().forward, q, k, v, num_k_exclude_rope=num_k_exclude_rope)  # type: ignore[misc]
        if site.context is None or q.shape[0] != 1:
            return stock()

        def tables(tokens: int) -> Tensor:
            return torch.view_as_real(_rotary_table(self, tokens, q.device))

        parts = NAMES.projections(self)
        call = AttentionCall(q[0], k[0], v[0], parts, tables, site.number, num_k_exclude_rope, self.training)
        return self._call(call, lambda: stock()[0])[None]


def _rotary_table(attention: Any, tokens: int, device: torch.device) -> Tensor:
    """Complex [T, d / 2] table of a square grid, kept where the host keeps it."""
    table: Tensor = attention.freqs_cis.to(device)
    if table.shape[0] != tokens:
        table = attention.freqs_cis = attention.compute_cis(end_x=tokens**0.5, end_y=tokens**0.5).to(device)
    return table


class Sam2NeckCodes(PositionCode):
    """`PositionEmbeddingSine`, which has its codes but copies one into a new tensor on every call."""

    def _pe(self, B: int, device: torch.device, *cache_key: int) -> Tensor:
        stock = partial(super()._pe, B, device, *cache_key)  # type: ignore[misc]

        def view() -> Tensor:
            known: Tensor | None = self.cache.get(cache_key)
            return stock() if known is None else known.to(device)[None].expand(B, -1, -1, -1)

        return self._code((B, device, *cache_key), stock, view)


class Sam2MemoryLayer(FeedForward):
    """`MemoryAttentionLayer`. (The layer of transformers has no seam before its feed-forward.)"""

    def forward(
        self, tgt: Tensor, memory: Tensor, pos: Tensor | None = None, query_pos: Tensor | None = None,
        num_k_exclude_rope: int = 0,
    ) -> Tensor:  # fmt: skip
        if self.training or torch.compiler.is_compiling() or self._surgery.context is None:
            return super().forward(tgt, memory, pos, query_pos, num_k_exclude_rope)  # type: ignore[misc]
        tgt = self._forward_sa(tgt, query_pos)
        tgt = self._forward_ca(tgt, memory, query_pos, pos, num_k_exclude_rope)
        return self._feed(tgt, self.linear1.out_features, self._run)

    def _run(self, tokens: Tensor) -> Tensor:
        return tokens + self.linear2(self.activation(self.linear1(self.norm3(tokens))))


class Sam2MemoryAttention(MemoryAttention):
    """`MemoryAttention`."""

    _names = NAMES

"""Stock `sam2`: the grafts of the parts of a `SAM2VideoPredictor`."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from surgery.graft import Graft
from surgery.hosts.base import Binding
from surgery.hosts.blocks import DecoderTap, HieraBlock, MemoryCrossAttention, SpanBlock
from surgery.hosts.late import LateBlock
from surgery.hosts.parts import MemoryAttentionPart
from surgery.hosts.positions import NeckCodes
from surgery.hosts.query import MemorySelfAttention
from surgery.hosts.strips import in_strips, strips_pay
from surgery.retrieval.attention import Projections


class Sam2Block(HieraBlock):
    """`MultiScaleBlock`."""

    def _norm1(self, tokens: Tensor) -> Tensor:
        return self.norm1(tokens)  # type: ignore[attr-defined]

    def _norm2(self, tokens: Tensor) -> Tensor:
        return self.norm2(tokens)  # type: ignore[attr-defined]


class Sam2SpanBlock(Sam2Block, SpanBlock):
    """`MultiScaleBlock` of the routed span."""


class Sam2LateBlock(Sam2Block, LateBlock):
    """`MultiScaleBlock` of the stage after the span."""


class Sam2DecoderTap(DecoderTap):
    """`Attention` of the two-way transformer, token to image."""

    def forward(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        self._tap(q, k)
        return super().forward(q=q, k=k, v=v)  # type: ignore[misc]


class Sam2CrossAttention(MemoryCrossAttention):
    """`RoPEAttention` that reads memory."""

    def forward(self, q: Tensor, k: Tensor, v: Tensor, num_k_exclude_rope: int = 0) -> Tensor:
        plan, route = self._surgery.binding.plan, self._surgery.binding.query
        if (plan is not None or route is not None) and q.shape[0] == 1:
            table = _rotary_table(self, q.shape[1] if route is None else route.tokens, q.device)
            out = self._planned(q[0], k[0], v[0], table.real, table.imag, plan, route, num_k_exclude_rope)
            if out is not None:
                return out[None]
        return super().forward(q, k, v, num_k_exclude_rope=num_k_exclude_rope)  # type: ignore[misc]

    def _projections(self) -> Projections:
        return Projections(self.q_proj, self.k_proj, self.v_proj, self.out_proj, self.num_heads)  # type: ignore[attr-defined]


class Sam2SelfAttention(MemorySelfAttention):
    """`RoPEAttention` among the tokens of the frame."""

    def forward(self, q: Tensor, k: Tensor, v: Tensor, num_k_exclude_rope: int = 0) -> Tensor:
        route = self._surgery.binding.query
        if route is None:
            self._note(q[0])
            work = self._work()
            if work is not None and work.output is not None:
                return work.output
            out: Tensor = super().forward(q, k, v, num_k_exclude_rope=num_k_exclude_rope)  # type: ignore[misc]
            if work is not None:
                work.output = out
            return out
        table = _rotary_table(self, route.tokens, q.device)
        return self._routed(q[0], table.real, table.imag, route)[None]

    def _projections(self) -> Projections:
        return Projections(self.q_proj, self.k_proj, self.v_proj, self.out_proj, self.num_heads)  # type: ignore[attr-defined]


def _rotary_table(attention: Any, tokens: int, device: torch.device) -> Tensor:
    """Complex [T, d / 2] table of a square grid, kept where the host keeps it."""
    table: Tensor = attention.freqs_cis.to(device)
    if table.shape[0] != tokens:
        table = attention.freqs_cis = attention.compute_cis(end_x=tokens**0.5, end_y=tokens**0.5).to(device)
    return table


class Sam2NeckCodes(NeckCodes):
    """`PositionEmbeddingSine`, which has its codes but copies one into a new tensor on every call."""

    def _pe(self, B: int, device: torch.device, *cache_key: int) -> Tensor:
        known: Tensor | None = self.cache.get(cache_key) if self._spared() else None  # type: ignore[attr-defined]
        if known is None:
            return super()._pe(B, device, *cache_key)  # type: ignore[misc]
        return known.to(device)[None].expand(B, -1, -1, -1)


class Sam2MemoryLayer(Graft):
    """`MemoryAttentionLayer`: on a CPU its feed-forward goes strip by strip. (The layer of transformers has no seam
    before its feed-forward.)"""

    _surgery: Binding

    def forward(
        self, tgt: Tensor, memory: Tensor, pos: Tensor | None = None, query_pos: Tensor | None = None,
        num_k_exclude_rope: int = 0,
    ) -> Tensor:  # fmt: skip
        if self.training or not strips_pay(self._surgery, tgt):  # type: ignore[attr-defined]
            return super().forward(tgt, memory, pos, query_pos, num_k_exclude_rope)  # type: ignore[misc]
        tgt = self._forward_sa(tgt, query_pos)  # type: ignore[attr-defined]
        tgt = self._forward_ca(tgt, memory, query_pos, pos, num_k_exclude_rope)  # type: ignore[attr-defined]
        hidden: int = self.linear1.out_features  # type: ignore[attr-defined]
        return in_strips(self._feed, tgt, 1, 1, hidden)

    def _feed(self, tokens: Tensor) -> Tensor:
        own: Any = self
        out: Tensor = tokens + own.linear2(own.activation(own.linear1(own.norm3(tokens))))
        return out


class Sam2MemoryAttention(MemoryAttentionPart):
    """`MemoryAttention`. `__call__` and not `forward`, which the VOS predictor replaces by a compiled one."""

    def __call__(self, *args: Any, **kwargs: Any) -> Tensor:
        names = ("curr", "memory", "curr_pos", "memory_pos", "num_obj_ptr_tokens")
        given: dict[str, Any] = {**dict(zip(names, args, strict=False)), **kwargs}
        memory, pointers = given["memory"], given.get("num_obj_ptr_tokens", 0)
        current: Tensor = given["curr"][0] if isinstance(given["curr"], list) else given["curr"]
        positions = given.get("curr_pos")
        positions = positions[0] if isinstance(positions, list) else positions

        stock = super().__call__

        def run(taken: Tensor, places: Tensor | None) -> Tensor:
            if taken is current:
                return stock(*args, **kwargs)
            return stock(**{**given, "curr": taken, "curr_pos": places})

        return self._conditioned(
            current, positions, memory, pointers, self._surgery.model.memory_temporal_stride_for_eval, run
        )

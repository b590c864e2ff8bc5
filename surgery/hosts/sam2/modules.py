"""Stock `sam2`: what is put in front of the parts of a `SAM2VideoPredictor`."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from surgery.core.attention import AttentionCall, MemoryCall, Projections
from surgery.core.seams import Attention, FeedForward, MemoryAttentionPart, PositionCode, TokenToImage
from surgery.hosts.sam21 import HieraBlock


class Sam2Block(HieraBlock):
    """`MultiScaleBlock`."""

    _norms = ("norm1", "norm2")
    _heads = "num_heads"


class Sam2TokenToImage(TokenToImage):
    """`Attention` of the two-way transformer, token to image."""

    def forward(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        self._note(q, k)
        return super().forward(q=q, k=k, v=v)  # type: ignore[misc]


class Sam2Attention(Attention):
    """`RoPEAttention` of memory attention: among the tokens of the frame, or from them to memory."""

    def forward(self, q: Tensor, k: Tensor, v: Tensor, num_k_exclude_rope: int = 0) -> Tensor:
        own: Any = self
        forward, site = super().forward, self._surgery  # type: ignore[misc]

        def stock() -> Tensor:
            out: Tensor = forward(q, k, v, num_k_exclude_rope=num_k_exclude_rope)
            return out

        if site.context is None or q.shape[0] != 1:
            return stock()

        def tables(tokens: int) -> Tensor:
            return torch.view_as_real(_rotary_table(self, tokens, q.device))

        parts = Projections(own.q_proj, own.k_proj, own.v_proj, own.out_proj, own.num_heads)
        call = AttentionCall(q[0], k[0], v[0], parts, tables, site.number, num_k_exclude_rope, own.training)
        return self._call(call, lambda: stock()[0])[None]


def _rotary_table(attention: Any, tokens: int, device: torch.device) -> Tensor:
    """Complex [T, d / 2] table of a square grid, kept where the host keeps it."""
    table: Tensor = attention.freqs_cis.to(device)
    if table.shape[0] != tokens:
        table = attention.freqs_cis = attention.compute_cis(end_x=tokens**0.5, end_y=tokens**0.5).to(device)
    return table


class Sam2Trunk(PositionCode):
    """`Hiera`, which interpolates its position code to the map and tiles it on every frame."""

    def _get_pos_embed(self, hw: tuple[int, int]) -> Tensor:
        make = super()._get_pos_embed  # type: ignore[misc]
        return self._code((int(hw[0]), int(hw[1])), lambda: make(hw))


class Sam2NeckCodes(PositionCode):
    """`PositionEmbeddingSine`, which has its codes but copies one into a new tensor on every call."""

    def _pe(self, B: int, device: torch.device, *cache_key: int) -> Tensor:
        pe = super()._pe  # type: ignore[misc]

        def stock() -> Tensor:
            code: Tensor = pe(B, device, *cache_key)
            return code

        def view() -> Tensor:
            known: Tensor | None = self.cache.get(cache_key)  # type: ignore[attr-defined]
            return stock() if known is None else known.to(device)[None].expand(B, -1, -1, -1)

        return self._code((B, device, *cache_key), stock, view)


class Sam2MemoryLayer(FeedForward):
    """`MemoryAttentionLayer`. (The layer of transformers has no seam before its feed-forward.)"""

    def forward(
        self, tgt: Tensor, memory: Tensor, pos: Tensor | None = None, query_pos: Tensor | None = None,
        num_k_exclude_rope: int = 0,
    ) -> Tensor:  # fmt: skip
        own: Any = self
        if own.training or torch.compiler.is_compiling() or self._surgery.context is None:
            return super().forward(tgt, memory, pos, query_pos, num_k_exclude_rope)  # type: ignore[misc]
        tgt = own._forward_sa(tgt, query_pos)
        tgt = own._forward_ca(tgt, memory, query_pos, pos, num_k_exclude_rope)
        return self._feed(tgt, own.linear1.out_features, self._run)

    def _run(self, tokens: Tensor) -> Tensor:
        own: Any = self
        out: Tensor = tokens + own.linear2(own.activation(own.linear1(own.norm3(tokens))))
        return out


class Sam2MemoryAttention(MemoryAttentionPart):
    """`MemoryAttention`. `__call__` and not `forward`, which the VOS predictor replaces by a compiled one."""

    def __call__(self, *args: Any, **kwargs: Any) -> Tensor:
        stock = super().__call__
        if self._surgery.context is None:
            return stock(*args, **kwargs)
        names = ("curr", "memory", "curr_pos", "memory_pos", "num_obj_ptr_tokens")
        given: dict[str, Any] = {**dict(zip(names, args, strict=False)), **kwargs}
        current: Tensor = given["curr"][0] if isinstance(given["curr"], list) else given["curr"]
        positions = given.get("curr_pos")
        positions = positions[0] if isinstance(positions, list) else positions
        own: Any = self
        model, layers = self._surgery.surgery.host.model, len(own.layers)

        def run(call: MemoryCall) -> Tensor:
            if call.current is current:
                return stock(*args, **kwargs)
            return stock(**{**given, "curr": call.current, "curr_pos": call.positions})

        pointers, stride = given.get("num_obj_ptr_tokens", 0), model.memory_temporal_stride_for_eval
        return self._conditioned(MemoryCall(current, positions, given["memory"], pointers, stride, layers), run)

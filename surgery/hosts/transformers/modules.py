"""`transformers`: the grafts of the parts of a `Sam2VideoModel`."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from surgery.hosts.blocks import DecoderTap, HieraBlock, MemoryCrossAttention, SpanBlock
from surgery.hosts.control import record_evidence
from surgery.hosts.late import LateBlock
from surgery.hosts.parts import MaskDecoderPart, MemoryAttentionPart
from surgery.hosts.positions import NeckCodes
from surgery.hosts.query import MemorySelfAttention
from surgery.retrieval.attention import Projections


class TransformersBlock(HieraBlock):
    """`Sam2MultiScaleBlock`."""

    def _norm1(self, tokens: Tensor) -> Tensor:
        return self.layer_norm1(tokens)  # type: ignore[attr-defined]

    def _norm2(self, tokens: Tensor) -> Tensor:
        return self.layer_norm2(tokens)  # type: ignore[attr-defined]


class TransformersSpanBlock(TransformersBlock, SpanBlock):
    """`Sam2MultiScaleBlock` of the routed span."""


class TransformersLateBlock(TransformersBlock, LateBlock):
    """`Sam2MultiScaleBlock` of the stage after the span."""


class TransformersDecoderTap(DecoderTap):
    """`Sam2VideoAttention`, token to image."""

    def forward(self, query: Tensor, key: Tensor, value: Tensor, *args: Any, **kwargs: Any) -> Any:
        self._tap(query, key)
        return super().forward(query, key, value, *args, **kwargs)  # type: ignore[misc]


class TransformersCrossAttention(MemoryCrossAttention):
    """`Sam2VideoRoPEAttention` that reads memory."""

    def forward(
        self,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        position_embeddings: tuple[Tensor, Tensor],
        num_k_exclude_rope: int = 0,
        **kwargs: Any,
    ) -> Any:
        plan, route = self._surgery.binding.plan, self._surgery.binding.query
        if (plan is not None or route is not None) and query.shape[:2] == (1, 1):
            cos, sin = (table.reshape(-1, table.shape[-1])[:, ::2] for table in position_embeddings)
            out = self._planned(query[0, 0], key[0, 0], value[0, 0], cos, sin, plan, route, num_k_exclude_rope)
            if out is not None:
                return out[None, None], None
        return super().forward(  # type: ignore[misc]
            query=query,
            key=key,
            value=value,
            position_embeddings=position_embeddings,
            num_k_exclude_rope=num_k_exclude_rope,
            **kwargs,
        )

    def _projections(self) -> Projections:
        heads: int = self.num_attention_heads  # type: ignore[attr-defined]
        return Projections(self.q_proj, self.k_proj, self.v_proj, self.o_proj, heads)  # type: ignore[attr-defined]


class TransformersSelfAttention(MemorySelfAttention):
    """`Sam2VideoRoPEAttention` among the tokens of the frame."""

    def forward(
        self, query: Tensor, key: Tensor, value: Tensor, position_embeddings: tuple[Tensor, Tensor], **kwargs: Any
    ) -> Any:
        route = self._surgery.binding.query
        if route is None:
            self._note(query[0, 0])
            work = self._work()
            if work is not None and work.output is not None:
                return work.output, None
            out, weights = super().forward(  # type: ignore[misc]
                query=query, key=key, value=value, position_embeddings=position_embeddings, **kwargs
            )
            # Eager attention returns its weights, T x T of them: hooks may want each object's, and nobody keeps them.
            if work is not None and weights is None:
                work.output = out
            return out, weights
        cos, sin = (table.reshape(-1, table.shape[-1])[:, ::2] for table in position_embeddings)
        return self._routed(query[0, 0], cos, sin, route)[None, None], None

    def _projections(self) -> Projections:
        heads: int = self.num_attention_heads  # type: ignore[attr-defined]
        return Projections(self.q_proj, self.k_proj, self.v_proj, self.o_proj, heads)  # type: ignore[attr-defined]


class TransformersNeckCodes(NeckCodes):
    """`Sam2SinePositionEmbedding`, whose own cache holds one code, and the neck asks for four in turn."""

    def forward(self, shape: Any, device: Any, dtype: torch.dtype, mask: Tensor | None = None) -> Tensor:
        make = super().forward  # type: ignore[misc]
        if mask is not None or not self._spared():
            code: Tensor = make(shape, device, dtype, mask)
            return code
        return self._kept((id(self), tuple(shape), torch.device(device), dtype), lambda: make(shape, device, dtype))


class TransformersMemoryAttention(MemoryAttentionPart):
    """`Sam2VideoMemoryAttention`."""

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        names = (
            "current_vision_features",
            "memory",
            "current_vision_position_embeddings",
            "memory_posision_embeddings",
            "num_object_pointer_tokens",
        )
        given = {**dict(zip(names, args, strict=False)), **kwargs}
        memory, pointers = given["memory"], given.get("num_object_pointer_tokens", 0)
        current, positions = given[names[0]], given.get(names[2])

        stock = super().__call__

        def run(taken: Tensor, places: Tensor | None) -> Tensor:
            if taken is current:
                return stock(*args, **kwargs)
            subset = {**given, names[0]: taken, names[2]: places}
            return stock(**subset)

        return self._conditioned(current, positions, memory, pointers, 1, run)


class TransformersMaskDecoder(MaskDecoderPart):
    """`Sam2VideoMaskDecoder`: the only place where all mask candidates are seen.

    `__call__` and not `forward`: a compiled forward that recorded evidence would be compiled anew on every frame.
    """

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        outputs = super().__call__(*args, **kwargs)
        view = self._surgery
        if view.binding.enabled:
            masks, ious, _, score = outputs[:4]
            record_evidence(view.binding, masks, ious, score)
        return outputs

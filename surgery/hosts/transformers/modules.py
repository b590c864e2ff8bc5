"""`transformers`: what is put in front of the parts of a `Sam2VideoModel`."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from surgery.core.attention import AttentionCall, MemoryCall, Projections
from surgery.core.evidence import record_evidence
from surgery.core.seams import Attention, MemoryAttentionPart, ModelPart, PositionCode, TokenToImage
from surgery.hosts.sam21 import HieraBlock


class TransformersBlock(HieraBlock):
    """`Sam2MultiScaleBlock`."""

    _norms = ("layer_norm1", "layer_norm2")
    _heads = "num_attention_heads"


class TransformersTokenToImage(TokenToImage):
    """`Sam2VideoAttention`, token to image."""

    def forward(self, query: Tensor, key: Tensor, value: Tensor, *args: Any, **kwargs: Any) -> Any:
        self._note(query, key)
        return super().forward(query, key, value, *args, **kwargs)  # type: ignore[misc]


class TransformersAttention(Attention):
    """`Sam2VideoRoPEAttention`: among the tokens of the frame, or from them to memory."""

    def forward(
        self,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        position_embeddings: tuple[Tensor, Tensor],
        num_k_exclude_rope: int = 0,
        **kwargs: Any,
    ) -> Any:
        own: Any = self
        forward, site, weights = super().forward, self._surgery, [None]  # type: ignore[misc]

        def stock() -> Any:
            return forward(
                query=query,
                key=key,
                value=value,
                position_embeddings=position_embeddings,
                num_k_exclude_rope=num_k_exclude_rope,
                **kwargs,
            )

        if site.context is None or query.shape[:2] != (1, 1):
            return stock()

        def tables(tokens: int) -> Tensor:
            # Of a model in half precision they are too.
            cos_sin = [table.reshape(-1, table.shape[-1])[:, ::2].float() for table in position_embeddings]
            return torch.stack(cos_sin, -1)

        parts = Projections(own.q_proj, own.k_proj, own.v_proj, own.o_proj, own.num_attention_heads)
        call = AttentionCall(
            query[0, 0],
            key[0, 0],
            value[0, 0],
            parts,
            tables,
            site.number,
            num_k_exclude_rope,
            own.training,
        )

        def run() -> Tensor:
            out, weights[0] = stock()
            call.returns_weights = weights[0] is not None
            tokens: Tensor = out[0, 0]
            return tokens

        return self._call(call, run)[None, None], weights[0]


class TransformersTrunk(PositionCode):
    """`Sam2HieraDetModel`, which interpolates its position code to the map and tiles it on every frame."""

    def _get_pos_embed(self, hw: tuple[int, int]) -> Tensor:
        make = super()._get_pos_embed  # type: ignore[misc]
        return self._code((int(hw[0]), int(hw[1])), lambda: make(hw))


class TransformersNeckCodes(PositionCode):
    """`Sam2SinePositionEmbedding`, whose own cache holds one code, and the neck asks for four in turn."""

    def forward(self, shape: Any, device: Any, dtype: torch.dtype, mask: Tensor | None = None) -> Tensor:
        make = super().forward  # type: ignore[misc]
        if mask is not None:
            code: Tensor = make(shape, device, dtype, mask)
            return code
        return self._code((tuple(shape), torch.device(device), dtype), lambda: make(shape, device, dtype))


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
        current, positions = given[names[0]], given.get(names[2])
        own: Any = self
        stock, layers = super().__call__, len(own.layers)

        def run(call: MemoryCall) -> Any:
            if call.current is current:
                return stock(*args, **kwargs)
            return stock(**{**given, names[0]: call.current, names[2]: call.positions})

        pointers = given.get("num_object_pointer_tokens", 0)
        return self._conditioned(MemoryCall(current, positions, given["memory"], pointers, 1, layers), run)


class TransformersMaskDecoder(ModelPart):
    """`Sam2VideoMaskDecoder`: the only place where all mask candidates are seen.

    `__call__` and not `forward`: a compiled forward that recorded evidence would be compiled anew on every frame.
    """

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        outputs = super().__call__(*args, **kwargs)
        masks, ious, _, score = outputs[:4]
        record_evidence(self._surgery.context, masks, ious, score)
        return outputs

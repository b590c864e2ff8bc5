"""`transformers`: what is put in front of the parts of a `Sam2VideoModel`."""

from __future__ import annotations

from functools import partial
from typing import Any

import torch
from torch import Tensor

from surgery.core.attention import AttentionCall
from surgery.core.evidence import record_evidence
from surgery.core.seams import Attention, ModelPart, PositionCode, TokenToImage
from surgery.hosts.sam21.modules import HieraBlock, MemoryAttention
from surgery.hosts.sam21.names import Names

NAMES = Names(
    heads="num_attention_heads",
    output="o_proj",
    norm="layer_norm",
    stride="query_stride",
    memory=(
        "current_vision_features",
        "memory",
        "current_vision_position_embeddings",
        "memory_posision_embeddings",
        "num_object_pointer_tokens",
    ),
)


class TransformersBlock(HieraBlock):
    """`Sam2MultiScaleBlock`."""

    _names = NAMES


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
        site, weights = self._surgery, [None]
        given = {"query": query, "key": key, "value": value, "position_embeddings": position_embeddings, **kwargs}
        stock = partial(super().forward, **given, num_k_exclude_rope=num_k_exclude_rope)  # type: ignore[misc]
        if site.context is None or query.shape[:2] != (1, 1):
            return stock()

        def tables(tokens: int) -> Tensor:
            # Of a model in half precision they are too.
            cos_sin = [table.reshape(-1, table.shape[-1])[:, ::2].float() for table in position_embeddings]
            return torch.stack(cos_sin, -1)

        parts = NAMES.projections(self)
        call = AttentionCall(
            query[0, 0], key[0, 0], value[0, 0], parts, tables, site.number, num_k_exclude_rope, self.training
        )

        def run() -> Tensor:
            out, weights[0] = stock()
            call.returns_weights = weights[0] is not None
            return out[0, 0]

        return self._call(call, run)[None, None], weights[0]


class TransformersNeckCodes(PositionCode):
    """`Sam2SinePositionEmbedding`, whose own cache holds one code, and the neck asks for four in turn."""

    def forward(self, shape: Any, device: Any, dtype: torch.dtype, mask: Tensor | None = None) -> Tensor:
        make = super().forward  # type: ignore[misc]
        if mask is not None:
            return make(shape, device, dtype, mask)
        return self._code((tuple(shape), torch.device(device), dtype), lambda: make(shape, device, dtype))


class TransformersMemoryAttention(MemoryAttention):
    """`Sam2VideoMemoryAttention`."""

    _names = NAMES


class TransformersMaskDecoder(ModelPart):
    """`Sam2VideoMaskDecoder`: the only place where all mask candidates are seen.

    `__call__` and not `forward`: a compiled forward that recorded evidence would be compiled anew on every frame.
    """

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        outputs = super().__call__(*args, **kwargs)
        masks, ious, _, score = outputs[:4]
        record_evidence(self._surgery.context, masks, ious, score)
        return outputs

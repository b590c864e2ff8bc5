"""`transformers`: what is put in front of the parts of SAM 3's image encoder."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from transformers.models.sam3.modeling_sam3 import apply_rotary_pos_emb_2d

from surgery.core.seams import Block, PositionCode


class Sam3Layer(Block):
    """`Sam3ViTLayer`, whose attention rotates by the place in the window, or on the map where it is global."""

    def _tables(self, tokens: Tensor, places: Tensor | None) -> tuple[Tensor, Tensor]:
        """cos and sin [..., N, d] of the tokens at `places`, or of all that the layer attends among."""
        # Early 5.x has the tables of a layer in its module.
        given = (tokens, self.position_ids) if hasattr(self, "position_ids") else ()
        cos, sin = self.rotary_emb(*given)
        return (cos, sin) if places is None else (cos.index_select(-2, places), sin.index_select(-2, places))

    def _norm1(self, tokens: Tensor) -> Tensor:
        return self.layer_norm1(tokens)

    def _norm2(self, tokens: Tensor) -> Tensor:
        return self.layer_norm2(tokens)

    def _attend(self, windows: Tensor, places: Tensor | None, **kwargs: Any) -> Tensor:
        return self.attention(windows, self._tables(windows, places), **kwargs)[0]

    def _qkv(self, tokens: Tensor, places: Tensor | None) -> Tensor:
        attention, flat = self.attention, tokens.flatten(0, -2)
        query, key, value = (
            project(flat).unflatten(-1, (attention.num_attention_heads, -1))
            for project in (attention.q_proj, attention.k_proj, attention.v_proj)
        )
        cos, sin = (table.reshape(-1, 1, table.shape[-1]) for table in self._tables(tokens, places))
        return torch.stack([*apply_rotary_pos_emb_2d(query, key, cos=cos, sin=sin), value], 1)

    def _out(self, mixed: Tensor) -> Tensor:
        return self.attention.o_proj(mixed)

    def _feed_forward(self, tokens: Tensor) -> Tensor:
        return self.dropout(super()._feed_forward(tokens))


class Sam3Embeddings(PositionCode):
    """`Sam3ViTEmbeddings`, which tiles its position code over the map on every frame."""

    def _tile_position_embeddings(self, position_embeddings: Tensor, height: int, width: int) -> Tensor:
        make = super()._tile_position_embeddings  # type: ignore[misc]
        return self._code((height, width), lambda: make(position_embeddings, height, width))

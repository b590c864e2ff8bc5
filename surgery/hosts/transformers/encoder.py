"""The encoder attention of `transformers` without a product the host computes and never reads.

`Sam2MultiScaleAttention` forms, for every token, the softmax of its heads' queries against its own heads' keys, and
then calls the attention that counts. Nothing reads the former. This is Hiera's attention as published: project, pool
the queries where a stage begins, attend, project back.
"""

from __future__ import annotations

from typing import Any

import torch.nn.functional as F
from torch import Tensor
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS
from transformers.models.sam2.modeling_sam2 import eager_attention_forward

from surgery.core.patching import Patched


class TransformersEncoderAttention(Patched):
    """`Sam2MultiScaleAttention`."""

    def forward(self, hidden_states: Tensor, **kwargs: Any) -> Tensor:
        """Tokens [n, h, w, C] of n windows, or of one map -> [n, h', w', C']; h' = h, w' = w unless queries are pooled.

        Attention is by the implementation that `set_attn_implementation` chose.
        """
        count, height, width, _ = hidden_states.shape
        heads = self.num_attention_heads
        query, key, value = self.qkv(hidden_states).reshape(count, height * width, 3, heads, -1).unbind(2)
        if self.query_stride:
            grid = query.reshape(count, height, width, -1).permute(0, 3, 1, 2)
            grid = F.max_pool2d(grid, self.query_stride, self.query_stride).permute(0, 2, 3, 1)
            height, width = grid.shape[1:3]
            query = grid.reshape(count, height * width, heads, -1)
        query, key, value = (part.transpose(1, 2) for part in (query, key, value))
        attend = ALL_ATTENTION_FUNCTIONS.get_interface(self.config._attn_implementation, eager_attention_forward)
        mixed, _ = attend(
            self, query, key, value, attention_mask=None, is_causal=self.is_causal, scaling=self.scale, **kwargs
        )
        return self.proj(mixed.reshape(count, height, width, -1))

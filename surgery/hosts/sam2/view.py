"""Stock `sam2` (Meta's predictor, PyPI `sam2` 1.1.0): `SAM2VideoPredictor` and `SAM2VideoPredictorVOS`."""

from __future__ import annotations

import gc
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from surgery.core.host import BlockInfo, HostView
from surgery.core.parts import ATTENTION
from surgery.core.patching import Patched
from surgery.core.session import SessionHandle, VideoState
from surgery.errors import UnsupportedModelError
from surgery.hosts.sam2.driver import Sam2Driver
from surgery.hosts.sam2.loader import Sam2Loader
from surgery.hosts.sam2.modules import (
    Sam2Attention,
    Sam2Block,
    Sam2MemoryAttention,
    Sam2MemoryLayer,
    Sam2NeckCodes,
    Sam2TokenToImage,
    Sam2Trunk,
)
from surgery.hosts.sam2.pictures import Sam2Pictures
from surgery.hosts.sam2.root import Sam2Root
from surgery.hosts.sam2.session import STATE_KEY, Sam2Session


class Sam2View(HostView):
    """A stock `SAM2VideoPredictor`."""

    name = "sam2"
    models = "sam2 SAM2VideoPredictor"
    driver = Sam2Driver
    loader = Sam2Loader()
    cannot: ClassVar[Mapping[str, str]] = {
        "weights": "feeds its encoder fp32 frames; use cast 'autocast', or half-precision parts by the recipe's own "
        "operation precision",
        "fp16": "keeps its memory in bf16, which fp16 autocast cannot join with fp16; use bf16, or fp16 parts by the "
        "recipe's own operation precision",
    }
    root: ClassVar[type[Patched]] = Sam2Root
    pictures = Sam2Pictures
    seams: ClassVar[Mapping[str, type[Patched]]] = {
        "block": Sam2Block,
        "self_attention": Sam2Attention,
        "cross_attention": Sam2Attention,
        "token_to_image": Sam2TokenToImage,
        ATTENTION: Sam2MemoryAttention,
    }

    @classmethod
    def matches(cls, model: object) -> bool:
        if not of_library(model):
            return False
        from sam2.sam2_video_predictor import SAM2VideoPredictor

        return isinstance(model, SAM2VideoPredictor)

    @classmethod
    def near_miss(cls, model: object) -> str | None:
        if not of_library(model):
            return None
        return (
            f"{type(model).__name__} has no previous frame to route by; expected a SAM2VideoPredictor: build one with "
            "sam2.build_sam.build_sam2_video_predictor(config, checkpoint)"
        )

    def sessions_of(self, state: VideoState, home: Any) -> list[SessionHandle]:
        # A plain dict takes no weak reference, so the garbage collector is asked who holds the state.
        holders = (each for each in gc.get_referrers(state) if isinstance(each, dict))
        return [Sam2Session(each) for each in holders if each.get(STATE_KEY) is state]

    def blocks(self) -> Sequence[nn.Module]:
        trunk: Any = self.image_encoder().trunk
        if not hasattr(trunk, "blocks") or not hasattr(trunk, "stage_ends"):
            raise UnsupportedModelError(
                f"the image encoder's trunk is a {type(trunk).__name__}; expected Hiera, whose windowed blocks are "
                "what window routing acts on (recipe memory-only needs none)"
            )
        return list(trunk.blocks)

    def block_info(self, index: int) -> BlockInfo:
        block: Any = self.blocks()[index]
        return BlockInfo(
            index=index,
            dim=block.dim_out,
            heads=block.attn.num_heads,
            window=block.window_size,
            pools=bool(block.q_stride),
        )

    def block_tensors(self, index: int) -> dict[str, Tensor]:
        own = self.blocks()[index].state_dict()
        return {name: tensor for name, tensor in own.items() if not name.startswith("shortcut.")}

    def patch_stride(self) -> int:
        return int(self.model.image_encoder.trunk.patch_embed.proj.stride[0])

    def stage_starts(self) -> tuple[int, ...]:
        return (0, *(end + 1 for end in self.model.image_encoder.trunk.stage_ends[:-1]))

    def image_size(self) -> int:
        return int(self.model.image_size)

    def mask_side(self) -> int:
        return self.image_size() // 4

    def frame_side(self) -> int:
        return int(self.image_size() // self.model.backbone_stride)

    def bank_size(self) -> int:
        return int(self.model.num_maskmem)

    def pointers(self) -> int:
        per_frame = self.model.hidden_dim // self.model.mem_dim
        return int(self.model.max_obj_ptrs_in_encoder) * per_frame

    def memory_channels(self) -> int:
        return int(self.model.mem_dim)

    def memory_horizon(self) -> int:
        model = self.model
        stride, middle = model.memory_temporal_stride_for_eval, model.num_maskmem - 3
        memories = 1 + stride + max(0, middle) * stride
        return max(memories, model.max_obj_ptrs_in_encoder - 1)

    def image_encoder(self) -> nn.Module:
        return self.model.image_encoder

    def prompt_encoder(self) -> nn.Module:
        return self.model.sam_prompt_encoder

    def memory_encoder(self) -> nn.Module:
        return self.model.memory_encoder

    def memory_attention(self) -> nn.Module:
        return self.model.memory_attention

    def run_memory_attention(self, current: Tensor, memory: Tensor, pointers: int) -> Tensor:
        return self.model.memory_attention(
            curr=[current],
            curr_pos=[torch.zeros_like(current)],
            memory=memory,
            memory_pos=torch.zeros_like(memory),
            num_obj_ptr_tokens=pointers,
        )

    def cross_attentions(self) -> list[nn.Module]:
        return [layer.cross_attn_image for layer in self.model.memory_attention.layers]

    def self_attentions(self) -> list[nn.Module]:
        return [layer.self_attn for layer in self.model.memory_attention.layers]

    def seam_classes(self) -> Mapping[str, Mapping[type, type[Patched]]]:
        from sam2.modeling.backbones.hieradet import Hiera
        from sam2.modeling.memory_attention import MemoryAttentionLayer
        from sam2.modeling.position_encoding import PositionEmbeddingSine

        return {
            "code": {Hiera: Sam2Trunk, PositionEmbeddingSine: Sam2NeckCodes},
            "strip": {MemoryAttentionLayer: Sam2MemoryLayer},
        }

    def token_to_image(self) -> list[nn.Module]:
        transformer = self.model.sam_mask_decoder.transformer
        return [
            *(layer.cross_attn_token_to_image for layer in transformer.layers),
            transformer.final_attn_token_to_image,
        ]

    def decoder_projections(self, module: nn.Module) -> tuple[nn.Module, nn.Module, int]:
        attention: Any = module
        return attention.q_proj, attention.k_proj, attention.num_heads

    def mask_decoder(self) -> nn.Module:
        return self.model.sam_mask_decoder

    def decoder_calls(self) -> list[nn.Module]:
        decoder = self.model.sam_mask_decoder
        return [decoder, *((decoder.conv_s0, decoder.conv_s1) if decoder.use_high_res_features else ())]

    def stride16_of(self, output: Any) -> Tensor:
        found: Tensor = output["backbone_fpn"][-1]
        return found.flatten(2).permute(2, 0, 1)

    def base_id(self) -> tuple[str | None, str | None]:
        return None, None


def of_library(model: object) -> bool:
    return any(base.__module__.split(".")[0] == "sam2" for base in type(model).__mro__)

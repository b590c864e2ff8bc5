"""Stock `sam2` (Meta's predictor, PyPI `sam2` 1.1.0): `SAM2VideoPredictor` and `SAM2VideoPredictorVOS`."""

from __future__ import annotations

import gc
from collections.abc import Mapping
from typing import Any, ClassVar

from torch import Tensor, nn

from surgery.core.parts import ATTENTION
from surgery.core.patching import Patched
from surgery.core.session import SessionHandle, VideoState
from surgery.hosts.sam2.driver import Sam2Driver
from surgery.hosts.sam2.loader import Sam2Loader
from surgery.hosts.sam2.modules import (
    NAMES,
    Sam2Attention,
    Sam2Block,
    Sam2MemoryAttention,
    Sam2MemoryLayer,
    Sam2NeckCodes,
    Sam2TokenToImage,
)
from surgery.hosts.sam2.pictures import Sam2Pictures
from surgery.hosts.sam2.root import Sam2Root
from surgery.hosts.sam2.session import STATE_KEY, Sam2Session
from surgery.hosts.sam21.modules import HieraTrunk
from surgery.hosts.sam21.tracker import HieraView, of_library


class Sam2View(HieraView):
    """A stock `SAM2VideoPredictor`."""

    name = "sam2"
    models, kind, names = "sam2 SAM2VideoPredictor", "sam2.sam2_video_predictor.SAM2VideoPredictor", NAMES
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
    def near_miss(cls, model: object) -> str | None:
        if not of_library(model, "sam2"):
            return None
        return (
            f"{type(model).__name__} has no previous frame to route by; expected a SAM2VideoPredictor: build one with "
            "sam2.build_sam.build_sam2_video_predictor(config, checkpoint)"
        )

    def sessions_of(self, state: VideoState, home: Any) -> list[SessionHandle]:
        # A plain dict takes no weak reference, so the garbage collector is asked who holds the state.
        holders = (each for each in gc.get_referrers(state) if isinstance(each, dict))
        return [Sam2Session(each) for each in holders if each.get(STATE_KEY) is state]

    def backbone(self) -> Any:
        return self.model.image_encoder.trunk

    def patch_stride(self) -> int:
        return int(self.backbone().patch_embed.proj.stride[0])

    def image_size(self) -> int:
        return int(self.model.image_size)

    def frame_side(self) -> int:
        return int(self.image_size() // self.model.backbone_stride)

    def memory_stride(self) -> int:
        return int(self.model.memory_temporal_stride_for_eval)

    def pointer_frames(self) -> int:
        return int(self.model.max_obj_ptrs_in_encoder)

    def image_encoder(self) -> nn.Module:
        return self.model.image_encoder

    def prompt_encoder(self) -> nn.Module:
        return self.model.sam_prompt_encoder

    def mask_decoder(self) -> nn.Module:
        return self.model.sam_mask_decoder

    def seam_classes(self) -> Mapping[str, Mapping[type, type[Patched]]]:
        from sam2.modeling.backbones.hieradet import Hiera
        from sam2.modeling.memory_attention import MemoryAttentionLayer
        from sam2.modeling.position_encoding import PositionEmbeddingSine

        return {
            "code": {Hiera: HieraTrunk, PositionEmbeddingSine: Sam2NeckCodes},
            "strip": {MemoryAttentionLayer: Sam2MemoryLayer},
        }

    def stride16_of(self, output: Any) -> Tensor:
        return output["backbone_fpn"][-1].flatten(2).permute(2, 0, 1)

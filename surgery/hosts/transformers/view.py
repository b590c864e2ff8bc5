"""`transformers`: `Sam2VideoModel` with `Sam2VideoInferenceSession`, streaming included."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

from torch import Tensor, nn

from surgery.core.host import BlockInfo
from surgery.core.patching import Patched
from surgery.errors import UnsupportedModelError
from surgery.hosts.transformers.driver import TransformersDriver
from surgery.hosts.transformers.keymap import stock_path
from surgery.hosts.transformers.loader import TransformersLoader
from surgery.hosts.transformers.modules import TransformersBlock, TransformersNeckCodes, TransformersTrunk
from surgery.hosts.transformers.pictures import TransformersPictures
from surgery.hosts.transformers.root import TransformersRoot
from surgery.hosts.transformers.video import TRACKER_SEAMS, TrackerView, is_a, of_library, square


class TransformersView(TrackerView):
    """A `Sam2VideoModel`."""

    name = "transformers"
    models = "transformers Sam2VideoModel"
    driver = TransformersDriver
    loader = TransformersLoader()
    root: ClassVar[type[Patched]] = TransformersRoot
    pictures = TransformersPictures
    seams: ClassVar[Mapping[str, type[Patched]]] = {**TRACKER_SEAMS, "block": TransformersBlock}
    neutral_names = (
        ("layer_norm1.", "norm1."),
        ("layer_norm2.", "norm2."),
        ("mlp.proj_in.", "mlp.layers.0."),
        ("mlp.proj_out.", "mlp.layers.1."),
    )

    @classmethod
    def matches(cls, model: object) -> bool:
        return is_a(model, "Sam2VideoModel")

    @classmethod
    def near_miss(cls, model: object) -> str | None:
        kind = type(model).__name__
        if not of_library(model) or kind.startswith("Sam3"):
            return None
        expected = 'expected a Sam2VideoModel: Sam2VideoModel.from_pretrained("facebook/sam2.1-hiera-large")'
        if kind.startswith("EdgeTam"):
            lack = (
                "is of EdgeTAM: its encoder has no windows to skip, and a perceiver has cut its memory to an eighth "
                "already"
            )
            return f"{kind} {lack}; {expected}"
        if "Sam" in kind:
            return f"{kind} is for pictures: it has no memory and no previous frame to route by; {expected}"
        return f"{kind} is not a SAM 2 video model; {expected}"

    def neutral_path(self, path: str) -> str:
        return stock_path(path)

    def blocks(self) -> Sequence[nn.Module]:
        backbone = self.model.vision_encoder.backbone
        if not hasattr(backbone, "blocks") or not hasattr(backbone, "stage_ends"):
            raise UnsupportedModelError(
                f"the vision encoder's backbone is a {type(backbone).__name__}; expected Sam2HieraDetModel, whose "
                "windowed blocks are what window routing acts on (recipe memory-only needs none)"
            )
        return list(backbone.blocks)

    def block_info(self, index: int) -> BlockInfo:
        block: Any = self.blocks()[index]
        return BlockInfo(
            index=index,
            dim=block.dim_out,
            heads=block.attn.num_attention_heads,
            window=block.window_size,
            pools=bool(block.query_stride),
        )

    def patch_stride(self) -> int:
        return int(self.model.vision_encoder.backbone.patch_embed.projection.stride[0])

    def stage_starts(self) -> tuple[int, ...]:
        return (0, *(end + 1 for end in self.model.vision_encoder.backbone.stage_ends[:-1]))

    def image_size(self) -> int:
        return square(self.model.config.vision_config.backbone_config.image_size)

    def seam_classes(self) -> Mapping[str, Mapping[type, type[Patched]]]:
        from transformers.models.sam2.modeling_sam2 import (
            Sam2HieraDetModel,
            Sam2MultiScaleAttention,
            Sam2SinePositionEmbedding,
        )

        from surgery.hosts.transformers.encoder import TransformersEncoderAttention

        return {
            "code": {Sam2HieraDetModel: TransformersTrunk, Sam2SinePositionEmbedding: TransformersNeckCodes},
            "product": {Sam2MultiScaleAttention: TransformersEncoderAttention},
        }

    def stride16_of(self, output: Any) -> Tensor:
        found: Tensor = output.fpn_hidden_states[-1]
        return found.flatten(2).permute(2, 0, 1)

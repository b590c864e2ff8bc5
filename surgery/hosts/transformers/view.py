"""`transformers`: `Sam2VideoModel` with `Sam2VideoInferenceSession`, streaming included."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

from torch import Tensor

from surgery.core.patching import Patched
from surgery.hosts.sam21.modules import HieraTrunk
from surgery.hosts.sam21.tracker import HieraView, of_library
from surgery.hosts.transformers.driver import TransformersDriver
from surgery.hosts.transformers.keymap import stock_path
from surgery.hosts.transformers.loader import TransformersLoader
from surgery.hosts.transformers.modules import TransformersBlock, TransformersNeckCodes
from surgery.hosts.transformers.pictures import TransformersPictures
from surgery.hosts.transformers.root import TransformersRoot
from surgery.hosts.transformers.video import TRACKER_SEAMS, VideoView


class TransformersView(VideoView, HieraView):
    """A `Sam2VideoModel`."""

    name = "transformers"
    models = "transformers Sam2VideoModel"
    kind = "transformers.models.sam2_video.modeling_sam2_video.Sam2VideoModel"
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
    def near_miss(cls, model: object) -> str | None:
        kind = type(model).__name__
        if not of_library(model, "transformers") or kind.startswith("Sam3"):
            return None
        expected = 'expected a Sam2VideoModel: Sam2VideoModel.from_pretrained("facebook/sam2.1-hiera-large")'
        if kind.startswith("EdgeTam"):
            return (
                f"{kind} is of EdgeTAM: its encoder has no windows to skip, and a perceiver has cut its memory to an "
                f"eighth already; {expected}"
            )
        if "Sam" in kind:
            return f"{kind} is for pictures: it has no memory and no previous frame to route by; {expected}"
        return f"{kind} is not a SAM 2 video model; {expected}"

    def neutral_path(self, path: str) -> str:
        return stock_path(path)

    def patch_stride(self) -> int:
        return int(self.backbone().patch_embed.projection.stride[0])

    def seam_classes(self) -> Mapping[str, Mapping[type, type[Patched]]]:
        from transformers.models.sam2.modeling_sam2 import (
            Sam2HieraDetModel,
            Sam2MultiScaleAttention,
            Sam2SinePositionEmbedding,
        )

        from surgery.hosts.transformers.encoder import TransformersEncoderAttention

        return {
            "code": {Sam2HieraDetModel: HieraTrunk, Sam2SinePositionEmbedding: TransformersNeckCodes},
            "product": {Sam2MultiScaleAttention: TransformersEncoderAttention},
        }

    def stride16_of(self, output: Any) -> Tensor:
        return output.fpn_hidden_states[-1].flatten(2).permute(2, 0, 1)

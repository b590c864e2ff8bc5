"""`transformers`: `Sam3TrackerVideoModel`, SAM 2's tracker behind a plain ViT of windowed and global layers."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

from torch import Tensor, nn

from surgery.core.host import BlockInfo
from surgery.core.patching import Patched
from surgery.hosts.sam21.tracker import is_a, of_library
from surgery.hosts.transformers.modules import TransformersNeckCodes
from surgery.hosts.transformers.root import TransformersRoot
from surgery.hosts.transformers.video import TRACKER_SEAMS, VideoView
from surgery.hosts.transformers_sam3.driver import Sam3TrackerDriver
from surgery.hosts.transformers_sam3.loader import Sam3TrackerLoader
from surgery.hosts.transformers_sam3.modules import Sam3Embeddings, Sam3Layer

TRACKER = "Sam3TrackerVideoModel"
_MULTIPLEX = re.compile(r"Sam3_?1|Sam3.*Multiplex")


class Sam3ViTView(VideoView):
    """A model with SAM 3's image encoder."""

    family = "SAM 3"
    seams: ClassVar[Mapping[str, type[Patched]]] = {**TRACKER_SEAMS, "block": Sam3Layer}
    neutral_names = (
        ("layer_norm1.", "norm1."),
        ("layer_norm2.", "norm2."),
        ("attention.o_proj.", "attn.proj."),
        ("attention.", "attn."),
        ("mlp.fc1.", "mlp.layers.0."),
        ("mlp.fc2.", "mlp.layers.1."),
    )

    def blocks(self) -> Sequence[nn.Module]:
        return self._blocks("layers", "embeddings", "Sam3ViTModel")

    def block_info(self, index: int) -> BlockInfo:
        layer: Any = self.blocks()[index]
        attention = layer.attention
        return BlockInfo(index, attention.hidden_size, attention.num_attention_heads, layer.window_size, pools=False)

    def patch_stride(self) -> int:
        return int(self.backbone().embeddings.patch_embeddings.projection.stride[0])

    def stage_starts(self) -> tuple[int, ...]:
        return (0,)

    def seam_classes(self) -> Mapping[str, Mapping[type, type[Patched]]]:
        from transformers.models.sam3.modeling_sam3 import Sam3SinePositionEmbedding, Sam3ViTEmbeddings

        return {"code": {Sam3ViTEmbeddings: Sam3Embeddings, Sam3SinePositionEmbedding: TransformersNeckCodes}}

    def stride16_of(self, output: Any) -> Tensor:
        # The tracker reads all levels but the last.
        return output.fpn_hidden_states[-2].flatten(2).permute(2, 0, 1)


class Sam3TrackerView(Sam3ViTView):
    """A `Sam3TrackerVideoModel`."""

    name = "transformers_sam3"
    models = "transformers Sam3TrackerVideoModel"
    kind = "transformers.models.sam3_tracker_video.modeling_sam3_tracker_video.Sam3TrackerVideoModel"
    has = "vision_encoder"
    driver = Sam3TrackerDriver
    loader = Sam3TrackerLoader()
    root = TransformersRoot

    @classmethod
    def near_miss(cls, model: object) -> str | None:
        kind = type(model).__name__
        if not of_library(model, "transformers") or not kind.startswith("Sam3"):
            return None
        expected = f'expected a {TRACKER}: {TRACKER}.from_pretrained("facebook/sam3")'
        if is_a(model, cls.kind):
            return (
                f"this {kind} has no vision encoder, as within a Sam3VideoModel, which is what to give instead; else "
                f"{expected}"
            )
        if _MULTIPLEX.match(kind):
            return (
                f"{kind} is of SAM 3.1, whose memory holds several objects at once and is not told apart by object; "
                f"{expected}"
            )
        return f"{kind} is for pictures: it has no memory and no previous frame to route by; {expected}"

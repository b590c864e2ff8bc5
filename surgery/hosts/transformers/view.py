"""`transformers`: `Sam2VideoModel` with `Sam2VideoInferenceSession`, streaming included."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from surgery.core.host import HostView
from surgery.core.layout import BlockInfo
from surgery.core.parts import ATTENTION, DECODER
from surgery.core.patching import Patched
from surgery.core.session import SessionHandle, VideoState
from surgery.errors import UnsupportedModelError
from surgery.hosts.transformers.driver import TransformersDriver
from surgery.hosts.transformers.keymap import stock_path
from surgery.hosts.transformers.loader import TransformersLoader
from surgery.hosts.transformers.modules import (
    TransformersAttention,
    TransformersBlock,
    TransformersMaskDecoder,
    TransformersMemoryAttention,
    TransformersNeckCodes,
    TransformersTokenToImage,
    TransformersTrunk,
)
from surgery.hosts.transformers.root import TransformersRoot
from surgery.hosts.transformers.session import STATE_KEY, TransformersSession

_NEUTRAL_NAMES = (
    ("layer_norm1.", "norm1."),
    ("layer_norm2.", "norm2."),
    ("mlp.proj_in.", "mlp.layers.0."),
    ("mlp.proj_out.", "mlp.layers.1."),
)
"""Where names of a block's parameters differ from the neutral ones, which are those of stock `sam2`."""


class TransformersView(HostView):
    """A `Sam2VideoModel`."""

    name = "transformers"
    models = "transformers Sam2VideoModel"
    driver = TransformersDriver
    loader = TransformersLoader()
    root = TransformersRoot
    seams: ClassVar[Mapping[str, type[Patched]]] = {
        "block": TransformersBlock,
        "self_attention": TransformersAttention,
        "cross_attention": TransformersAttention,
        "token_to_image": TransformersTokenToImage,
        ATTENTION: TransformersMemoryAttention,
        DECODER: TransformersMaskDecoder,
    }

    @classmethod
    def matches(cls, model: object) -> bool:
        if not _of_library(model):
            return False
        from transformers import Sam2VideoModel

        return isinstance(model, Sam2VideoModel)

    @classmethod
    def near_miss(cls, model: object) -> str | None:
        if not _of_library(model):
            return None
        kind = type(model).__name__
        expected = 'expected a Sam2VideoModel: Sam2VideoModel.from_pretrained("facebook/sam2.1-hiera-large")'
        family = next((name for name in ("EdgeTam", "Sam3") if kind.startswith(name)), None)
        if family is not None:
            shown = {"EdgeTam": "EdgeTAM", "Sam3": "SAM 3"}[family]
            return f"{kind} is of {shown}, which is not supported yet; {expected}"
        if "Sam" in kind:
            return f"{kind} is for pictures: it has no memory and no previous frame to route by; {expected}"
        return f"{kind} is not a SAM 2 video model; {expected}"

    def sessions_of(self, state: VideoState, home: Any) -> list[SessionHandle]:
        session = home()
        held = session is not None and vars(session).get(STATE_KEY) is state
        return [TransformersSession(session)] if held else []

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

    def block_tensors(self, index: int) -> dict[str, Tensor]:
        own = self.blocks()[index].state_dict()
        return {_neutral(name): value for name, value in own.items() if not name.startswith("shortcut.")}

    def patch_stride(self) -> int:
        return int(self.model.vision_encoder.backbone.patch_embed.projection.stride[0])

    def stage_starts(self) -> tuple[int, ...]:
        return (0, *(end + 1 for end in self.model.vision_encoder.backbone.stage_ends[:-1]))

    def image_size(self) -> int:
        size = self.model.config.vision_config.backbone_config.image_size
        return int(size[0] if isinstance(size, (list, tuple)) else size)

    def mask_side(self) -> int:
        return self.image_size() // 4

    def frame_side(self) -> int:
        return int(self.image_size() // self.model.config.prompt_encoder_config.patch_size)

    def bank_size(self) -> int:
        return int(self.model.num_maskmem)

    def pointers(self) -> int:
        per_frame = self.model.hidden_dim // self.model.mem_dim
        return int(self.model.config.max_object_pointers_in_encoder) * per_frame

    def memory_channels(self) -> int:
        return int(self.model.mem_dim)

    def memory_horizon(self) -> int:
        config = self.model.config
        return max(self.model.num_maskmem, config.max_object_pointers_in_encoder) - 1

    def image_encoder(self) -> nn.Module:
        return self.model.vision_encoder

    def prompt_encoder(self) -> nn.Module:
        return self.model.prompt_encoder

    def memory_encoder(self) -> nn.Module:
        return self.model.memory_encoder

    def memory_attention(self) -> nn.Module:
        return self.model.memory_attention

    def run_memory_attention(self, current: Tensor, memory: Tensor, pointers: int) -> Tensor:
        return self.model.memory_attention(
            current_vision_features=current,
            current_vision_position_embeddings=torch.zeros_like(current),
            memory=memory,
            memory_posision_embeddings=torch.zeros_like(memory),
            num_object_pointer_tokens=pointers,
        )

    def cross_attentions(self) -> list[nn.Module]:
        return [layer.cross_attn_image for layer in self.model.memory_attention.layers]

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

    def self_attentions(self) -> list[nn.Module]:
        return [layer.self_attn for layer in self.model.memory_attention.layers]

    def token_to_image(self) -> list[nn.Module]:
        transformer = self.model.mask_decoder.transformer
        return [
            *(layer.cross_attn_token_to_image for layer in transformer.layers),
            transformer.final_attn_token_to_image,
        ]

    def decoder_projections(self, module: nn.Module) -> tuple[nn.Module, nn.Module, int]:
        attention: Any = module
        return attention.q_proj, attention.k_proj, attention.num_attention_heads

    def mask_decoder(self) -> nn.Module:
        return self.model.mask_decoder

    def decoder_calls(self) -> list[nn.Module]:
        decoder = self.model.mask_decoder
        return [decoder, decoder.conv_s0, decoder.conv_s1]

    def stride16_of(self, output: Any) -> Tensor:
        found: Tensor = output.fpn_hidden_states[-1]
        return found.flatten(2).permute(2, 0, 1)

    def base_id(self) -> tuple[str | None, str | None]:
        config = self.model.config
        name = getattr(config, "_name_or_path", None) or None
        # A folder of this machine means nothing elsewhere.
        return (None, None) if name is None or Path(name).exists() else (name, getattr(config, "_commit_hash", None))


def _of_library(model: object) -> bool:
    return any(base.__module__.split(".")[0] == "transformers" for base in type(model).__mro__)


def _neutral(name: str) -> str:
    """`layer_norm1.weight` -> `norm1.weight` and so on; names both hosts share pass through."""
    for own, neutral in _NEUTRAL_NAMES:
        if name.startswith(own):
            return neutral + name.removeprefix(own)
    return name

"""`transformers`: what its video trackers have in common, all but the image encoder. Their code is generated from one
source, and their classes are not subclasses of each other."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from surgery.core.host import HostView
from surgery.core.parts import ATTENTION, DECODER
from surgery.core.patching import Patched, host_class
from surgery.core.session import SessionHandle, VideoState
from surgery.hosts.transformers.modules import (
    TransformersAttention,
    TransformersMaskDecoder,
    TransformersMemoryAttention,
    TransformersTokenToImage,
)
from surgery.hosts.transformers.session import STATE_KEY, TransformersSession

TRACKER_SEAMS: Mapping[str, type[Patched]] = {
    "self_attention": TransformersAttention,
    "cross_attention": TransformersAttention,
    "token_to_image": TransformersTokenToImage,
    ATTENTION: TransformersMemoryAttention,
    DECODER: TransformersMaskDecoder,
}
"""The classes put in front of the modules that are the same in all of them."""


class TrackerView(HostView):
    """A video tracker of the library. tracker: the model that has memory attention and mask decoder."""

    neutral_names: ClassVar[tuple[tuple[str, str], ...]] = ()
    """Where names of a block's parameters differ from the neutral ones, which are those of stock `sam2`."""

    @property
    def tracker(self) -> Any:
        """The model itself, unless it is within another one."""
        return self.model

    def sessions_of(self, state: VideoState, home: Any) -> list[SessionHandle]:
        session = home()
        held = session is not None and vars(session).get(STATE_KEY) is state
        return [TransformersSession(session)] if held else []

    @contextmanager
    def counting(self) -> Iterator[None]:
        """Position codes lie in caches of the library's methods, by shape, for all models."""
        try:
            yield
        finally:
            for kind in {host_class(module) for module in self.model.modules()}:
                for method in vars(kind).values():
                    for cell in getattr(getattr(method, "__func__", method), "__closure__", None) or ():
                        if hasattr(cell.cell_contents, "cache_clear"):
                            cell.cell_contents.cache_clear()

    def block_tensors(self, index: int) -> dict[str, Tensor]:
        own = self.blocks()[index].state_dict()
        return {self._neutral(name): value for name, value in own.items() if not name.startswith("shortcut.")}

    def _neutral(self, name: str) -> str:
        """`layer_norm1.weight` -> `norm1.weight` and so on; names both hosts share pass through."""
        for own, neutral in self.neutral_names:
            if name.startswith(own):
                return neutral + name.removeprefix(own)
        return name

    def frame_side(self) -> int:
        prompts = self.tracker.config.prompt_encoder_config
        return int(self.image_size() // prompts.patch_size)

    def mask_side(self) -> int:
        return 4 * self.frame_side()

    def bank_size(self) -> int:
        return int(self.tracker.num_maskmem)

    def pointers(self) -> int:
        per_frame = self.tracker.hidden_dim // self.tracker.mem_dim
        return int(self.tracker.config.max_object_pointers_in_encoder) * per_frame

    def memory_channels(self) -> int:
        return int(self.tracker.mem_dim)

    def memory_horizon(self) -> int:
        config = self.tracker.config
        return max(self.tracker.num_maskmem, config.max_object_pointers_in_encoder) - 1

    def image_encoder(self) -> nn.Module:
        return self.tracker.vision_encoder

    def prompt_encoder(self) -> nn.Module:
        return self.tracker.prompt_encoder

    def memory_encoder(self) -> nn.Module:
        return self.tracker.memory_encoder

    def memory_attention(self) -> nn.Module:
        return self.tracker.memory_attention

    def run_memory_attention(self, current: Tensor, memory: Tensor, pointers: int) -> Tensor:
        return self.tracker.memory_attention(
            current_vision_features=current,
            current_vision_position_embeddings=torch.zeros_like(current),
            memory=memory,
            memory_posision_embeddings=torch.zeros_like(memory),
            num_object_pointer_tokens=pointers,
        )

    def cross_attentions(self) -> list[nn.Module]:
        return [layer.cross_attn_image for layer in self.tracker.memory_attention.layers]

    def self_attentions(self) -> list[nn.Module]:
        return [layer.self_attn for layer in self.tracker.memory_attention.layers]

    def token_to_image(self) -> list[nn.Module]:
        transformer = self.tracker.mask_decoder.transformer
        return [
            *(layer.cross_attn_token_to_image for layer in transformer.layers),
            transformer.final_attn_token_to_image,
        ]

    def decoder_projections(self, module: nn.Module) -> tuple[nn.Module, nn.Module, int]:
        attention: Any = module
        return attention.q_proj, attention.k_proj, attention.num_attention_heads

    def mask_decoder(self) -> nn.Module:
        return self.tracker.mask_decoder

    def decoder_calls(self) -> list[nn.Module]:
        decoder = self.tracker.mask_decoder
        return [decoder, decoder.conv_s0, decoder.conv_s1]

    def base_id(self) -> tuple[str | None, str | None]:
        config = self.model.config
        name = getattr(config, "_name_or_path", None) or None
        # A folder of this machine means nothing elsewhere.
        return (None, None) if name is None or Path(name).exists() else (name, getattr(config, "_commit_hash", None))


def of_library(model: object) -> bool:
    """Whether a class of `transformers` is among those of `model`."""
    return any(base.__module__.split(".")[0] == "transformers" for base in type(model).__mro__)


def is_a(model: object, name: str) -> bool:
    """Whether `model` is of the library's class of this name, which early releases may not have."""
    if not of_library(model):
        return False
    import transformers

    kind = getattr(transformers, name, None)
    return kind is not None and isinstance(model, kind)


def square(size: Sequence[int] | int) -> int:
    """The side of what a configuration gives as a side or as two."""
    return int(size[0]) if isinstance(size, Sequence) else size

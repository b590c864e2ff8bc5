"""What SAM 2's trackers are in any host: their memory, their mask decoder, and Hiera where it is their encoder."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from surgery.core.host import BlockInfo, HostView
from surgery.errors import UnsupportedModelError
from surgery.hosts.sam21.names import Names


class TrackerView(HostView):
    """A video tracker. tracker: the model that has memory attention and mask decoder.

    kind: of the model, the class with its module; has: what it must have besides. names: see `Names`. neutral_names:
    where names of a block's parameters differ from the neutral ones, which are those of stock `sam2`.
    """

    kind: ClassVar[str]
    has: ClassVar[str | None] = None
    names: ClassVar[Names]
    neutral_names: ClassVar[tuple[tuple[str, str], ...]] = ()

    @classmethod
    def matches(cls, model: object) -> bool:
        return is_a(model, cls.kind) and (cls.has is None or getattr(model, cls.has, None) is not None)

    @property
    def tracker(self) -> Any:
        """The model itself, unless it is within another one."""
        return self.model

    @abstractmethod
    def memory_stride(self) -> int:
        """Frames between two memories that are read."""

    @abstractmethod
    def pointer_frames(self) -> int:
        """How many frames' object pointers are read at most."""

    @abstractmethod
    def backbone(self) -> Any:
        """The image encoder without its neck."""

    def _blocks(self, name: str, beside: str, expected: str) -> list[nn.Module]:
        """The backbone's own, called `name`; it has something called `beside` too. Raises UnsupportedModelError."""
        backbone = self.backbone()
        if not hasattr(backbone, name) or not hasattr(backbone, beside):
            raise UnsupportedModelError(
                f"the image encoder is made of a {type(backbone).__name__}; expected {expected}, whose windowed {name} "
                "are what window routing acts on (recipe memory-only needs none)"
            )
        return list(getattr(backbone, name))

    def block_tensors(self, index: int) -> dict[str, Tensor]:
        own = self.blocks()[index].state_dict()
        return {self._neutral(name): value for name, value in own.items() if not name.startswith("shortcut.")}

    def _neutral(self, name: str) -> str:
        """`layer_norm1.weight` -> `norm1.weight` and so on; names both hosts share pass through."""
        for own, neutral in self.neutral_names:
            if name.startswith(own):
                return neutral + name.removeprefix(own)
        return name

    def mask_side(self) -> int:
        return 4 * self.frame_side()

    def bank_size(self) -> int:
        return int(self.tracker.num_maskmem)

    def pointers(self) -> int:
        return self.pointer_frames() * (self.tracker.hidden_dim // self.tracker.mem_dim)

    def memory_channels(self) -> int:
        return int(self.tracker.mem_dim)

    def memory_horizon(self) -> int:
        return max(1 + self.memory_stride() * (self.bank_size() - 2), self.pointer_frames() - 1)

    def memory_encoder(self) -> nn.Module:
        return self.tracker.memory_encoder

    def memory_attention(self) -> nn.Module:
        return self.tracker.memory_attention

    def run_memory_attention(self, current: Tensor, memory: Tensor, pointers: int) -> Tensor:
        given = (current, memory, torch.zeros_like(current), torch.zeros_like(memory), pointers)
        return self.tracker.memory_attention(**dict(zip(self.names.memory, given, strict=True)))

    def cross_attentions(self) -> list[nn.Module]:
        return [layer.cross_attn_image for layer in self.tracker.memory_attention.layers]

    def self_attentions(self) -> list[nn.Module]:
        return [layer.self_attn for layer in self.tracker.memory_attention.layers]

    def token_to_image(self) -> list[nn.Module]:
        decoder: Any = self.mask_decoder()
        own = [layer.cross_attn_token_to_image for layer in decoder.transformer.layers]
        return [*own, decoder.transformer.final_attn_token_to_image]

    def decoder_projections(self, module: nn.Module) -> tuple[nn.Module, nn.Module, int]:
        found = self.names.projections(module)
        return found.query, found.key, found.heads

    def decoder_calls(self) -> list[nn.Module]:
        decoder: Any = self.mask_decoder()
        return [decoder, *(getattr(decoder, name) for name in ("conv_s0", "conv_s1") if hasattr(decoder, name))]

    def base_id(self) -> tuple[str | None, str | None]:
        return None, None


class HieraView(TrackerView):
    """A tracker behind Hiera."""

    def blocks(self) -> Sequence[nn.Module]:
        return self._blocks("blocks", "stage_ends", "Hiera")

    def block_info(self, index: int) -> BlockInfo:
        block: Any = self.blocks()[index]
        heads, pools = getattr(block.attn, self.names.heads), bool(getattr(block, self.names.stride))
        return BlockInfo(index, block.dim_out, heads, block.window_size, pools)

    def stage_starts(self) -> tuple[int, ...]:
        return (0, *(end + 1 for end in self.backbone().stage_ends[:-1]))


def is_a(model: object, kind: str) -> bool:
    """Whether `model` is of the class of this name, its module included; nothing is imported for it."""
    return any(f"{base.__module__}.{base.__name__}" == kind for base in type(model).__mro__)


def of_library(model: object, library: str) -> bool:
    """Whether a class of the library is among those of `model`."""
    return any(base.__module__.split(".")[0] == library for base in type(model).__mro__)

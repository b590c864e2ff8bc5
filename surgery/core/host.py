"""What a model family must tell, and nothing it need not: where its parts are, and what gives them seams."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from torch import Tensor, nn

from surgery.core.driver import Driver, FrameSource
from surgery.core.loader import Loader
from surgery.core.parts import LINEAR_PARTS, PARTS, Part
from surgery.core.patching import Patched, host_class
from surgery.core.pictures import PictureDriver
from surgery.errors import UnsupportedModelError

if TYPE_CHECKING:
    from surgery.core.session import SessionHandle, VideoState


@dataclass(frozen=True)
class BlockInfo:
    """One encoder block. window: side in tokens, 0 for global attention. pools: halves the map."""

    index: int
    dim: int
    heads: int
    window: int
    pools: bool


class HostView(ABC):
    """One model seen through its host.

    name: of the host. models: the class it is for, as a user knows it. family: of models, the same in every host, by
    which recipes and adapters say what they are for. driver: how it is given a video. loader: how it comes to be. root:
    of the model itself, whose methods are the seams of a frame. seams: the class put in front of the modules of each
    seam.
    cannot: ways of half precision that a whole model does not run in ("weights": converted; "fp16", "bf16"), each with
    why and what to use instead. pictures: how it is given a single picture, None where it cannot be. video: False for
    models of pictures alone, which only operations that are `for_pictures` take.
    """

    name: ClassVar[str]
    models: ClassVar[str]
    family: ClassVar[str] = "SAM 2"
    driver: ClassVar[type[Driver]]
    loader: ClassVar[Loader]
    cannot: ClassVar[Mapping[str, str]] = {}
    pictures: ClassVar[type[PictureDriver] | None] = None
    video: ClassVar[bool] = True
    root: ClassVar[type[Patched]]
    seams: ClassVar[Mapping[str, type[Patched]]]

    def __init__(self, model: nn.Module) -> None:
        self.model: Any = model

    @classmethod
    @abstractmethod
    def matches(cls, model: object) -> bool:
        """Whether `model` is a video model of this host: exactly its own. Imports the library only for its models."""

    @classmethod
    def near_miss(cls, model: object) -> str | None:
        """What a model that no host matches lacks to be one of this host; None where it is nothing like one."""
        return None

    def within(self) -> Sequence[tuple[nn.Module, type[Patched]]]:
        """Modules besides the model itself whose methods are seams of a frame, with the class in front of each."""
        return ()

    def reads_everywhere(self) -> str | None:
        """Why the encoder's windows must all be computed on every frame, where they must."""
        return None

    def counting(self) -> AbstractContextManager[None]:
        """Around a run on tensors without values: what the library keeps of it outside of modules is gone after."""
        return nullcontext()

    def drive(self, frames: FrameSource, size: tuple[int, int]) -> Driver:
        """Open a session for a video, see `Driver`."""
        return self.driver(self, frames, size)

    def picture_driver(self) -> PictureDriver:
        """Single pictures through the model. Raises UnsupportedModelError: this host has no way for them."""
        if self.pictures is None:
            raise UnsupportedModelError(f"host {self.name} takes no single pictures; segment_everything needs that")
        return self.pictures(self)

    @abstractmethod
    def sessions_of(self, state: VideoState, home: Any) -> list[SessionHandle]:
        """The live sessions that hold `state`: one, more where a session was copied shallowly. home: a weak reference
        to its session, where the host's session takes one."""

    def modules(self, seam: str) -> Sequence[nn.Module]:
        """The modules of a seam in order, see `surgery.core.seams`; empty where the host has none."""
        found: dict[str, Any] = {
            "block": self.blocks,
            "cross_attention": self.cross_attentions,
            "self_attention": self.self_attentions,
            "linear": lambda: [layer for part in LINEAR_PARTS for layer in self.linear_layers(part).values()],
            "token_to_image": self.token_to_image,
        }
        if seam in found:
            return found[seam]()
        kinds, parts = self.seam_classes().get(seam, {}), (self.image_encoder(), self.memory_attention())
        return [module for part in parts for module in part.modules() if host_class(module) in kinds]

    def linear_layers(self, part: Part) -> dict[str, nn.Linear]:
        """The `nn.Linear` of a part by `neutral_path`, without those that operations added."""
        inside = {id(module) for module in self.parts()[part].modules() if host_class(module) is nn.Linear}
        return {
            self.neutral_path(path): module
            for path, module in self.model.named_modules()
            if id(module) in inside and ".shortcut." not in path
        }

    def seam_classes(self) -> Mapping[str, Mapping[type, type[Patched]]]:
        """For seams at every module of some classes ("code", "strip", "product"): class of the host, class in front.

        "product": attentions of the encoder that compute what nobody reads; the class in front does not, and that is
        all.
        """
        return {}

    def neutral_path(self, path: str) -> str:
        """Path of a layer in the model -> the same in every host: that of stock `sam2`, where it has the layer."""
        return path

    @abstractmethod
    def blocks(self) -> Sequence[nn.Module]:
        """Encoder blocks in order."""

    @abstractmethod
    def block_info(self, index: int) -> BlockInfo:
        """Structure of block `index`."""

    @abstractmethod
    def block_tensors(self, index: int) -> dict[str, Tensor]:
        """Weights of block `index` under host-neutral (stock sam2) names."""

    @abstractmethod
    def patch_stride(self) -> int:
        """Pixels per token at block 0."""

    @abstractmethod
    def stage_starts(self) -> tuple[int, ...]:
        """Index of the first block of every stage."""

    @abstractmethod
    def image_size(self) -> int:
        """Side of the square input, pixels."""

    @abstractmethod
    def mask_side(self) -> int:
        """Side of the low-resolution masks that the decoder gives, pixels."""

    @abstractmethod
    def frame_side(self) -> int:
        """Side of a frame's token map in memory attention: of its queries, and of the keys of one memory frame."""

    def frame_tokens(self) -> int:
        """Tokens of that map."""
        return self.frame_side() ** 2

    @abstractmethod
    def bank_size(self) -> int:
        """Frames of a full memory bank, one conditioning frame included."""

    @abstractmethod
    def pointers(self) -> int:
        """Rows of object pointers of a full memory bank."""

    @abstractmethod
    def memory_channels(self) -> int:
        """Channels of a memory token."""

    @abstractmethod
    def memory_horizon(self) -> int:
        """How many frames back memory attention may read a tracked frame: its memory or its object pointer."""

    @abstractmethod
    def image_encoder(self) -> nn.Module:
        """Pixels [1, 3, S, S] to feature levels, neck included."""

    def parts(self) -> dict[Part, nn.Module]:
        """The parts that `precision` and `compile` act on, by their names in a recipe."""
        modules = (self.image_encoder(), self.memory_attention(), self.memory_encoder(), self.mask_decoder())
        return dict(zip(PARTS, modules, strict=True))

    @abstractmethod
    def prompt_encoder(self) -> nn.Module:
        """The prompt encoder."""

    @abstractmethod
    def memory_encoder(self) -> nn.Module:
        """The memory encoder."""

    @abstractmethod
    def memory_attention(self) -> nn.Module:
        """The memory attention module."""

    @abstractmethod
    def run_memory_attention(self, current: Tensor, memory: Tensor, pointers: int) -> Tensor:
        """Call memory attention as the host does, with zero positions: current [T, 1, C], memory [M, 1, D]."""

    @abstractmethod
    def cross_attentions(self) -> list[nn.Module]:
        """The cross-attention of every memory attention layer, in order."""

    @abstractmethod
    def self_attentions(self) -> list[nn.Module]:
        """The self-attention of every memory attention layer, in order."""

    @abstractmethod
    def token_to_image(self) -> list[nn.Module]:
        """The decoder's token-to-image attentions, in order, the final one last."""

    @abstractmethod
    def decoder_projections(self, module: nn.Module) -> tuple[nn.Module, nn.Module, int]:
        """Query projection, key projection and head count of a token-to-image attention."""

    @abstractmethod
    def mask_decoder(self) -> nn.Module:
        """The mask decoder. It takes the conditioned features as `image_embeddings` [B, C, h, w]; masks come first."""

    def decoder_calls(self) -> list[nn.Module]:
        """The mask decoder, and those of its modules that the host calls by themselves."""
        return [self.mask_decoder()]

    @abstractmethod
    def stride16_of(self, output: Any) -> Tensor:
        """What the encoder returned -> its stride-16 feature as memory attention takes it, [T, 1, C]."""

    @abstractmethod
    def base_id(self) -> tuple[str | None, str | None]:
        """Hub id (or path) and revision of the model, where the host knows them."""


def finite(tensor: Tensor) -> bool:
    """Whether every element is finite."""
    return bool(torch.isfinite(tensor).all())

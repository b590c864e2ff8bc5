"""How one picture goes through a model by the host's own calls: features and prompts in, the host's records out."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from surgery.core.attention import Projections
from surgery.errors import PictureError

if TYPE_CHECKING:
    from surgery.core.host import HostView

MOST_PIXELS = 200_000_000


@dataclass(frozen=True)
class Filters:
    """What the host's own generator keeps. iou, stability: the least predicted IoU (exclusive) and stability.
    inclusive: whether a mask exactly as stable is kept. offset: of the logits, for stability. nms: largest IoU of the
    boxes of two masks."""

    iou: float
    stability: float
    inclusive: bool
    offset: float = 1.0
    nms: float = 0.7


@dataclass(frozen=True, eq=False)
class Picture:
    """An encoded picture. size: (height, width) in pixels. embedding: [1, C, h, w], stride 16, with what the prompt
    encoder adds where no mask is given. fine: strides 4 and 8, as the decoder takes them. positions: [1, C, h, w]."""

    size: tuple[int, int]
    embedding: Tensor
    fine: tuple[Tensor, Tensor]
    positions: Tensor


@dataclass(frozen=True, eq=False)
class Points:
    """Point prompts. pixels: [n, 2] (x, y) in the picture, as records name them; inputs: the same as the model takes
    them, on a side of the model's input."""

    pixels: Tensor
    inputs: Tensor


class Ranked:
    """Masks with a predicted IoU and a stability each, [n]."""

    scores: Tensor
    stability: Tensor

    @property
    def worth(self) -> Tensor:
        """Score x stability, [n]."""
        return self.scores * self.stability.nan_to_num()


@dataclass(frozen=True, eq=False)
class Found(Ranked):
    """Masks of a picture, best first. masks: bool [n, H, W]. scores: predicted IoU [n]. stability: [n]. boxes: [n, 4],
    first and last column and row. points: [n, 2] of the prompts in pixels: a point, or the middle of a box."""

    masks: Tensor
    scores: Tensor
    stability: Tensor
    boxes: Tensor
    points: Tensor


@dataclass(frozen=True, eq=False)
class TwoWayLayer:
    """A layer of the two-way transformer. to_image: tokens look at the image; to_tokens: the image at the tokens.
    norms: in the order in which they run. coded: the self-attention adds the tokens' codes, and adds to its input."""

    self_attention: Projections
    to_image: Projections
    to_tokens: Projections
    norms: tuple[nn.Module, nn.Module, nn.Module, nn.Module]
    mlp: nn.Module
    coded: bool


@dataclass(frozen=True, eq=False)
class DecoderParts:
    """What a mask decoder is made of.

    tokens: its own [n, C], those of the masks last, that of the predicted IoU before them. masks: how many. transform:
    the host's transformer on (image [B, C, h, w], positions [1, C, h, w], tokens [B, N, C]) -> tokens [B, N, C] and
    image [B, T, C]. upscaled: image [B, C, h, w] and features of strides 4 and 8 -> [B, c, 4h, 4w]. hyper: of every
    mask token, [B, C] -> [B, c]. iou: [B, C] -> [B, masks]. single: masks [B, n, h, w] and scores [B, n] -> the one the
    host would give where one is asked for.
    """

    tokens: Tensor
    masks: int
    layers: Sequence[TwoWayLayer]
    final: Projections
    final_norm: nn.Module
    transform: Callable[[Tensor, Tensor, Tensor], tuple[Tensor, Tensor]]
    upscaled: Callable[[Tensor, Tensor, Tensor], Tensor]
    hyper: Sequence[nn.Module]
    iou: nn.Module
    single: Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]

    def with_prompts(self, sparse: Tensor) -> Tensor:
        """The tokens of B prompts, [B, N, C]. sparse: of the prompts, [B, p, C]."""
        own = self.tokens[None].expand(len(sparse), -1, -1)
        return torch.cat((own, sparse), 1).to(self.tokens.dtype)

    def of_masks(self, tokens: Tensor) -> Tensor:
        """Those of the masks, [B, masks, C]."""
        return tokens[:, len(self.tokens) - self.masks : len(self.tokens)]

    def scores(self, tokens: Tensor) -> Tensor:
        """Predicted IoU of all masks, [B, masks]."""
        return self.iou(tokens[:, len(self.tokens) - self.masks - 1])

    def logits(self, tokens: Tensor, upscaled: Tensor) -> Tensor:
        """All masks, [B, masks, h, w]. upscaled: [B, c, h, w]."""
        of_masks = self.of_masks(tokens)
        weights = torch.stack([head(of_masks[:, place]) for place, head in enumerate(self.hyper)], 1)
        count, channels, height, width = upscaled.shape
        return (weights @ upscaled.view(count, channels, height * width)).view(count, self.masks, height, width)


class PictureDriver(ABC):
    """Pictures through one model. filters: of the host's own generator."""

    filters: ClassVar[Filters]

    def __init__(self, view: HostView) -> None:
        self.view, self.model = view, view.model

    @abstractmethod
    def encode(self, image: npt.NDArray[np.uint8]) -> Picture:
        """RGB [H, W, 3], prepared and encoded as the host's generator does."""

    @abstractmethod
    def grid(self, side: int, picture: Picture) -> Points:
        """The host's own grid of side * side points."""

    @abstractmethod
    def point_prompts(self, points: Tensor) -> Tensor:
        """One foreground point a prompt, [B, 2] on the model's input -> tokens [B, p, C]."""

    @abstractmethod
    def box_prompts(self, boxes: Tensor) -> Tensor:
        """The same of boxes [B, 4] (x0, y0, x1, y1)."""

    @abstractmethod
    def decoder(self) -> DecoderParts:
        """The mask decoder taken apart."""

    @abstractmethod
    def channels(self) -> tuple[int, int, int]:
        """Of the features of strides 4, 8 and 16 that the decoder is given."""

    @abstractmethod
    def tensors(self) -> dict[str, Tensor]:
        """Weights of encoder, prompt encoder and mask decoder under host-neutral names, nothing of the surgery's."""

    def _own(self, *parts: str) -> dict[str, Tensor]:
        """State dict of these attributes of the model, without what the surgery added."""
        return {
            name: tensor
            for name, tensor in self.model.state_dict().items()
            if name.split(".")[0] in parts and not {*name.split(".")} & {*ADDED}
        }

    @abstractmethod
    def records(self, found: Found, size: tuple[int, int]) -> Any:
        """What the host's own generator returns."""


ADDED = ("shortcut", "proposals")
"""What the surgery adds to modules is called so."""


def rgb(image: Any) -> npt.NDArray[np.uint8]:
    """A picture as uint8 RGB [H, W, 3].

    Args:
        image: a PIL image of any mode, or an array: uint8 or bool [H, W], [H, W, 1], [H, W, 3] or [H, W, 4] (alpha is
            dropped), or the same in floats of 0 to 1.

    Raises:
        PictureError: none of these, not finite, empty, or of more than 200 million pixels.
    """
    array = np.asarray(image.convert("RGB") if hasattr(image, "convert") else image)
    if array.ndim == 2:
        array = array[..., None]
    if array.ndim != 3 or array.shape[2] not in (1, 3, 4) or 0 in array.shape:
        raise PictureError(
            f"a picture of shape {np.shape(array)}; expected [H, W], [H, W, 1], [H, W, 3] or [H, W, 4], or a PIL image"
        )
    if array.shape[0] * array.shape[1] > MOST_PIXELS:
        raise PictureError(f"a picture of {array.shape[1]} x {array.shape[0]} pixels; expected {MOST_PIXELS} at most")
    if array.dtype == np.bool_:
        array = array.astype(np.uint8) * 255
    elif np.issubdtype(array.dtype, np.floating):
        low, high = float(array.min()), float(array.max())
        if not (low >= 0.0 and high <= 1.0):
            raise PictureError(f"a picture of floats from {low:g} to {high:g}; expected 0 to 1, or uint8 of 0 to 255")
        array = np.round(array * 255.0).astype(np.uint8)
    elif array.dtype != np.uint8:
        raise PictureError(f"a picture of {array.dtype}; expected uint8 of 0 to 255, or floats of 0 to 1")
    array = array[..., :3] if array.shape[2] >= 3 else array.repeat(3, 2)
    return np.ascontiguousarray(array)

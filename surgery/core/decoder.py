"""The mask decoder taken apart, by names that all hosts share: for many prompts of one picture."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from surgery.core.attention import Projections


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
        out: Tensor = self.iou(tokens[:, len(self.tokens) - self.masks - 1])
        return out

    def logits(self, tokens: Tensor, upscaled: Tensor) -> Tensor:
        """All masks, [B, masks, h, w]. upscaled: [B, c, h, w]."""
        of_masks = self.of_masks(tokens)
        weights = torch.stack([head(of_masks[:, place]) for place, head in enumerate(self.hyper)], 1)
        count, channels, height, width = upscaled.shape
        return (weights @ upscaled.view(count, channels, height * width)).view(count, self.masks, height, width)

"""The proposal head: where objects are and how large, from features that the decoder is given anyway."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from surgery.core.pictures import Picture
from surgery.operations.segment_everything.filters import best_of_each

STRIDES = (4, 8, 16)
REACH = 12.0
"""A level is for boxes of a side (root of the area) of so many strides at most; the last one for all larger ones."""
MOST_RANKED = 2000
"""Places whose boxes compete: the best by objectness."""
_RARE = 0.01


class Level(NamedTuple):
    """What the head says at one stride. objectness: logits [1, h, w]. sides: distances to the left, upper, right and
    lower side, pixels of the model's input, [4, h, w]."""

    stride: int
    objectness: Tensor
    sides: Tensor

    def centers(self) -> Tensor:
        """[h * w, 2] (x, y), pixels of the model's input."""
        height, width = self.objectness.shape[-2:]
        rows, columns = torch.meshgrid(
            torch.arange(height, device=self.sides.device), torch.arange(width, device=self.sides.device), indexing="ij"
        )
        return (torch.stack([columns, rows], -1).reshape(-1, 2) + 0.5) * self.stride

    def boxes(self) -> Tensor:
        """[h * w, 4] (x0, y0, x1, y1)."""
        centers, sides = self.centers(), self.sides.flatten(1).t()
        return torch.cat([centers - sides[:, :2], centers + sides[:, 2:]], 1)


class _Tower(nn.Sequential):
    """Twice: a depthwise 5 x 5 and a pointwise convolution."""

    def __init__(self, width: int) -> None:
        super().__init__()
        for _ in range(2):
            self.append(nn.Conv2d(width, width, 5, padding=2, groups=width))
            self.append(nn.Conv2d(width, width, 1))
            self.append(nn.GroupNorm(8, width))
            self.append(nn.ReLU())


class ProposalHead(nn.Module):
    """Objectness and boxes at strides 4, 8 and 16.

    Args:
        channels: of the features at these strides.
        width: of the head; 64 makes about 70 thousand parameters.
    """

    def __init__(self, channels: Sequence[int], width: int = 64) -> None:
        super().__init__()
        self.inputs = nn.ModuleList(nn.Conv2d(each, width, 1) for each in channels)
        self.towers = nn.ModuleList(_Tower(width) for _ in channels)
        self.output = nn.Conv2d(width, 5, 3, padding=1)
        self.scales = nn.Parameter(torch.zeros(len(channels)))

        nn.init.zeros_(self.output.weight)

    @property
    def fitted(self) -> bool:
        """Whether it has ever been fitted: one that was not says the same everywhere."""
        return bool(self.output.weight.any())

    def reset_parameters(self, generator: torch.Generator | None = None) -> None:
        """Start anew: nothing is an object."""
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                bound = 1 / math.sqrt(module.weight[0].numel())
                nn.init.uniform_(module.weight, -bound, bound, generator=generator)
                nn.init.zeros_(module.bias)  # type: ignore[arg-type]
            elif isinstance(module, nn.GroupNorm):
                module.reset_parameters()
        nn.init.zeros_(self.scales)
        with torch.no_grad():
            self.output.bias[0] = math.log(_RARE / (1 - _RARE))  # type: ignore[index]

    def forward(self, features: Sequence[Tensor]) -> list[list[Level]]:
        """Features [B, c, h, w] at strides 4, 8 and 16 -> for every picture its levels."""
        found: list[list[Level]] = [[] for _ in features[0]]
        above: Tensor | None = None
        for place in reversed(range(len(STRIDES))):
            stride = STRIDES[place]
            mixed = self.inputs[place](features[place])
            if above is not None:
                mixed = mixed + F.interpolate(above, scale_factor=2.0, mode="nearest")
            above = self.towers[place](mixed)
            out = self.output(above)
            sides = (out[:, 1:] + self.scales[place]).clamp(-8, 8).exp() * (stride * 4)
            for levels, objectness, distances in zip(found, out[:, :1], sides, strict=True):
                levels.insert(0, Level(stride, objectness, distances))
        return found


def features_of(picture: Picture) -> tuple[Tensor, Tensor, Tensor]:
    """What the head is given, fp32, strides 4, 8 and 16."""
    stride4, stride8 = picture.fine
    return stride4.float(), stride8.float(), picture.embedding.float()


def proposals(levels: Sequence[Level], side: int, most: int, nms: float, least: float) -> tuple[Tensor, Tensor]:
    """Boxes [n, 4] on the model's input and their objectness [n], best first.

    Args:
        side: of the model's input, pixels.
        most: boxes at most.
        nms: largest IoU of two of them.
        least: objectness, 0 to 1.
    """
    scores = torch.cat([level.objectness.flatten() for level in levels]).float().sigmoid()
    boxes = torch.cat([level.boxes() for level in levels]).float().clamp(0, side)
    sizes = (boxes[:, 2:] - boxes[:, :2]).amin(1)
    (places,) = ((scores >= least) & (sizes >= 1)).nonzero(as_tuple=True)
    places = places[scores[places].argsort(descending=True, stable=True)[:MOST_RANKED]]
    kept = places[best_of_each(boxes[places], scores[places], nms)[:most]]
    return boxes[kept], scores[kept]

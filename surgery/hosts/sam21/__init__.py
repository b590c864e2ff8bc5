"""What SAM 2.1 is in any host: its released sizes, how it takes a picture, and random weights for it."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from PIL import Image
from torch import Tensor

_MEAN, _STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
_SCORE = "sam_mask_decoder.pred_obj_score_head.layers.2.bias"
_HEADS = re.compile(r"sam_mask_decoder\.output_hypernetworks_mlps\.\d\.layers\.2\.")


HUB = "facebook/sam2.1-hiera-"
"""Released sizes are on the Hub under this and their name."""


@dataclass(frozen=True)
class Sam21:
    """The sizes of a SAM 2.1 video model.

    name: of a released one, "" for others. width, heads: of stage 1 of the encoder, doubled by every stage. blocks,
    windows: by stage. background: side of the encoder's position embedding. side: of the input, pixels. hidden:
    channels outside the encoder. layers, mlp: of memory attention.
    """

    name: str
    width: int
    heads: int
    blocks: tuple[int, ...]
    global_blocks: tuple[int, ...]
    windows: tuple[int, ...]
    background: int = 7
    side: int = 1024
    hidden: int = 256
    layers: int = 4
    mlp: int = 2048

    @property
    def widths(self) -> list[int]:
        """Channels by stage."""
        return [self.width << stage for stage in range(4)]

    @property
    def grid(self) -> int:
        """Side of the token map of memory attention."""
        return self.side // 16


SIZES = {
    size.name: size
    for size in (
        Sam21("tiny", 96, 1, (1, 2, 7, 2), (5, 7, 9), (8, 4, 14, 7)),
        Sam21("small", 96, 1, (1, 2, 11, 2), (7, 10, 13), (8, 4, 14, 7)),
        Sam21("base-plus", 112, 2, (2, 3, 16, 3), (12, 16, 20), (8, 4, 14, 7), 14),
        Sam21("large", 144, 2, (2, 6, 36, 4), (23, 33, 43), (8, 4, 16, 8)),
    )
}


def normalised(
    frame: npt.NDArray[np.uint8], size: int, how: Image.Resampling, mean: Sequence[float], std: Sequence[float]
) -> Tensor:
    """RGB uint8 [H, W, 3] -> fp32 [3, size, size], resized by PIL as `how` says, less `mean`, over `std`."""
    resized = np.asarray(Image.fromarray(frame).resize((size, size), how), dtype=np.float32) / 255.0
    found = (resized - np.array(mean, dtype=np.float32)) / np.array(std, dtype=np.float32)
    return torch.from_numpy(found.transpose(2, 0, 1).copy())


def pixels_of(frame: npt.NDArray[np.uint8], size: int) -> Tensor:
    """RGB uint8 [H, W, 3] -> normalised fp32 [3, size, size], resized as stock `sam2` does (PIL, bicubic)."""
    return normalised(frame, size, Image.Resampling.BICUBIC, _MEAN, _STD)


def random_weights(shapes: Mapping[str, Sequence[int]]) -> dict[str, Tensor]:
    """Weights by neutral name, drawn by name and shape alone, so that all hosts get the same: fp32 on the CPU.

    Products and convolutions keep the scale of their input, norms start as the identity, fusers nearly so. Objects
    are always confident. Untrained mask heads would light up everywhere, which leaves nothing to skip; these find
    nothing anywhere, so that windows are chosen by the attention.
    """
    drawn: dict[str, Tensor] = {}
    generator = torch.Generator().manual_seed(0)
    for name in sorted(shapes):
        shape = tuple(shapes[name])
        if name.endswith("gaussian_matrix"):
            drawn[name] = torch.randn(shape, generator=generator)
        elif name.endswith("gamma"):
            drawn[name] = torch.full(shape, 1e-6)
        elif len(shape) == 1:
            drawn[name] = torch.ones(shape) if name.endswith("weight") else torch.zeros(shape)
        else:
            bound = math.sqrt(shape[0] / math.prod(shape))
            drawn[name] = torch.empty(shape).uniform_(-bound, bound, generator=generator)
        if _HEADS.match(name):
            drawn[name] = torch.zeros(shape)
    drawn[_SCORE] = torch.full(tuple(shapes[_SCORE]), 8.0)
    return drawn

"""The synthetic clip a benchmark tracks: a few frames that go back and forth, so that any length has no cut."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from torch import Tensor

UNIQUE = 12


class LoopingClip:
    """`length` normalised frames [3, side, side], of which `UNIQUE` are kept: squares that drift over soft colours.

    Args:
        side: pixels. length: frames it claims to have. objects: squares, on a grid, one per object id from 1 on.
        device: where the frames lie. seed: of the colours.
    """

    def __init__(self, side: int, length: int, objects: int, device: torch.device, seed: int = 0) -> None:
        self.length = length
        generator = torch.Generator().manual_seed(seed)
        soft = torch.randn(1, 3, 12, 12, generator=generator)
        ground = F.interpolate(soft, side, mode="bicubic", align_corners=False)[0].clamp(-2, 2)
        cells = int(np.ceil(np.sqrt(objects)))
        pitch = side // cells
        edge, step = max(2, pitch // 3), max(1, pitch // 60)
        corners = [(pitch * (n // cells) + pitch // 4, pitch * (n % cells) + pitch // 4) for n in range(objects)]
        colours = torch.randn(objects, 3, generator=generator).sign() * 2
        self._frames: list[Tensor] = []
        for number in range(UNIQUE):
            frame = ground + 0.02 * torch.randn(3, side, side, generator=generator)
            for (row, column), colour in zip(corners, colours, strict=True):
                left = column + step * number
                frame[:, row : row + edge, left : left + edge] = colour[:, None, None]
            self._frames.append(frame.to(device))
        self.masks: dict[int, npt.NDArray[np.bool_]] = {}
        for number, (row, column) in enumerate(corners):
            mask = np.zeros((side, side), dtype=np.bool_)
            mask[row : row + edge, column : column + edge] = True
            self.masks[number + 1] = mask

    def __len__(self) -> int:
        return self.length

    def __getitem__(self, index: int) -> Tensor:
        there = index % (2 * UNIQUE - 2)
        return self._frames[there if there < UNIQUE else 2 * UNIQUE - 2 - there]

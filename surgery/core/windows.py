"""The stage-3 windows of one feature map, and the index tensors that gather and scatter them.

Shapes: H, W the stage-3 grid (64 x 64 at 1024 px); w the window; a window id is row-major, `row * cols + col`. Border
windows of a padded grid hold fewer than `w * w` tokens; only real tokens are ever gathered.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from surgery.core.constants import constant
from surgery.core.early import sent


@dataclass(eq=False)
class Packing:
    """Where N tokens (window after window) sit in a stack of n zero-padded windows.

    `slots` is None when every window is full, else int64 [N] into `n * area`; `ids` is int64 [n], whose length carries
    n so that a compiled graph sees a tensor size and not a Python number that would trigger recompilation. Of a grid
    that fills its windows up: `filling`, bool [N, 1], the tokens that do; `back`, int64 [H * W], where every token of
    the map lies among the N and, after them, the H * W of the map; else None.
    """

    ids: Tensor
    slots: Tensor | None
    area: int
    filling: Tensor | None = None
    back: Tensor | None = None

    def stack(self, tokens: Tensor) -> Tensor:
        """[N, C] -> [n, area, C], zeros where a window has no token."""
        count, channels = self.ids.shape[0], tokens.shape[-1]
        if self.filling is not None:
            tokens = tokens.masked_fill(self.filling, 0)
        if self.slots is None:
            return tokens.reshape(count, self.area, channels)
        padded = tokens.new_zeros(count * self.area, channels).index_copy(0, self.slots, tokens)
        return padded.reshape(count, self.area, channels)

    def flatten(self, windows: Tensor) -> Tensor:
        """[n, area, C] or [n, window, window, C] -> [N, C], the inverse of `stack`."""
        flat = windows.reshape(-1, windows.shape[-1])
        return flat if self.slots is None else flat.index_select(0, self.slots)

    def by_window(
        self, tokens: Tensor, run: Callable[[Tensor], Tensor], window: int, after: Packing | None = None
    ) -> Tensor:
        """What `run` makes of windows [n, window, window, C]: tokens [1, N, 1, C] -> [1, M, 1, D].

        after: the packing of what it makes, where it changes the size of windows.
        """
        windows = self.stack(tokens[0, :, 0]).reshape(-1, window, window, tokens.shape[-1])
        return (self if after is None else after).flatten(run(windows))[None, :, None]

    def renewed(self, last: Tensor, new: Tensor, chosen: Tensor) -> Tensor:
        """`last` [H * W, ...] with `new` [N, ...] at the tokens `chosen`, int64 [N]; in the type of `new`."""
        last = last.to(new.dtype)
        if self.back is None:
            return last.index_copy(0, chosen, new)
        return torch.cat([new, last]).index_select(0, self.back)


class WindowGrid:
    """Geometry of the windows on an `height x width` token grid.

    Args:
        height, width: tokens of the stage-3 map.
        window: window side in tokens; the grid is padded at the bottom and right to a multiple of it.
        filled: border windows are filled up with their own first token, so that n windows are always n * w * w tokens;
            what becomes of those that fill is never read.
    """

    def __init__(self, height: int, width: int, window: int, filled: bool = False) -> None:
        self.height, self.width, self.window = height, width, window
        self.rows, self.cols = -(-height // window), -(-width // window)
        self.count = self.rows * self.cols
        self.area = window * window
        self.padded = self.rows * window != height or self.cols * window != width
        ids = np.full((self.rows * window, self.cols * window), -1, dtype=np.int64)
        ids[:height, :width] = np.arange(height * width).reshape(height, width)
        by_window = ids.reshape(self.rows, window, self.cols, window).transpose(0, 2, 1, 3)
        self._ids = np.ascontiguousarray(by_window.reshape(self.count, self.area))
        self.filled = filled and self.padded

    @property
    def tokens(self) -> int:
        """Real tokens of the map, `height * width`."""
        return self.height * self.width

    def token_ids(self, windows: Sequence[int]) -> np.ndarray:
        """Map indices (row-major in the map) of the real tokens of `windows`, window after window; int64 [N]."""
        ids = self._ids[list(windows)]
        if self.filled:
            return np.where(ids >= 0, ids, ids[:, :1]).reshape(-1)
        return ids[ids >= 0]

    def others(self, windows: Sequence[int]) -> list[int]:
        """All windows but these, rising."""
        taken = set(windows)
        return [window for window in range(self.count) if window not in taken]

    def back(self, windows: Sequence[int]) -> np.ndarray:
        """Where each token of the map lies among `token_ids(windows)` and, after them, the whole map; int64 [H * W]."""
        ids = self._ids[list(windows)].reshape(-1)
        real = ids >= 0
        places = np.arange(len(ids)) if self.filled else np.cumsum(real) - 1
        found = (len(ids) if self.filled else int(real.sum())) + np.arange(self.tokens)
        found[ids[real]] = places[real]
        return found

    def real_slots(self, windows: Sequence[int]) -> np.ndarray:
        """Positions of those tokens in the padded stack of `windows`; int64 [N]."""
        return np.flatnonzero(self._ids[list(windows)].reshape(-1) >= 0)

    def packing(self, windows: Sequence[int], device: torch.device) -> Packing:
        """Index tensors that pack `windows` on `device`."""
        ids = sent(np.asarray(windows, dtype=np.int64), device)
        if self.filled:
            filling = self._ids[list(windows)].reshape(-1, 1) < 0
            return Packing(ids, None, self.area, sent(filling, device), sent(self.back(windows), device))
        slots = self.real_slots(windows)
        full = len(slots) == len(windows) * self.area
        return Packing(ids, None if full else sent(slots, device), self.area)

    def cells(self, mask: Tensor) -> Tensor:
        """Which windows a low-resolution mask, bool or 0 and 1, touches: [h, w] -> bool [count].

        The mask side must be a whole multiple of the token grid (4 for SAM 2: 256 px on 64 tokens).
        """
        scale_h, scale_w = mask.shape[-2] // self.height, mask.shape[-1] // self.width
        cell_h, cell_w = scale_h * self.window, scale_w * self.window
        pad = (0, self.cols * cell_w - mask.shape[-1], 0, self.rows * cell_h - mask.shape[-2])
        grid = mask.to(torch.float32)[None, None]
        grid = F.pad(grid, pad) if any(pad) else grid
        return F.max_pool2d(grid, (cell_h, cell_w), (cell_h, cell_w)).flatten() > 0

    def mass(self, saliency: Tensor) -> Tensor:
        """Saliency per window: [n, height * width] -> [n, count], summed over each window's real tokens."""
        pad = (0, self.cols * self.window - self.width, 0, self.rows * self.window - self.height)
        grid = saliency.reshape(-1, self.height, self.width)
        grid = F.pad(grid, pad) if self.padded else grid
        return grid.reshape(-1, self.rows, self.window, self.cols, self.window).sum((2, 4)).flatten(1)

    def means(self, values: Tensor) -> Tensor:
        """Mean over each window's real tokens: fp32 [height * width] or [height, width] -> [count]."""
        sizes = constant(
            ("sizes", self.height, self.width, self.window),
            values.device,
            lambda: torch.from_numpy((self._ids >= 0).sum(1)).to(torch.float32),
        )
        return self.mass(values.reshape(1, -1))[0] / sizes


def longest_waiting(ages: Sequence[int], taken: Sequence[bool], count: int) -> list[int]:
    """Ids of the `count` windows not taken that were computed longest ago; ties go to the lower id."""
    waiting = [window for window in range(len(ages)) if not taken[window]]
    waiting.sort(key=lambda window: (-ages[window], window))
    return waiting[:count]

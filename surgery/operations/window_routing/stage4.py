"""Routing of the stage after the span (stage 4): skipped windows reuse what they had when last computed.

Every block of that stage is windowed. Its first block attends in stage-3 windows and pools 2x2 inside them; the others
have windows half as wide on the pooled map. So a window of the stage is a stage-3 window, under the same id, and
depends on nothing else of the stage-3 map.

Chosen tokens travel as in the span: [1, N, 1, C], window after window, real tokens only.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from surgery.core.early import sent
from surgery.core.windows import Packing, WindowGrid
from surgery.errors import UnsupportedModelError
from surgery.operations.window_routing.matching import Matching, compared, matching
from surgery.operations.window_routing.reuse import RunMemory, blank


@dataclass(eq=False)
class Stage4Route:
    """The stage of one frame: index tensors in, its output out.

    chosen: int64 [N], tokens of the pooled map that are computed; packing: their windows; matching: the others, None
    where there are none; order: int64 [H * W], where every token lies among both. All are None on a dense frame, where
    the output is noted and nothing else. last: what the video remembers of the stage; seen: the same after this frame.
    entering: [H * W, C], what tokens are matched by: the stage-3 tokens that each pools. width: W.
    """

    chosen: Tensor | None = None
    packing: Packing | None = None
    matching: Matching | None = None
    order: Tensor | None = None
    last: RunMemory | None = None
    seen: RunMemory | None = None
    entering: Tensor | None = None
    width: int = 0

    def enter(self, feature_map: Tensor) -> None:
        """The stage is given this map [1, H, W, C]."""
        self.entering = compared(feature_map, 2)

    def note(self, output: Tensor) -> None:
        """On a dense frame it gave this."""
        assert self.entering is not None
        self.seen = RunMemory(output.reshape(-1, output.shape[-1]), self.entering)

    def pool(self, tokens: Tensor, packing: Packing, window: int) -> Tensor:
        """Max-pool 2x2: stage-3 tokens [1, N, 1, C] of windows of side `window` -> [1, N / 4, 1, C]."""
        return packing.by_window(tokens, _pooled, window, self.packing)

    def merge(self, tokens: Tensor) -> Tensor:
        """Computed tokens [1, N, 1, C] at the end of the stage -> its whole map [1, H, W, C]."""
        assert self.last is not None and self.chosen is not None and self.packing is not None
        assert self.entering is not None and self.order is not None
        last, now, new = self.last, self.entering, tokens[0, :, 0]
        self.seen = last.renewed(self.packing, self.chosen, new, now.index_select(0, self.chosen))
        if self.matching is not None:
            reused = self.matching.reused(now.index_select(0, self.matching.own), last.entering, last.reused)
            new = torch.cat([new, reused.to(new.dtype)])
        return new.index_select(0, self.order).reshape(1, -1, self.width, new.shape[-1])


def _pooled(windows: Tensor) -> Tensor:
    return F.max_pool2d(windows.permute(0, 3, 1, 2), 2).permute(0, 2, 3, 1)


class Stage4Grid:
    """Geometry of the stage after the span.

    Args:
        grid: its windows on the pooled map, see `halved`.
        channels: of its output.
    """

    def __init__(self, grid: WindowGrid, channels: int) -> None:
        self.grid, self.channels = grid, channels

    def blank(self, device: torch.device, dtype: torch.dtype) -> RunMemory:
        """A memory of zeros: what counting operations needs."""
        # The stage before is half as wide.
        return blank(self.grid.tokens, self.channels, self.channels // 2, device, dtype)

    def route(self, windows: Sequence[int], device: torch.device, last: RunMemory) -> Stage4Route:
        """The route of a frame that computes `windows` (sorted, at least one)."""
        grid, matched = self.grid, None
        others = grid.others(windows)
        if others:
            matched = matching(grid, grid.packing(others, device), sent(grid.token_ids(others), device))
        order = sent(grid.back([*windows, *others]), device)
        chosen = sent(grid.token_ids(windows), device)
        return Stage4Route(chosen, grid.packing(windows, device), matched, order, last, width=grid.width)


def halved(blocks: Sequence[tuple[int, bool]], first: int, grid: WindowGrid) -> WindowGrid:
    """The windows of the stage after the span, on its pooled map.

    Args:
        blocks: (window in tokens of the block's input, whether it pools 2x2) of every block of the stage, in order.
        first: number of the first of them, for messages.
        grid: the stage-3 windows.

    Raises:
        UnsupportedModelError: there is no such stage, a block of it is global, its windows are not the stage-3 windows
            halved, or the 2x2 cells cross the border of a window or of the map.
    """
    problem = _problem(blocks, first, grid)
    if problem is not None:
        raise UnsupportedModelError(f"{problem}; use stage4: dense")
    return WindowGrid(grid.height // 2, grid.width // 2, grid.window // 2, grid.filled)


def _problem(blocks: Sequence[tuple[int, bool]], first: int, grid: WindowGrid) -> str | None:
    if not blocks:
        return f"no stage comes after the routed span, whose stage ends with block {first - 1}"
    if grid.window % 2 or grid.height % 2 or grid.width % 2:
        size = f"windows of {grid.window} tokens on a map of {grid.height}x{grid.width}"
        return f"stage-3 {size} do not halve; expected even sides"
    for index, (window, pools) in enumerate(blocks, start=first):
        block = f"encoder block {index}"
        if window == 0:
            return f"{block} has global attention after the routed span: its stage cannot be skipped by windows"
        if pools != (index == first):
            found = "pools" if pools else "does not pool"
            return f"{block} {found} 2x2; expected block {first} to pool, as the first of its stage, and no other"
        expected = grid.window if index == first else grid.window // 2
        if window != expected:
            whole = f"the stage-3 windows of {grid.window} in block {first}, half of that in those after it"
            return f"{block} has windows of {window} tokens, expected {expected}: {whole}"
    return None

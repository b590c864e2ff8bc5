"""Reuse that follows the picture.

A skipped token reuses what blocks made of it when it was last computed; where things move, that belongs to a neighbour.
So it is taken from where, near by, the blocks' input was most like the token's input now. That is one attention:
queries are the inputs of skipped tokens, keys the inputs that were last computed with, values what is reused. A token
whose input has not changed keeps its own. Nothing of it is learned.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from surgery.core.constants import constant
from surgery.core.early import sent
from surgery.core.windows import Packing, WindowGrid
from surgery.operations.window_routing.shortcut import NORM_EPS

SHARPNESS = 40.0
"""By how much of the mean square difference of two normed inputs the logarithm of the weight falls, halved. Twice or
half as much changes the error on skipped tokens by a twentieth (benchmarks, "Does reuse follow the picture?")."""
REACH = 0.6
"""Standard deviation of how far things are taken to move, as a share of how far a token looks."""
WIDEST = 8
"""A token looks half a window around its own square, at most the map's side over this."""
STILL = 0.02
"""Mean square difference of normed inputs at which a token's own weighs exp(-1), and what has moved the rest."""


def compared(tokens: Tensor, pool: int = 1) -> Tensor:
    """What tokens are matched by: map [1, H, W, C] -> [H / pool * W / pool, C], normed.

    pool: side of the square of tokens whose mean is compared.
    """
    _, height, width, channels = tokens.shape
    if pool > 1:
        tokens = tokens.reshape(height // pool, pool, width // pool, pool, channels).mean((1, 3))
    return normed(tokens.reshape(-1, channels))


def normed(tokens: Tensor) -> Tensor:
    """The same of tokens [N, C] one by one; fp16, which is half the memory and as good to compare by."""
    return F.layer_norm(tokens, tokens.shape[-1:], eps=NORM_EPS).to(torch.float16)


@dataclass(eq=False)
class Matching:
    """The windows of a map whose tokens ask, and where they look.

    A window is cut in k x k squares of s x s tokens, one where it is no wider than twice what a token looks around.

    packing: of these windows. own: int64 [N], their tokens, window after window. places: int64 [n, k * k, m * m], the
    tokens of each square and those around it, the map's edge repeated. far: fp32 [s * s, m * m], what distance takes
    from the logarithm of the weight.
    """

    packing: Packing
    own: Tensor
    places: Tensor
    far: Tensor

    def reused(self, now: Tensor, then: Tensor, values: Tensor) -> Tensor:
        """What the tokens reuse of `values`.

        Args:
            now: [N, C] of the tokens that ask, normed. then: [H * W, C] of all tokens, normed, which `values`
                [H * W, D] belong to.

        Returns:
            [N, D], in the type of `values`.
        """
        kind, window = values.dtype, math.isqrt(self.packing.area)
        side, across = (math.isqrt(size) for size in self.far.shape)
        query, around = self.packing.stack(now.to(kind)), self.places.flatten()
        query = _cut(query.reshape(-1, window, window, query.shape[-1]), side)
        key, value = (
            each.index_select(0, around).to(kind).reshape(-1, across * across, each.shape[-1])
            for each in (then, values)
        )
        moved = F.scaled_dot_product_attention(
            query[:, None], key[:, None], value[:, None],
            attn_mask=self.far.to(kind), scale=SHARPNESS / query.shape[-1],
        )[:, 0]  # fmt: skip
        inner = slice((across - side) // 2, (across + side) // 2)
        last, own = (each.unflatten(1, (across, across))[:, inner, inner] for each in (key, value))
        query, moved = (each.unflatten(1, (side, side)) for each in (query, moved))
        change = (query - last).square().mean(-1, keepdim=True)
        return self.packing.flatten(_joined(moved + (change / -STILL).exp() * (own - moved), window))


def matching(grid: WindowGrid, packing: Packing, own: Tensor) -> Matching:
    """Of the windows of `grid` that `packing` packs, whose tokens are `own`."""
    device, look = packing.ids.device, looks(grid)
    side = grid.window
    if look < side // 2:
        side = max(each for each in range(1, look + 1) if grid.window % each == 0)
    places = _around(grid, side, look, device).index_select(0, packing.ids)
    return Matching(packing, own, places, _far(side, look, device))


def looks(grid: WindowGrid) -> int:
    """How many tokens around its own square a token looks."""
    return max(1, min(grid.window // 2, -(-max(grid.height, grid.width) // WIDEST)))


def reused_map(grid: WindowGrid, now: Tensor, then: Tensor, values: Tensor) -> Tensor:
    """`Matching.reused` for every token of a map: now, then [H * W, C] normed, values [H * W, D] -> [H * W, D]."""
    every, device = range(grid.count), now.device
    own, back = (sent(each, device) for each in (grid.token_ids(every), grid.back(every)))
    found = matching(grid, grid.packing(every, device), own)
    return found.reused(now.index_select(0, own), then, values).index_select(0, back)


def _cut(windows: Tensor, side: int) -> Tensor:
    """[n, w, w, C] -> [n * k * k, s * s, C]."""
    count, window, _, channels = windows.shape
    squares = windows.reshape(count, window // side, side, window // side, side, channels).transpose(2, 3)
    return squares.reshape(-1, side * side, channels)


def _joined(squares: Tensor, window: int) -> Tensor:
    """[n * k * k, s, s, C] -> [n, w, w, C]."""
    _, side, _, channels = squares.shape
    across = window // side
    rows = squares.reshape(-1, across, across, side, side, channels).transpose(2, 3)
    return rows.reshape(-1, window, window, channels)


def _around(grid: WindowGrid, side: int, look: int, device: torch.device) -> Tensor:
    """`Matching.places` of all windows, cut in squares of `side`."""

    def lines(count: int, size: int) -> Tensor:
        """int64 [count, m] of every row or column of squares."""
        starts = torch.arange(0, count * grid.window, side) - look
        return (starts[:, None] + torch.arange(side + 2 * look)).clamp(0, size - 1)

    def make() -> Tensor:
        rows, columns = lines(grid.rows, grid.height) * grid.width, lines(grid.cols, grid.width)
        across = grid.window // side
        places = (rows[:, None, :, None] + columns[None, :, None]).flatten(2)
        places = places.reshape(grid.rows, across, grid.cols, across, -1).transpose(1, 2)
        return places.reshape(grid.count, across * across, -1)

    return constant(("around", grid.height, grid.width, grid.window, side, look), device, make)


def _far(side: int, look: int, device: torch.device) -> Tensor:
    def make() -> Tensor:
        here, there = torch.arange(side)[:, None], torch.arange(side + 2 * look) - look
        apart = ((here - there) / (REACH * look)).square() / 2
        return -(apart[:, None, :, None] + apart[None, :, None, :]).reshape(side * side, -1)

    return constant(("far", side, look), device, make)

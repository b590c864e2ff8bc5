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
REACH = 0.3
"""Standard deviation of how far things are taken to move, in windows."""
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

    packing: of these windows. own: int64 [N], their tokens, window after window. places: int64 [n, (2 w)^2], the tokens
    of each and those half a window around it, the map's edge repeated. far: fp32 [w * w, (2 w)^2], what distance takes
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
        kind, (count, _), window = values.dtype, self.places.shape, math.isqrt(self.packing.area)
        query, around = self.packing.stack(now.to(kind)), self.places.flatten()
        key, value = (
            each.index_select(0, around).to(kind).reshape(count, -1, each.shape[-1]) for each in (then, values)
        )
        moved = F.scaled_dot_product_attention(
            query[:, None], key[:, None], value[:, None],
            attn_mask=self.far.to(kind), scale=SHARPNESS / query.shape[-1],
        )  # fmt: skip
        inner = slice(window // 2, window // 2 + window)
        last, own = (each.reshape(count, 2 * window, 2 * window, -1)[:, inner, inner] for each in (key, value))
        change = (query.reshape(last.shape) - last).square().mean(-1, keepdim=True)
        moved = moved.reshape(own.shape)
        return self.packing.flatten(moved + (change / -STILL).exp() * (own - moved))


def matching(grid: WindowGrid, packing: Packing, own: Tensor) -> Matching:
    """Of the windows of `grid` that `packing` packs, whose tokens are `own`."""
    device = packing.ids.device
    return Matching(packing, own, _around(grid, device).index_select(0, packing.ids), _far(grid.window, device))


def reused_map(grid: WindowGrid, now: Tensor, then: Tensor, values: Tensor) -> Tensor:
    """`Matching.reused` for every token of a map: now, then [H * W, C] normed, values [H * W, D] -> [H * W, D]."""
    every, device = range(grid.count), now.device
    own, back = (sent(each, device) for each in (grid.token_ids(every), grid.back(every)))
    found = matching(grid, grid.packing(every, device), own)
    return found.reused(now.index_select(0, own), then, values).index_select(0, back)


def _around(grid: WindowGrid, device: torch.device) -> Tensor:
    """`Matching.places` of all windows."""

    def line(index: int, size: int) -> Tensor:
        start = index * grid.window - grid.window // 2
        return torch.arange(start, start + 2 * grid.window).clamp(0, size - 1)

    def make() -> Tensor:
        rows = [line(index, grid.height) * grid.width for index in range(grid.rows)]
        columns = [line(index, grid.width) for index in range(grid.cols)]
        return torch.stack([(row[:, None] + column).flatten() for row in rows for column in columns])

    return constant(("around", grid.height, grid.width, grid.window), device, make)


def _far(window: int, device: torch.device) -> Tensor:
    def make() -> Tensor:
        here, there = torch.arange(window)[:, None], torch.arange(2 * window) - window // 2
        apart = ((here - there) / window).square() / (2 * REACH**2)
        return -(apart[:, None, :, None] + apart[None, :, None, :]).reshape(window * window, -1)

    return constant(("far", window), device, make)

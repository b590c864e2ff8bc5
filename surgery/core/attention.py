"""Memory attention as hosts call it, and one attention of it with positions by explicit index: a subset of the queries,
of the rows, or both."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class Conditioning(NamedTuple):
    """A conditioning frame among the memory frames, by its frame id."""

    frame: int


MemoryFrame = int | Conditioning | None
"""A memory frame in the host's order: a tracked frame's id, a conditioning frame, or None for one never pruned."""


@dataclass(frozen=True, eq=False)
class MemoryCall:
    """One call of memory attention.

    current: features of the frame, [T, 1, C]; positions: their position code or None. memory: [M, 1, D], whole memory
    frames and then `pointers` rows of object pointers. stride: frames between two memories. layers: of the module.
    """

    current: Tensor
    positions: Tensor | None
    memory: Tensor
    pointers: int
    stride: int
    layers: int

    def of(self, tokens: Tensor) -> MemoryCall:
        """The same for the tokens of these indices, int64 [K]."""
        positions = None if self.positions is None else self.positions.index_select(0, tokens)
        return replace(self, current=self.current.index_select(0, tokens), positions=positions)


ConditionedBy = Callable[[MemoryCall], Tensor]
"""Runs the host's memory attention; its output is [T, 1, C] or [1, 1, T, C], as the host has it."""


class Projections(NamedTuple):
    """The projections of one attention module, whatever the host calls them."""

    query: nn.Module
    key: nn.Module
    value: nn.Module
    output: nn.Module
    heads: int


Tables = Callable[[int], Tensor]
"""Rotary table of a square grid of T tokens: fp32 [T, d / 2, 2], cosine and sine."""


@dataclass(eq=False)
class AttentionCall:
    """One call of a self- or cross-attention of memory attention, for one object.

    query: normed tokens [N, C]. key, value: [M, D], unprojected; the last `pointers` rows have no position. parts: the
    module's projections. tables: of the token grid. layer: number of the module. training: of the module.
    places: int64 [N] where the queries sit on the grid; None: token i sits at i. tokens: of the grid, where not all are
    queries. rows: int64 [n] rows of key and value that are read; None: all. spots: int64 [m] places of those that have
    one, the first m. on_grid: the keys are the grid's own tokens, in order. bias: fp32 [n] added to the logits, or
    None. returns_weights: the host's module returned its attention weights as well.
    """

    query: Tensor
    key: Tensor
    value: Tensor
    parts: Projections
    tables: Tables
    layer: int
    pointers: int = 0
    training: bool = False
    places: Tensor | None = None
    tokens: int | None = None
    rows: Tensor | None = None
    spots: Tensor | None = None
    on_grid: bool = False
    bias: Tensor | None = None
    returns_weights: bool = False
    _turned: Tensor | None = None
    _grid: Tensor | None = None

    @property
    def explicit(self) -> bool:
        """Whether the host's own module cannot run it."""
        return self.places is not None or self.rows is not None

    def grid(self) -> Tensor:
        """The table of the whole grid; made once."""
        if self._grid is None:
            self._grid = self.tables(self.query.shape[0] if self.tokens is None else self.tokens)
        return self._grid

    def turned(self) -> Tensor:
        """Queries projected and rotated: [heads, N, d]; computed once."""
        if self._turned is None:
            code = self.grid() if self.places is None else self.grid().index_select(0, self.places)
            self._turned = rotate(split_heads(self.parts.query(self.query), self.parts.heads), code)
        return self._turned

    def turned_keys(self, rows: Tensor) -> Tensor:
        """Keys of one whole memory frame, `rows` int64 [T], projected and rotated: [heads, T, d]."""
        key = split_heads(self.parts.key(self.key.index_select(0, rows)), self.parts.heads)
        return rotate(key, self.grid())

    def attend(self) -> Tensor:
        """The attention by explicit indices: [N, C] after the output projection.

        Rows are gathered before they are projected; pointers and padding, at the end, are not rotated.
        """
        query, code = self.turned(), self.grid()
        key, value = self.key, self.value
        if self.rows is not None:
            key, value = key.index_select(0, self.rows), value.index_select(0, self.rows)
        keys = split_heads(self.parts.key(key), self.parts.heads)
        values = split_heads(self.parts.value(value), self.parts.heads)
        if self.on_grid:
            keys = rotate(keys, code)
        else:
            placed = keys.shape[1] - self.pointers if self.spots is None else self.spots.shape[0]
            if self.spots is None:
                turned = rotate(keys[:, :placed].unflatten(1, (-1, code.shape[0])), code).flatten(1, 2)
            else:
                turned = rotate(keys[:, :placed], code.index_select(0, self.spots))
            keys = torch.cat([turned, keys[:, placed:]], dim=1)
        bias = self.bias
        if bias is not None:
            bias = bias.to(query.dtype)[None, None, None].expand(1, query.shape[0], query.shape[1], -1)
        mixed = F.scaled_dot_product_attention(query[None], keys[None], values[None], attn_mask=bias)[0]
        return self.parts.output(mixed.transpose(0, 1).flatten(-2))


def rotate(tokens: Tensor, code: Tensor) -> Tensor:
    """Rotary position: tokens [..., n, d], code fp32 [n, d / 2, 2]; interleaved pairs, computed in fp32."""
    pairs = tokens.to(torch.float32).unflatten(-1, (-1, 2))
    if torch.compiler.is_compiling():
        # Inductor makes one kernel of this, and has none for complex numbers.
        (even, odd), (cos, sin) = pairs.unbind(-1), code.unbind(-1)
        turned = torch.stack([even * cos - odd * sin, even * sin + odd * cos], dim=-1)
    else:
        turned = torch.view_as_real(torch.view_as_complex(pairs) * torch.view_as_complex(code))
    return turned.flatten(-2).to(tokens.dtype)


def split_heads(tokens: Tensor, heads: int) -> Tensor:
    """[n, heads * d] -> [heads, n, d]."""
    return tokens.unflatten(-1, (heads, -1)).transpose(0, 1)

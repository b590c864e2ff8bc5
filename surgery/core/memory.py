"""The memory bank as hosts hand it to memory attention."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import NamedTuple

from torch import Tensor


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

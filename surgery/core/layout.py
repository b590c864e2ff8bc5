"""How the blocks of an encoder follow each other."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class BlockInfo:
    """One encoder block. window: side in tokens, 0 for global attention. pools: halves the map."""

    index: int
    dim: int
    heads: int
    window: int
    pools: bool

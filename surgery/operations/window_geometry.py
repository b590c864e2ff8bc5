"""Tiles and stage 4 of a model, read off its blocks."""

from __future__ import annotations

from typing import TYPE_CHECKING

from surgery.routing.late import LateGrid, halved
from surgery.routing.tiles import TileGrid, piece_side
from surgery.routing.windows import WindowGrid

if TYPE_CHECKING:
    from surgery.hosts.base import HostView, SpanInfo


def tile_grid(view: HostView, span: SpanInfo) -> TileGrid:
    """The tiles of a model. Raises UnsupportedModelError when its early windows do not nest."""
    infos = [view.block_info(index) for index in range(span.entry)]
    grid = WindowGrid(span.side, span.side, span.window)
    side = piece_side([(info.window, info.pools) for info in infos], grid)
    levels = []
    for end in last_blocks(view, span):
        scale = 2 ** sum(info.pools for info in infos[end + 1 :])
        levels.append((span.side * scale, infos[end].dim))
    return TileGrid(grid, side, levels, whole=span.entry - 1 in last_blocks(view, span))


def last_blocks(view: HostView, span: SpanInfo) -> list[int]:
    """Last blocks of the stages that end before the span."""
    return [start - 1 for start in view.stage_starts() if 0 < start <= span.entry]


def late_blocks(view: HostView, span: SpanInfo) -> range:
    """Indices of the blocks of the stage after the span's."""
    count = len(view.blocks())
    ends = [*(start for start in view.stage_starts() if start > span.exit), count]
    return range(ends[0], ends[1] if len(ends) > 1 else count)


def late_grid(view: HostView, span: SpanInfo) -> LateGrid:
    """The stage of a model after the span's. Raises UnsupportedModelError when its windows are not the span's."""
    blocks = late_blocks(view, span)
    infos = [view.block_info(index) for index in blocks]
    wide = WindowGrid(span.side, span.side, span.window)
    grid = halved([(info.window, info.pools) for info in infos], blocks.start, wide)
    return LateGrid(grid, infos[-1].dim)

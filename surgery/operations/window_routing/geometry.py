"""The routed span of a model, its windows, tiles and stage 4, read off its blocks."""

from __future__ import annotations

from dataclasses import dataclass

from surgery.core.host import HostView
from surgery.core.windows import WindowGrid
from surgery.errors import UnsupportedModelError
from surgery.operations.window_routing.stage4 import Stage4Grid, halved
from surgery.operations.window_routing.tiles import TileGrid, piece_side


@dataclass(frozen=True)
class SpanInfo:
    """The routed span: blocks `entry .. exit - 1` are routed, `exit` is the dense global block that merges."""

    entry: int
    exit: int
    window: int
    channels: int
    side: int

    @property
    def routed(self) -> range:
        """Indices of the routed blocks."""
        return range(self.entry, self.exit)


def span_of(host: HostView) -> SpanInfo:
    """Find the routed span: everything after the stage change up to the last global block.

    Raises:
        UnsupportedModelError: no global block, or nothing windowed in front of it.
    """
    infos = [host.block_info(index) for index in range(len(host.blocks()))]
    last = [info.index for info in infos if info.window == 0 and not info.pools]
    if not last:
        raise UnsupportedModelError(
            f"none of the {len(infos)} encoder blocks has global attention; window routing needs one to merge the "
            "routed windows (Hiera, as in SAM 2, has some in stage 3)"
        )
    exit_ = last[-1]
    stage = max(start for start in host.stage_starts() if start <= exit_)
    entry = stage + 1 if infos[stage].pools else stage
    windowed = [info for info in infos[entry:exit_] if info.window]
    windows = {info.window for info in windowed}
    if not windowed or len(windows) != 1 or any(info.pools for info in infos[entry : exit_ + 1]):
        raise UnsupportedModelError(
            f"blocks {entry}..{exit_} do not form a routable span: expected windowed blocks of one window size "
            f"before global block {exit_}, found windows {[info.window for info in infos[entry:exit_]]}"
        )
    stride = host.patch_stride() * 2 ** sum(info.pools for info in infos[: entry + 1])
    size = host.image_size()
    over = size % stride
    if over:
        raise UnsupportedModelError(
            f"images of {size} px do not divide into tokens of {stride} px; the nearest are {size - over} "
            f"and {size - over + stride}"
        )
    return SpanInfo(entry, exit_, windows.pop(), infos[entry].dim, size // stride)


def tile_grid(host: HostView, span: SpanInfo, grid: WindowGrid) -> TileGrid:
    """The tiles of a model. Raises UnsupportedModelError when there are no early windows, or they do not nest in
    those of `grid`."""
    if not span.entry:
        raise UnsupportedModelError(
            "no stage comes before the routed span: skipped windows skip the first block as it is; use span: stage3"
        )
    infos = [host.block_info(index) for index in range(span.entry)]
    side = piece_side([(info.window, info.pools) for info in infos], grid)
    ends = last_blocks(host, span)
    levels = [(span.side * 2 ** sum(info.pools for info in infos[end + 1 :]), infos[end].dim) for end in ends]
    return TileGrid(grid, side, levels, whole=span.entry - 1 in ends)


def last_blocks(host: HostView, span: SpanInfo) -> list[int]:
    """Last blocks of the stages that end before the span."""
    return [start - 1 for start in host.stage_starts() if 0 < start <= span.entry]


def stage4_blocks(host: HostView, span: SpanInfo) -> range:
    """Indices of the blocks of the stage after the span's."""
    count = len(host.blocks())
    first, end, *_ = (*(start for start in host.stage_starts() if start > span.exit), count, count)
    return range(first, end)


def stage4_grid(host: HostView, span: SpanInfo, wide: WindowGrid) -> Stage4Grid:
    """The stage of a model after the span's. Raises UnsupportedModelError when its windows are not its own: `wide`."""
    blocks = stage4_blocks(host, span)
    infos = [host.block_info(index) for index in blocks]
    grid = halved([(info.window, info.pools) for info in infos], blocks.start, wide)
    return Stage4Grid(grid, infos[-1].dim)

"""How the blocks of an encoder follow each other, and which of them can be routed."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from surgery.errors import UnsupportedModelError


@dataclass(frozen=True)
class BlockInfo:
    """One encoder block. window: side in tokens, 0 for global attention. pools: halves the map."""

    index: int
    dim: int
    heads: int
    window: int
    pools: bool


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


def find_span(infos: Sequence[BlockInfo], stage_starts: Sequence[int], patch_stride: int, image_size: int) -> SpanInfo:
    """Find the routed span: everything after the stage change up to the last global block.

    Args:
        infos: of all blocks. stage_starts: index of the first block of every stage.
        patch_stride: pixels per token at block 0. image_size: side of the input, pixels.

    Raises:
        UnsupportedModelError: no global block, or nothing windowed in front of it.
    """
    last = [info.index for info in infos if info.window == 0 and not info.pools]
    if not last:
        raise UnsupportedModelError(
            f"none of the {len(infos)} encoder blocks has global attention; window routing needs one to merge the "
            "routed windows (Hiera, as in SAM 2, has some in stage 3)"
        )
    exit_ = last[-1]
    stage = max(start for start in stage_starts if start <= exit_)
    entry = stage + 1 if infos[stage].pools else stage
    windowed = [info for info in infos[entry:exit_] if info.window]
    windows = {info.window for info in windowed}
    if not windowed or len(windows) != 1 or any(info.pools for info in infos[entry : exit_ + 1]):
        raise UnsupportedModelError(
            f"blocks {entry}..{exit_} do not form a routable span: expected windowed blocks of one window size "
            f"before global block {exit_}, found windows {[info.window for info in infos[entry:exit_]]}"
        )
    stride = patch_stride * 2 ** sum(info.pools for info in infos[: entry + 1])
    return SpanInfo(entry, exit_, windows.pop(), infos[entry].dim, image_size // stride)

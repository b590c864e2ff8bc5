"""Inner global blocks that see every token.

Between the span's windowed blocks lie global ones. Packed, they attend among the chosen tokens only, as published.
Cached, queries are of the chosen tokens, keys and values of all, those of skipped windows as they were last computed.
Dense, they run for every token, and the windowed blocks between two of them are a run of their own, see `reuse`.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from torch import Tensor

from surgery.core.seams import BlockCall
from surgery.core.windows import Packing
from surgery.operations.window_routing.reuse import RunMemory, noted
from surgery.operations.window_routing.shortcut import Shortcut


@dataclass(eq=False)
class GlobalRoute:
    """The inner global blocks of one frame.

    last: keys and values [H * W, 2, heads, C / heads] of every block, every token as it was last computed; None on a
    dense frame. seen: the same of this frame, block after block.
    """

    last: tuple[Tensor, ...] | None = None
    seen: list[Tensor] = field(default_factory=list)

    def note(self, tokens: Tensor, block: BlockCall) -> None:
        """Keep keys and values of the whole map [1, H, W, C] that a block of a dense frame is given."""
        normed = block.norm1(tokens)
        self.seen.append(block.qkv(normed)[:, 1:].contiguous())

    def attend(self, normed: Tensor, chosen: Tensor, packing: Packing, block: BlockCall) -> Tensor:
        """Normed chosen tokens [1, N, 1, C] -> attention output [1, N, 1, C] over all tokens.

        chosen: int64 [N], their places in the map; packing: of their windows.
        """
        assert self.last is not None
        found = block.qkv(normed, chosen)
        last = self.last[len(self.seen)]
        now = packing.renewed(last, found[:, 1:], chosen)
        self.seen.append(now)
        return block.attended(found[:, 0], now[:, 0].to(found.dtype), now[:, 1].to(found.dtype))[None, :, None]


@dataclass(eq=False)
class DenseGlobals:
    """The runs of windowed blocks between global ones, of one frame.

    last: what the video remembers of every run; None on a dense frame. seen: the same after this frame, run after run.
    begun: [1, H, W, C], what the run in progress of a dense frame was given. passes: what every run was given and gave,
    [H * W, C] each, for a watcher only.
    """

    last: tuple[RunMemory, ...] | None = None
    seen: list[RunMemory] = field(default_factory=list)
    begun: Tensor | None = None
    passes: list[tuple[Tensor, Tensor]] | None = None

    def end(self, feature_map: Tensor, shortcut: Shortcut) -> None:
        """The run in progress of a dense frame, if any, gave this map [1, H, W, C]."""
        if self.begun is None:
            return
        entering = self.begun.reshape(-1, self.begun.shape[-1])
        leaving, self.begun = feature_map.reshape(entering.shape), None
        self.seen.append(noted(entering, leaving, shortcut(entering)))
        if self.passes is not None:
            self.passes.append((entering, leaving))

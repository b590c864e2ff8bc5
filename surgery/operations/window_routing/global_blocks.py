"""Inner global blocks that see every token.

Between the span's windowed blocks lie global ones. Packed, they attend among the chosen tokens only, as published.
Cached, queries are of the chosen tokens, keys and values of all, those of skipped windows as they were last computed.
Dense, they run for every token: what the windowed blocks between two of them would add to a skipped token is what they
added when its window was last computed.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import Tensor

from surgery.core.seams import BlockCall
from surgery.core.windows import Packing


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

    last: what each run added to every token, [H * W, C], where its window was last computed; None on a dense frame.
    seen: the same of this frame, run after run. entering: [H * W, C] of the whole map, or [N, C] of the chosen tokens,
    what the run in progress was given. skipped: [M, C], what it gives for the other tokens.
    """

    last: tuple[Tensor, ...] | None = None
    seen: list[Tensor] = field(default_factory=list)
    entering: Tensor | None = None
    skipped: Tensor | None = None

    def begin(self, feature_map: Tensor) -> None:
        """A run of a dense frame is given the whole map [1, H, W, C]."""
        self.entering = feature_map.reshape(-1, feature_map.shape[-1])

    def end(self, feature_map: Tensor) -> None:
        """It gave this."""
        assert self.entering is not None
        self.seen.append(feature_map.reshape(self.entering.shape) - self.entering)

    def enter(self, feature_map: Tensor, chosen: Tensor, rest: Tensor | None) -> Tensor:
        """The map [1, H, W, C] -> chosen tokens [1, N, 1, C]. chosen, rest: int64, their places and the others'."""
        assert self.last is not None
        flat = feature_map.reshape(-1, feature_map.shape[-1])
        self.entering, self.skipped = flat.index_select(0, chosen), None
        if rest is not None:
            last = self.last[len(self.seen)]
            self.skipped = flat.index_select(0, rest) + last.index_select(0, rest).to(flat.dtype)
        return self.entering[None, :, None]

    def leave(self, tokens: Tensor, chosen: Tensor, order: Tensor, side: int) -> Tensor:
        """Chosen tokens [1, N, 1, C] -> the whole map [1, side, side, C]. order: see `Route`."""
        assert self.last is not None and self.entering is not None
        now, last = tokens[0, :, 0], self.last[len(self.seen)]
        self.seen.append(last.index_copy(0, chosen, (now - self.entering).to(last.dtype)))
        merged = now if self.skipped is None else torch.cat([now, self.skipped.to(now.dtype)])
        return merged.index_select(0, order).reshape(1, side, side, -1)

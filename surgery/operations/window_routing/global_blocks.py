"""Inner global blocks that see every token: keys and values of skipped windows as they were last computed.

Between the span's windowed blocks lie global ones. Packed, they attend among the chosen tokens only, as published.
Cached, queries are of the chosen tokens, keys and values of all.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from torch import Tensor

from surgery.core.seams import BlockCall


@dataclass(eq=False)
class GlobalRoute:
    """The inner global blocks of one frame.

    last: keys and values [H * W, 2, heads, C / heads] of every block, every token as it was last computed; None on a
    dense frame. seen: the same of this frame, block after block.
    """

    last: tuple[Tensor, ...] | None = None
    seen: list[Tensor] = field(default_factory=list)

    def note(self, normed: Tensor, block: BlockCall) -> None:
        """Keep keys and values of the whole map [1, H, W, C] of a dense frame."""
        self.seen.append(block.qkv(normed)[:, 1:].contiguous())

    def attend(self, normed: Tensor, chosen: Tensor, block: BlockCall) -> Tensor:
        """Normed chosen tokens [1, N, 1, C] -> attention output [1, N, 1, C] over all tokens.

        chosen: int64 [N], their places in the map.
        """
        assert self.last is not None
        found = block.qkv(normed, chosen)
        last = self.last[len(self.seen)]
        now = last.index_copy(0, chosen, found[:, 1:].to(last.dtype))
        self.seen.append(now)
        return block.attended(found[:, 0], now[:, 0].to(found.dtype), now[:, 1].to(found.dtype))[None, :, None]

"""Blocks before the routed span: the host's own forward, under tile routing on the pieces of the chosen tiles."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from surgery.graft import Graft
from surgery.hosts.base import Binding, BlockInfo, HostView, SpanInfo
from surgery.hosts.strips import block_in_strips, strips_pay
from surgery.operations.window_geometry import last_blocks
from surgery.routing.correction import Corrections, StageCorrection


@dataclass(eq=False)
class EarlyPart:
    """Payload of a grafted block before the span.

    info: of the block. gathers: whether it receives a whole map (first block of a stage). level: number of the stage it
    ends, or None. first: whether it is the first of all. corrections: of skipped pieces, by level; None when the recipe
    has none.
    """

    binding: Binding
    info: BlockInfo
    gathers: bool
    level: int | None
    first: bool
    corrections: Corrections | None

    def correction(self) -> StageCorrection | None:
        """Of the stage it ends."""
        if self.corrections is None or self.level is None:
            return None
        return self.corrections[self.level]  # type: ignore[return-value]


class EarlyBlock(Graft):
    """A block before the span. Pieces hold whole windows, so the host's own partition of a piece cuts what it would
    have cut from the map."""

    _surgery: EarlyPart

    def forward(self, hidden_states: Tensor, **kwargs: Any) -> Tensor:
        part = self._surgery
        route = part.binding.route
        tiles = route.tiles if route is not None else None
        if route is None:
            return super().forward(hidden_states, **kwargs)  # type: ignore[misc]
        if tiles is None:
            return self._run(hidden_states, kwargs)
        if part.first:
            tiles.start(hidden_states, part.corrections is not None)
        if part.gathers and not route.dense:
            hidden_states = tiles.gather(hidden_states)
        out = self._run(hidden_states, kwargs)
        if part.level is None:
            return out
        if not route.dense:
            return tiles.merge(out, part.level, part.correction())
        if route.observe:
            tiles.note(out, part.level, part.correction())
        return out

    def _run(self, hidden_states: Tensor, kwargs: dict[str, Any]) -> Tensor:
        part, forward = self._surgery, super().forward  # type: ignore[misc]
        if not strips_pay(part.binding, hidden_states):
            out: Tensor = forward(hidden_states, **kwargs)
            return out
        return block_in_strips(lambda strip: forward(strip, **kwargs), hidden_states, part.info)


def early_parts(view: HostView, span: SpanInfo, corrections: Corrections | None) -> list[tuple[nn.Module, EarlyPart]]:
    """Every block before the span, with its part."""
    ends = last_blocks(view, span)
    return [
        (
            block,
            EarlyPart(
                view.binding,
                view.block_info(index),
                gathers=index == 0 or index - 1 in ends,
                level=ends.index(index) if index in ends else None,
                first=index == 0,
                corrections=corrections,
            ),
        )
        for index, block in enumerate(view.blocks()[: span.entry])
    ]

"""Sparse Window Routing: which windows of a frame run through the encoder's middle blocks."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import nn

from surgery.core.host import HostView
from surgery.core.operation import Bound
from surgery.core.surgery import Surgery
from surgery.core.windows import WindowGrid
from surgery.errors import UnsupportedModelError
from surgery.operations.window_routing.bound import WindowRouter
from surgery.operations.window_routing.geometry import span_of, stage4_blocks, stage4_grid, tile_grid
from surgery.operations.window_routing.settings import WindowSettings
from surgery.operations.window_routing.simulate import WindowSimulation


class SparseWindowRouting(WindowSettings):
    """Sparse Window Routing: only windows near the object run through the middle blocks (Efficient-SAM2, 3.2)."""

    def check(self, host: HostView) -> list[nn.Module]:
        """See `Operation.check`: the span, its windows, and what tiles and a routed stage 4 ask of them."""
        whole = host.reads_everywhere()
        if whole is not None:
            raise UnsupportedModelError(whole)
        span = span_of(host)
        grid = WindowGrid(span.side, span.side, span.window)
        if grid.count < 2:
            raise UnsupportedModelError(
                f"the stage-3 map of {span.side}x{span.side} tokens is a single window of {span.window}: there is "
                "nothing to skip; use recipe memory-only"
            )
        if host.mask_side() % span.side:
            raise UnsupportedModelError(
                f"masks of {host.mask_side()} px do not divide into the {span.side} tokens of stage 3"
            )
        routed = list(range(span.exit + 1))
        if self.stages.span == "tiles":
            tile_grid(host, span, grid)
        if self.stages.stage4 == "routed":
            stage4_grid(host, span, grid)
            routed += stage4_blocks(host, span)
        blocks = host.blocks()
        return [*(blocks[index] for index in routed), *host.token_to_image()]

    def bind(self, surgery: Surgery, before: Bound[Any] | None) -> WindowRouter:
        """See `Operation.bind`."""
        return WindowRouter(self, surgery, before if isinstance(before, WindowRouter) else None)

    @classmethod
    def simulate(cls, surgery: Surgery, candidates: Sequence[Any]) -> WindowSimulation | None:
        """See `Operation.simulate`; None where every window is computed anyway."""
        router = surgery.find(WindowRouter)
        return WindowSimulation(router, candidates) if router is not None and router.settings.approximate else None

"""Blocks of the stage after the routed span, under `stage4: routed`: packed windows through the host's own parts."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from surgery.hosts.base import Binding, HostView, SpanInfo
from surgery.hosts.blocks import HieraBlock
from surgery.operations.window_geometry import late_blocks
from surgery.routing.late import LateRoute
from surgery.routing.span import Route


@dataclass(eq=False)
class LatePart:
    """Payload of a grafted block of the stage: whether it is the first one, which pools, and whether the last."""

    binding: Binding
    first: bool
    last: bool


class LateBlock(HieraBlock):
    """A block of the stage after the span."""

    _surgery: LatePart

    def forward(self, hidden_states: Tensor, **kwargs: Any) -> Tensor:
        part = self._surgery
        route = part.binding.route
        late = route.late if route is not None else None
        if route is None or late is None:
            return super().forward(hidden_states, **kwargs)  # type: ignore[misc]
        if route.dense:
            out: Tensor = super().forward(hidden_states, **kwargs)  # type: ignore[misc]
            if part.last and route.observe:
                late.seen = out
            return out
        if part.first:
            tokens = self._change(hidden_states, route, late, kwargs)
        else:
            tokens = hidden_states + self._mixed(self._norm1(hidden_states), late, late.packing, kwargs)
        tokens = tokens + self.mlp(self._norm2(tokens))  # type: ignore[attr-defined]
        return late.merge(tokens) if part.last else tokens

    def _change(self, feature_map: Tensor, route: Route, late: LateRoute, kwargs: dict[str, Any]) -> Tensor:
        """Stage-3 map [1, H, W, C] -> residual stream of the chosen windows, pooled: [1, N / 4, 1, 2 C]."""
        assert route.chosen is not None and route.packing is not None
        flat = feature_map.reshape(-1, feature_map.shape[-1])
        normed = self._norm1(flat.index_select(0, route.chosen)[None, :, None])
        projected = self.proj(normed)  # type: ignore[attr-defined]
        window = self.window_size  # type: ignore[attr-defined]
        return late.pool(projected, route.packing, window) + self._mixed(normed, late, route.packing, kwargs)

    def _mixed(self, normed: Tensor, late: LateRoute, packing: Any, kwargs: dict[str, Any]) -> Tensor:
        window = self.window_size  # type: ignore[attr-defined]
        return late.attention(normed, packing, lambda x: self._attend(x, kwargs), window)


def late_parts(view: HostView, span: SpanInfo) -> list[tuple[nn.Module, LatePart]]:
    """Every block of the stage after the span's, with its part."""
    numbers, blocks = late_blocks(view, span), view.blocks()
    return [(blocks[index], LatePart(view.binding, index == numbers[0], index == numbers[-1])) for index in numbers]

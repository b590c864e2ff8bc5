"""The grafts every host shares: encoder block, decoder tap, memory cross-attention.

A host adds the names of its own sub-modules and nothing else.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from torch import Tensor

from surgery.graft import Graft
from surgery.hosts.base import Binding
from surgery.retrieval.attention import Projections, measure, pruned_attention, rotated_query
from surgery.retrieval.bank import KeyPlan
from surgery.retrieval.queries import QueryRoute, whole_memory_attention
from surgery.routing.span import Route, enter, leave, windowed_attention


@dataclass(eq=False)
class BlockPart:
    """Payload of a grafted block: its part in the span."""

    binding: Binding
    entry: bool
    exit: bool


@dataclass(eq=False)
class LayerPart:
    """Payload of a grafted attention: its number among its kind."""

    binding: Binding
    layer: int


class HieraBlock(Graft):
    """A block that runs on packed tokens: what the hosts name differently."""

    def _norm1(self, tokens: Tensor) -> Tensor:
        raise NotImplementedError

    def _norm2(self, tokens: Tensor) -> Tensor:
        raise NotImplementedError

    def _attend(self, windows: Tensor, kwargs: dict[str, Any]) -> Tensor:
        """[n, h, w, C] -> attention output by the host's own module, which pools where the block does."""
        return self.attn(windows, **kwargs)  # type: ignore[attr-defined]


class SpanBlock(HieraBlock):
    """A block of the routed span, or the block that ends it."""

    _surgery: BlockPart

    def forward(self, hidden_states: Tensor, **kwargs: Any) -> Tensor:
        part = self._surgery
        route = part.binding.route
        if route is None:
            return super().forward(hidden_states, **kwargs)  # type: ignore[misc]
        if route.dense:
            return self._observe(hidden_states, route, part, kwargs)
        if part.exit:
            side = part.binding.grid
            assert side is not None
            merged = leave(hidden_states, route, (1, side.height, side.width))
            return super().forward(merged, **kwargs)  # type: ignore[misc]
        if part.entry:
            hidden_states = enter(hidden_states, route, self.shortcut)  # type: ignore[attr-defined]
        return self._routed(hidden_states, route, kwargs)

    def _observe(self, hidden_states: Tensor, route: Route, part: BlockPart, kwargs: dict[str, Any]) -> Tensor:
        if route.observe and part.entry:
            route.seen_input = hidden_states
        if route.observe and part.exit:
            route.seen_output = hidden_states
        return super().forward(hidden_states, **kwargs)  # type: ignore[misc]

    def _routed(self, tokens: Tensor, route: Route, kwargs: dict[str, Any]) -> Tensor:
        normed = self._norm1(tokens)
        window = self.window_size  # type: ignore[attr-defined]
        if window:
            mixed = windowed_attention(normed, route, lambda x: self._attend(x, kwargs), window)
        elif route.real is None:
            mixed = self._attend(normed, kwargs)
        else:
            return self._published_global(tokens, route, kwargs)
        tokens = tokens + mixed
        return tokens + self.mlp(self._norm2(tokens))  # type: ignore[attr-defined]

    def _published_global(self, tokens: Tensor, route: Route, kwargs: dict[str, Any]) -> Tensor:
        """Global attention among real tokens; padding is reset to zero afterwards, as in the released code."""
        assert route.real is not None
        real = tokens.index_select(1, route.real)
        real = real + self._attend(self._norm1(real), kwargs)
        real = real + self.mlp(self._norm2(real))  # type: ignore[attr-defined]
        return tokens.new_zeros(tokens.shape).index_copy(1, route.real, real.to(tokens.dtype))


class DecoderTap(Graft):
    """Token-to-image attention of the mask decoder: notes what it read, then runs as it is."""

    _surgery: LayerPart

    def _tap(self, query: Tensor, key: Tensor) -> None:
        taps = self._surgery.binding.taps
        if taps is not None:
            # A list that grew would be another list to a compiled graph on every call.
            taps[self._surgery.layer] = (query, key)


class MemoryCrossAttention(Graft):
    """Cross-attention to memory over the rows of the current plan."""

    _surgery: LayerPart

    def _planned(
        self, query: Tensor, key: Tensor, value: Tensor, cos: Tensor, sin: Tensor, plan: KeyPlan | None,
        route: QueryRoute | None, pointers: int,
    ) -> Tensor | None:  # fmt: skip
        """[N, C] for pruned layers and routed queries, None when the stock module should run on everything.

        query: [N, C] normed queries; key, value: [M, 64], the last `pointers` of them without a position; cos,
        sin: [T, d / 2] grid tables.
        """
        layer = self._surgery.layer
        if route is None and (plan is None or (not plan.measures and plan.index[layer] is None)):
            return None
        parts = self._projections()
        turns = (cos, sin) if route is None else (cos.index_select(0, route.index), sin.index_select(0, route.index))
        turned = rotated_query(query, parts, *turns)
        if plan is not None:
            measure(turned, key, plan, layer, parts, cos, sin)
        if plan is None or plan.index[layer] is None:
            if route is None:
                return None
            return whole_memory_attention(turned, key, value, pointers, parts, cos, sin)
        return pruned_attention(turned, key, value, plan, layer, parts, cos, sin)

    def _projections(self) -> Projections:
        raise NotImplementedError

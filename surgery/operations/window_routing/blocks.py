"""What encoder blocks do on a routed frame: those before the span, of the span, and of the stage after it."""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor

from surgery.core.frame import FrameContext
from surgery.core.seams import BlockCall
from surgery.operations.window_routing.global_blocks import DenseGlobals, GlobalRoute
from surgery.operations.window_routing.shortcut import Shortcut
from surgery.operations.window_routing.span import Route, enter, leave, updated
from surgery.operations.window_routing.stage4 import Stage4Route

Proceed = Callable[[Tensor], Tensor]
TYPE = "sparse_window_routing"
"""The key of the frame's route among the records of its context."""


def route_of(context: FrameContext) -> Route | None:
    """The frame's route, or None where the encoder runs as it is. It may be made only when the first block asks."""
    found: Route | Callable[[], Route] | None = context.records.get(TYPE)
    if found is not None and not isinstance(found, Route):
        found = context.records[TYPE] = found()
    return found


class Stages12Block:
    """A block before the span. Pieces hold whole windows, so the host's own partition of a piece cuts what it would
    have cut from the map.

    gathers: whether it receives a whole map (first block of a stage). level: number of the stage it ends, or None.
    """

    def __init__(self, gathers: bool, level: int | None) -> None:
        self.gathers, self.level = gathers, level

    def __call__(self, context: FrameContext, block: BlockCall, tokens: Tensor, proceed: Proceed) -> Tensor:
        route = route_of(context)
        tiles = route.tiles if route is not None else None
        if route is None or tiles is None:
            return proceed(tokens)
        if block.number == 0:
            tiles.entering = tokens
        if self.gathers and not route.dense:
            tokens = tiles.gather(tokens)
        out = proceed(tokens)
        if self.level is None:
            return out
        if not route.dense:
            return tiles.merge(out, self.level)
        if route.observe:
            tiles.note(out)
        return out


class SpanBlock:
    """A block of the routed span, or the block that ends it.

    window: 0 for a global block. side: of the map. first, last: whether the span begins or ends with it. begins: the
    shortcut of the run that begins with it, or after it where it is global; ends: of the run that ends before it.
    """

    def __init__(
        self, window: int, side: int, first: bool, last: bool, begins: Shortcut | None, ends: Shortcut | None
    ) -> None:
        self.window, self.side, self.first, self.last = window, side, first, last
        self.begins, self.ends = begins, ends

    @property
    def inner(self) -> bool:
        """Whether it is a global block before the one that ends the span."""
        return not self.window and not self.last

    def __call__(self, context: FrameContext, block: BlockCall, tokens: Tensor, proceed: Proceed) -> Tensor:
        route = route_of(context)
        if route is None:
            return proceed(tokens)
        if route.dense:
            return self._whole(tokens, route, block, proceed)
        runs = route.globals if isinstance(route.globals, DenseGlobals) else None
        if self.window and self.begins is None:
            return self._routed(tokens, route, block)
        if runs is None:
            if self.last:
                return proceed(leave(tokens, route, (1, self.side, self.side)))
            if self.begins is not None:
                tokens = enter(tokens, route, self.begins)
            return self._routed(tokens, route, block)
        if self.window:
            return self._routed(self._begun(tokens, route, runs), route, block)
        if self.ends is not None:
            tokens = leave(tokens, route, (1, self.side, self.side))
            runs.seen.append(updated(route))
        tokens = proceed(tokens)
        return tokens if self.last else self._begun(tokens, route, runs)

    def _begun(self, tokens: Tensor, route: Route, runs: DenseGlobals) -> Tensor:
        """The chosen tokens of a map [1, H, W, C] whose windowed blocks come now."""
        assert runs.last is not None and self.begins is not None
        route.memory = runs.last[len(runs.seen)]
        return enter(tokens, route, self.begins)

    def _whole(self, tokens: Tensor, route: Route, block: BlockCall, proceed: Proceed) -> Tensor:
        """A dense frame, whose input and output of the span and of its global blocks are noted where asked for."""
        runs = route.globals
        if route.observe and self.first:
            route.seen_input = tokens
        if route.observe and self.last:
            route.seen_output = tokens
        if isinstance(runs, GlobalRoute) and self.inner:
            runs.note(tokens, block)
        if not isinstance(runs, DenseGlobals):
            return proceed(tokens)
        if self.ends is not None:
            runs.end(tokens, self.ends)
        out = proceed(tokens)
        if self.begins is not None:
            runs.begun = tokens if self.window else out
        return out

    def _routed(self, tokens: Tensor, route: Route, block: BlockCall) -> Tensor:
        normed = block.norm1(tokens)
        if self.window:
            assert route.packing is not None
            mixed = route.packing.by_window(normed, block.attend, self.window)
        elif isinstance(route.globals, GlobalRoute):
            assert route.chosen is not None and route.packing is not None
            mixed = route.globals.attend(normed, route.chosen, route.packing, block)
        elif route.real is None:
            mixed = block.attend(normed, route.chosen)
        else:
            return self._published_global(tokens, route, block)
        tokens = tokens + mixed
        return tokens + block.feed_forward(tokens)

    def _published_global(self, tokens: Tensor, route: Route, block: BlockCall) -> Tensor:
        """Global attention among real tokens; padding is reset to zero afterwards, as in the released code."""
        assert route.real is not None
        real = tokens.index_select(1, route.real)
        real = real + block.attend(block.norm1(real), route.chosen)
        real = real + block.feed_forward(real)
        return tokens.new_zeros(tokens.shape).index_copy(1, route.real, real.to(tokens.dtype))


class Stage4Block:
    """A block of the stage after the span, on packed windows. first: it pools. last: of the stage."""

    def __init__(self, window: int, first: bool, last: bool) -> None:
        self.window, self.first, self.last = window, first, last

    def __call__(self, context: FrameContext, block: BlockCall, tokens: Tensor, proceed: Proceed) -> Tensor:
        route = route_of(context)
        stage4 = route.stage4 if route is not None else None
        if route is None or stage4 is None:
            return proceed(tokens)
        if route.dense:
            if self.first and route.observe:
                stage4.enter(tokens)
            out = proceed(tokens)
            if self.last and route.observe:
                stage4.note(out)
            return out
        if self.first:
            stage4.enter(tokens)
            tokens = self._change(tokens, route, stage4, block)
        else:
            assert stage4.packing is not None
            tokens = tokens + stage4.packing.by_window(block.norm1(tokens), block.attend, self.window)
        tokens = tokens + block.feed_forward(tokens)
        return stage4.merge(tokens) if self.last else tokens

    def _change(self, feature_map: Tensor, route: Route, stage4: Stage4Route, block: BlockCall) -> Tensor:
        """Stage-3 map [1, H, W, C] -> residual stream of the chosen windows, pooled: [1, N / 4, 1, 2 C]."""
        assert route.chosen is not None and route.packing is not None
        flat = feature_map.reshape(-1, feature_map.shape[-1])
        normed = block.norm1(flat.index_select(0, route.chosen)[None, :, None])
        mixed = route.packing.by_window(normed, block.attend, self.window, stage4.packing)
        return stage4.pool(block.project(normed), route.packing, self.window) + mixed

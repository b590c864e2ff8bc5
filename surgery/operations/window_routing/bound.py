"""Window routing in one model: the encoder call of a frame, and what runs at the blocks."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Literal

import torch
from torch import Tensor

from surgery.core.frame import ComputedWindows, FrameContext
from surgery.core.operation import Bound, Patch
from surgery.core.parts import ENCODER, Part
from surgery.core.patching import own_forward
from surgery.core.session import FrameRecord
from surgery.core.surgery import Surgery
from surgery.core.windows import WindowGrid
from surgery.errors import ModelStateError
from surgery.operations.window_routing.blocks import SpanBlock, Stage4Block, Stages12Block, route_of
from surgery.operations.window_routing.geometry import last_blocks, span_of, stage4_blocks, stage4_grid, tile_grid
from surgery.operations.window_routing.global_blocks import DenseGlobals, GlobalRoute
from surgery.operations.window_routing.policy import Policy, RoutedFrame, WindowState, by_evidence
from surgery.operations.window_routing.reuse import RunMemory, blank
from surgery.operations.window_routing.router import budgeted
from surgery.operations.window_routing.settings import WindowSettings
from surgery.operations.window_routing.shortcut import Shortcut, make_shortcut
from surgery.operations.window_routing.span import Route, make_route, updated_memory, updated_tiles
from surgery.operations.window_routing.stage4 import Stage4Route


@dataclass(frozen=True, eq=False)
class SpanSeen:
    """Told to an observer after every frame: the span's input and output, [1, H, W, C] each. runs: input and output of
    every run of blocks that has a shortcut, [H * W, C] each."""

    entering: Tensor
    leaving: Tensor
    runs: tuple[tuple[Tensor, Tensor], ...]


class WindowRouter(Bound[WindowSettings]):
    """Window routing in one model.

    span: where it lies. grid: its windows. tiles, stage4: what the recipe routes besides, or None. globals: how inner
    global blocks know of skipped tokens; None: they do not. shortcut: what stands in for the span. policy: chooses the
    windows.
    """

    def __init__(self, settings: WindowSettings, surgery: Surgery, before: WindowRouter | None) -> None:
        super().__init__(settings, surgery)
        host = surgery.host
        self.span = span = span_of(host)
        kinds = {"cached": GlobalRoute, "dense": DenseGlobals}
        self.globals: type[GlobalRoute | DenseGlobals] | None = kinds.get(settings.stages.globals)
        # Among chosen tokens alone, those that fill a window up would be keys like any other.
        filled = surgery.fixed_shapes and self.globals is GlobalRoute and settings.skipped.padding != "published"
        self.grid: WindowGrid = WindowGrid(span.side, span.side, span.window, filled)
        self.tiles = tile_grid(host, span, self.grid) if settings.stages.span == "tiles" else None
        self.stage4 = stage4_grid(host, span, self.grid) if settings.stages.stage4 == "routed" else None
        self.steps = self.grid.count
        self.policy: Policy = by_evidence
        self.shortcut: Shortcut = before.shortcut if before is not None else self._new()
        if self.globals is DenseGlobals:
            self.shortcut.divided(self._runs)
        self.learned = (host.blocks()[span.entry], "shortcut", self.shortcut)

    def _new(self) -> Shortcut:
        host, span = self.surgery.host, self.span
        reference = next(host.blocks()[span.entry].parameters())
        shortcut = make_shortcut(self.settings.skipped.shortcut.type, span.channels)
        return shortcut.to(reference.device, reference.dtype).train(bool(host.model.training))

    def role(self, index: int) -> Literal["dense", "routed", "merge"]:
        """What a block does: all windows, chosen ones only, or all of them after it merged the chosen with the rest."""
        if index == self.span.exit:
            return "merge"
        after = self.stage4 is not None and index in stage4_blocks(self.surgery.host, self.span)
        return "routed" if index in self.span.routed or after else "dense"

    def patches(self) -> Iterator[Patch]:
        """See `Bound.patches`."""
        host, span = self.surgery.host, self.span
        yield Patch("encode", self._encode)
        ends = last_blocks(host, span) if self.tiles is not None else []
        for index in range(span.entry if self.tiles is not None else 0):
            level = ends.index(index) if index in ends else None
            yield Patch("block", Stages12Block(index == 0 or index - 1 in ends, level), index)
        yield from self._span_patches()
        if self.settings.stages.stage4 == "routed":
            numbers = stage4_blocks(host, span)
            for index in numbers:
                window = host.block_info(index).window
                yield Patch("block", Stage4Block(window, index == numbers[0], index == numbers[-1]), index)

    def _span_patches(self) -> Iterator[Patch]:
        """A run begins where the span does or, with dense global blocks, after each of them."""
        span, dense = self.span, self.globals is DenseGlobals
        shortcuts, running = iter(self.shortcuts), None
        for index in range(span.entry, span.exit + 1):
            window, first, last = self.surgery.host.block_info(index).window, index == span.entry, index == span.exit
            ends = running if dense and not window else None
            begins = next(shortcuts) if (not last if dense and not window else first) else None
            running = begins or running
            runs = SpanBlock(window, span.side, first, last, begins, ends)
            yield Patch("block", runs, index)

    @property
    def shortcuts(self) -> list[Shortcut]:
        """Those that run, one a run of blocks."""
        parts = self.shortcut.parts if self.globals is DenseGlobals else None
        return [self.shortcut] if parts is None else list(parts)  # type: ignore[arg-type]

    @property
    def _runs(self) -> int:
        """Runs of blocks that have a shortcut."""
        if self.globals is not DenseGlobals:
            return 1
        windows = [self.surgery.host.block_info(index).window for index in self.span.routed]
        return sum(not window for window in windows) + bool(windows[0])

    def _encode(self, context: FrameContext, pixels: Tensor, proceed: Callable[[], Any]) -> Any:
        """Ask what there is to see, run, choose windows where the first block wants them, remember."""
        settings, grid, host, observer = self.settings, self.grid, self.surgery.host, context.observer
        frame = RoutedFrame(settings, grid, host, context, pixels)
        if observer is not None:
            frame.reason = "watched"
        else:
            frame.reason = frame.must_be_dense() if settings.approximate else "every window asked for"

        def choose() -> Route:
            # Launched before what was asked for is waited for.
            urgency = frame.tile_urgency(self.tiles) if self.tiles is not None else None
            frame.windows, frame.reason = self.policy(frame)
            return self.route(frame.state, frame.windows, frame.device, urgency)

        if frame.reason is None:
            frame.ask()
            context.records[settings.type] = choose
        else:
            context.records[settings.type] = self._dense_route(observer is not None, frame.device)
        try:
            if self._in_one_piece:
                route = route_of(context)
                if route is not None and not route.dense and "forward" in vars(host.image_encoder()):
                    # The VOS predictor compiled its encoder itself, one graph for each shape, and fails at the ninth.
                    route.settle(grid)
            features = proceed()
            route = route_of(context)
        finally:
            del context.records[settings.type]
        assert route is not None
        if observer is not None and route.seen_input is not None and route.seen_output is not None:
            whole = ((route.seen_input.flatten(0, 2), route.seen_output.flatten(0, 2)),)
            runs = tuple(route.globals.passes or ()) if isinstance(route.globals, DenseGlobals) else whole
            observer.noted(SpanSeen(route.seen_input, route.seen_output, runs))
        self._remember(route, frame)
        self._note(frame)
        return features

    @property
    def _in_one_piece(self) -> bool:
        """Whether the encoder runs compiled or recorded: then windows must be known before it starts."""
        host = self.surgery.host
        around = (host.image_encoder(), *host.image_encoder().children(), *host.blocks())
        return (
            torch.compiler.is_compiling()
            or self._recorded
            or any("forward" in vars(each) and not own_forward(each) for each in around)
            or any(vars(each).get("_compiled_call_impl") is not None for each in around)
        )

    @cached_property
    def _recorded(self) -> bool:
        """Whether another operation compiles or records the encoder."""
        others = (bound for bound in self.surgery.bound if bound is not self)
        return any(each.seam == "forward" and each.index == ENCODER for bound in others for each in bound.patches())

    def route(
        self, state: WindowState, windows: Sequence[int] | None, device: torch.device, urgency: Tensor | None = None
    ) -> Route:
        """The route of a frame that computes `windows`, None: all, given what the video remembers. urgency: of the
        pieces of tiles."""
        if windows is None:
            return self._dense_route(False, device)
        settings = self.settings
        memory = state.span if settings.remembers_span else None
        published = settings.skipped.padding == "published"
        packed = not self.shortcut.pointwise
        route = make_route(self.grid, windows, device, memory, published, packed, settings.skipped.temporal)
        if self.tiles is not None and state.tiles is not None:
            pieces = self._early(len(windows), self.tiles.count)
            route.tiles = self.tiles.route(windows, device, state.tiles, urgency, pieces)
        if self.stage4 is not None and state.stage4 is not None:
            route.stage4 = self.stage4.route(windows, device, state.stage4)
        if self.globals is not None and state.globals is not None:
            route.globals = self.globals(state.globals)
        return route

    def _early(self, windows: int, pieces: int) -> int:
        """How many of all `pieces` pass the blocks before the span on a frame of so many windows, at least."""
        early = self.settings.stages.early
        # Else the windows of a widened frame would take the pieces of the objects' borders.
        more = max(0, windows - self.allowed) / self.grid.count if early else 0.0
        return min(pieces, round((early + more) * pieces))

    def _dense_route(self, watched: bool, device: torch.device) -> Route:
        """The route of a frame that computes all windows. watched: an observer looks on."""
        settings, grid = self.settings, self.grid
        if settings.skipped.padding == "published" and grid.padded and not watched:
            return make_route(grid, range(grid.count), device, None, published_padding=True)
        route = Route(dense=True, observe=watched or (settings.approximate and settings.skipped.temporal))
        if settings.approximate:
            route.tiles = self.tiles.watch() if self.tiles is not None else None
            route.stage4 = Stage4Route() if self.stage4 is not None else None
            route.globals = self.globals() if self.globals is not None else None
            if isinstance(route.globals, DenseGlobals) and watched:
                route.globals.passes = []
        return route

    def _remember(self, route: Route, frame: RoutedFrame) -> None:
        settings, state = self.settings, frame.state
        if not frame.context.watched:
            with self.surgery.inside(ENCODER, frame.device.type):
                if route.tiles is not None and route.seen_output is not None:
                    picture = frame.picture if settings.stages.early else None
                    state.tiles = updated_tiles(route, self.shortcut, picture)
                elif settings.remembers_span and settings.approximate:
                    state.span = updated_memory(route, self.shortcut, self.grid)
        if route.stage4 is not None and route.stage4.seen is not None:
            state.stage4 = route.stage4.seen
        if route.globals is not None:
            state.globals = tuple(route.globals.seen)
        frame.remember(None if frame.windows is None else route.chosen)

    def _note(self, frame: RoutedFrame) -> None:
        """Tell the other operations, the host and the statistics."""
        grid, context, video, reason = self.grid, frame.context, frame.context.video, frame.reason
        ids = None if frame.windows is None else tuple(frame.windows)
        if self.settings.approximate:
            context.provide(ComputedWindows(grid, ids, frame.state.seen))
        context.sparse = context.sparse or ids is not None
        if video.first is None or video.first.counted or context.step is None or context.step.prompted:
            return
        video.first.counted = True
        computed = tuple(range(grid.count)) if ids is None else ids
        video.stats.correct("windows", len(computed) / grid.count - 1.0)
        whole, more = (reason, None) if ids is None else (None, reason)
        cover = grid.cols * grid.window / grid.width
        video.stats.last = FrameRecord(context.frame, computed, (grid.rows, grid.cols), whole, cover, more)
        if reason is not None:
            (video.stats.dense if ids is None else video.stats.widened)[reason] += 1

    @property
    def allowed(self) -> int:
        """Windows of a routed frame by the settings' budget."""
        return budgeted(self.settings.budget, self.grid.count) if self.settings.approximate else self.grid.count

    def pretend(self, context: FrameContext, kept: Mapping[str, float]) -> None:
        """See `Bound.pretend`: the first windows are computed, all others were once."""
        share = kept.get("windows", self.allowed / self.grid.count)
        windows = range(max(1, round(share * self.grid.count)))
        if len(windows) < self.grid.count:
            self.pretend_windows(context, windows)

    def pretend_windows(self, context: FrameContext, windows: Sequence[int]) -> None:
        """See `pretend`: these windows are computed."""
        reference = next(self.surgery.host.image_encoder().parameters())
        device, dtype, settings = reference.device, reference.dtype, self.settings
        state, urgency = context.video.state(WindowState), None
        if self.tiles is not None:
            extra = settings.stages.early > 0
            state.tiles = self.tiles.blank(self.span.channels, device, dtype, extra)
            urgency = torch.zeros(self.tiles.count, device=device) if extra else None
        elif settings.remembers_span:
            state.span = self._blank_run(device, dtype)
        if self.stage4 is not None:
            state.stage4 = self.stage4.blank(device, dtype)
        state.globals = self._blank_globals(device, dtype)
        context.records[settings.type] = self.route(state, windows, device, urgency)
        context.provide(ComputedWindows(self.grid, tuple(windows)))

    def _blank_run(self, device: torch.device, dtype: torch.dtype) -> RunMemory:
        return blank(self.grid.tokens, self.span.channels, self.span.channels, device, dtype)

    def _blank_globals(self, device: torch.device, dtype: torch.dtype) -> tuple[Tensor | RunMemory, ...]:
        """`WindowState.globals` of zeros."""
        if self.globals is DenseGlobals:
            return tuple(self._blank_run(device, dtype) for _ in range(self._runs))
        tokens, channels, infos = (
            self.grid.tokens,
            self.span.channels,
            map(self.surgery.host.block_info, self.span.routed),
        )
        heads = [info.heads for info in infos if not info.window]
        return tuple(torch.zeros(tokens, 2, each, channels // each, device=device, dtype=dtype) for each in heads)

    def kind(self, context: FrameContext, part: Part, fixed: bool) -> tuple[Any, ...]:
        """See `Bound.kind`."""
        if part != ENCODER:
            return ()
        route = route_of(context)
        return ("plain",) if route is None else route.kind(self.grid, fixed)

    def own(self, context: FrameContext, part: Part) -> None:
        """See `Bound.own`."""
        route = route_of(context) if part == ENCODER else None
        if route is not None:
            route.own()


def require_router(surgery: Surgery) -> WindowRouter:
    """Window routing of a model under surgery. Raises ModelStateError where its recipe has none."""
    router = surgery.find(WindowRouter)
    if router is None:
        raise ModelStateError("this recipe has no window routing")
    return router

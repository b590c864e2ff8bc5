"""Sparse Query Routing: for which tokens memory attention runs."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any, ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor, nn

from surgery.core.attention import AttentionCall, ConditionedBy, MemoryCall
from surgery.core.cost import width_of
from surgery.core.early import sent
from surgery.core.evidence import EvidenceSettings, mask_tokens
from surgery.core.frame import ComputedWindows, FrameContext, ObjectStep
from surgery.core.host import HostView
from surgery.core.operation import MOST, Bound, Fraction, Operation, Patch, percent
from surgery.core.parts import ATTENTION, Part
from surgery.core.surgery import Surgery
from surgery.core.windows import WindowGrid, longest_waiting
from surgery.errors import bypassed
from surgery.operations.query_routing.queries import (
    BUCKETS,
    FrameRegions,
    ObjectRegion,
    QueryMemory,
    QueryRoute,
    query_count,
    query_tokens,
)

WINDOWS = 8
"""Windows on a side where nobody routes windows: rolling goes by them."""


class SparseQueryRouting(Operation):
    """Memory attention runs for tokens of computed windows and near the object; the others keep their last output."""

    type: Literal["sparse_query_routing"] = "sparse_query_routing"
    margin: int = Field(2, ge=0, le=255, description="tokens by which the object's mask candidates are widened")
    rolling: int = Field(
        1, ge=0, le=MOST, description="further windows whose tokens are queries, those that waited longest"
    )
    budget: Fraction = Field(
        1.0,
        description="largest share of the tokens that are queries; 1: no limit",
    )

    alias: ClassVar[str] = "queries"
    order: ClassVar[int] = -1
    share: ClassVar[str | None] = "queries"

    @property
    def approximate(self) -> bool:
        """Always: tokens may keep their last output."""
        return True

    @property
    def clause(self) -> str:
        """See `Operation.clause`."""
        if self.budget < 1.0:
            return f"memory attention for at most {percent(self.budget)} of the tokens"
        return "memory attention for computed windows and near the object"

    @property
    def evidence(self) -> EvidenceSettings:
        """See `Operation.evidence`."""
        return EvidenceSettings()

    def structure(self) -> dict[str, Any]:
        """See `Operation.structure`: a query costs what it costs."""
        return {}

    def allowed(self, kept: Mapping[str, float]) -> float | None:
        """See `Operation.allowed`: the budget, or what computed windows need. How far objects reach is not known."""
        return max(kept.get("windows", 0.0), self.budget)

    def check(self, host: HostView) -> list[nn.Module]:
        """See `Operation.check`: every attention of memory attention."""
        return [*host.self_attentions(), *host.cross_attentions()]

    def bind(self, surgery: Surgery, before: Bound[Any] | None) -> QueryRouter:
        """See `Operation.bind`."""
        return QueryRouter(self, surgery)


class QueryRouter(Bound[SparseQueryRouting]):
    """Query routing in one model. reaches: whether tokens near the object are queries; benchmarks fix the work."""

    saves_in: ClassVar[Part] = ATTENTION
    steps = BUCKETS

    def __init__(self, settings: SparseQueryRouting, surgery: Surgery) -> None:
        super().__init__(settings, surgery)
        self.reaches = True
        side = surgery.host.frame_side()
        self._grid = WindowGrid(side, side, max(1, side // WINDOWS))

    def patches(self) -> Iterator[Patch]:
        """See `Bound.patches`."""
        yield Patch("encode", self._look)
        yield Patch("memory_attention", self._conditioned)
        yield Patch("self_attention", self._among_tokens)
        yield Patch("cross_attention", self._placed)

    def _look(self, context: FrameContext, pixels: Tensor, proceed: Callable[[], Any]) -> Any:
        """Where each object may be, before a frame is encoded; and after, which windows were computed."""
        step, grid, observer = context.step, self._windows(), context.observer
        picture = context.picture(pixels, grid.height, grid.width) if self.settings.budget < 1.0 else None
        near: dict[int, Tensor] = {}
        if step is not None and not step.dense and observer is None:
            near = {
                obj_id: mask_tokens(item.mask, grid.height, grid.width, self.settings.margin)
                for obj_id, item in context.known.items()
                if obj_id in step.objects and item.frame == step.previous
            }
        if near:
            context.facts["near"] = grid.mass(torch.stack(list(near.values())).to(torch.float32))
        features = proceed()
        computed = context.get(ComputedWindows)
        windows = () if computed is None else computed.ids
        found = FrameRegions(context.frame, windows, grid, self.settings.budget, picture=picture)
        if near and found.windows is not None:
            found.regions = self._regions(near, context.read()["near"], grid)
            if computed is not None and picture is not None and computed.seen is not None:
                found.changed = (picture - computed.seen.to(picture.device)).abs().mean(0).flatten()
        context.video.states[FrameRegions] = found
        return features

    def _windows(self) -> WindowGrid:
        """Windows by which the encoder is computed, or else squares of the map."""
        routed = (bound.grid for bound in self.surgery.bound if bound.grid is not None)
        return next((grid for grid in routed if grid.tokens == self._grid.tokens), self._grid)

    def _regions(self, near: dict[int, Tensor], counts: list[float], grid: WindowGrid) -> dict[int, ObjectRegion]:
        """near: bool [T] by object; counts: how many in each window, object by object."""
        if not self.reaches:
            return {obj_id: ObjectRegion(torch.zeros_like(each), (0,) * grid.count) for obj_id, each in near.items()}
        return {
            obj_id: ObjectRegion(each, tuple(round(n) for n in counts[row * grid.count : (row + 1) * grid.count]))
            for row, (obj_id, each) in enumerate(near.items())
        }

    def _conditioned(self, context: FrameContext, call: MemoryCall, proceed: ConditionedBy) -> Tensor:
        """Memory attention for one object, for all tokens or for a subset."""
        step, video, name = context.step, context.video, self.settings.type
        if step is None or call.current.shape[1] != 1:
            return proceed(call)
        last = video.of_object(QueryMemory, step.obj_id, step.reverse)
        found = video.state(FrameRegions)
        windows = self._certain(context, step, found, last, call.current)
        route = None if windows is None else self._route(found, last, step, windows, call.current.device)
        share = 1.0 if route is None else route.index.shape[0] / route.tokens
        video.count("queries", share, step.obj_id)
        noted: list[Tensor | None] = [None] * call.layers
        context.records[name] = noted if route is None else route
        try:
            out = proceed(call) if route is None else self._subset(call, route, proceed)
        finally:
            del context.records[name]
        inputs = [tokens for tokens in noted if tokens is not None] if route is None else route.inputs
        if len(inputs) != call.layers:
            raise bypassed(f"memory attention ran {len(inputs)} of its {call.layers} self-attentions")
        ages, picture = (0,) * self._windows().count, found.picture
        if route is not None and windows is not None:
            ages = tuple(0 if window in windows else age + 1 for window, age in enumerate(last.ages))
            picture = renewed_picture(last.picture, found.picture, route.index)
        memory = QueryMemory(step.frame, out.reshape(-1, out.shape[-1]), tuple(inputs), ages, picture)
        video.set_object(memory, step.obj_id, step.reverse)
        return out

    def _subset(self, call: MemoryCall, route: QueryRoute, proceed: ConditionedBy) -> Tensor:
        out = proceed(call.of(route.index))
        merged = route.merged(out.reshape(-1, out.shape[-1]))
        return merged.reshape(*out.shape[:-2], *merged.shape) if out.ndim == 4 else merged[:, None]

    def _certain(
        self, context: FrameContext, step: ObjectStep, found: FrameRegions, last: QueryMemory, current: Tensor
    ) -> set[int] | None:
        """Windows whose tokens are all queries, or None when every token is one."""
        stale = last.output is None or last.frame != step.previous or last.output.device != current.device
        if step.dense or stale or found.frame != step.frame or found.windows is None or context.observer is not None:
            return None
        if step.obj_id not in found.regions or found.grid is None or current.shape[0] != found.grid.tokens:
            return None
        taken = [window in found.windows for window in range(found.grid.count)]
        return {*found.windows, *longest_waiting(last.ages, taken, self.settings.rolling)}

    def _route(
        self, found: FrameRegions, last: QueryMemory, step: ObjectStep, windows: set[int], device: torch.device
    ) -> QueryRoute | None:
        grid, region = found.grid, found.regions[step.obj_id]
        assert grid is not None and last.output is not None
        certain = grid.token_ids(sorted(windows))
        outside = sum(count for window, count in enumerate(region.counts) if window not in windows)
        count = query_count(grid.tokens, len(certain), outside, found.budget, self.surgery.fixed_shapes)
        if count == grid.tokens:
            return None
        changed = found.changed
        if changed is None and found.picture is not None and last.picture is not None:
            changed = (found.picture - last.picture.to(found.picture.device)).abs().mean(0).flatten()
        known = sent(certain, device)
        index = query_tokens(known, region.tokens.to(device), count, None if changed is None else changed.to(device))
        return QueryRoute(index, grid.tokens, last.output, list(last.inputs))

    def _among_tokens(
        self, context: FrameContext, call: AttentionCall, proceed: Callable[[AttentionCall], Tensor]
    ) -> Tensor:
        """Self-attention of a layer: routed queries have every token as a key, by the input it last had."""
        record: QueryRoute | list[Tensor | None] | None = context.records.get(self.settings.type)
        if isinstance(record, QueryRoute):
            call.key = call.value = record.renewed(call.query, call.layer)
            call.places, call.tokens, call.on_grid = record.index, record.tokens, True
        elif record is not None:
            record[call.layer] = call.query
        return proceed(call)

    def _placed(self, context: FrameContext, call: AttentionCall, proceed: Callable[[AttentionCall], Tensor]) -> Tensor:
        record = context.records.get(self.settings.type)
        if isinstance(record, QueryRoute):
            call.places, call.tokens = record.index, record.tokens
        return proceed(call)

    def pretend(self, context: FrameContext, kept: Mapping[str, float]) -> None:
        """See `Bound.pretend`: the first tokens are queries."""
        step, host, grid = context.step, self.surgery.host, self._windows()
        share = kept.get("queries", self.settings.allowed(kept))
        if step is None or share is None or share >= 1.0:
            return
        parameter = next(host.memory_attention().parameters())
        still = torch.zeros(grid.tokens, width_of(host), device=parameter.device, dtype=parameter.dtype)
        inputs, ages = (still,) * len(host.self_attentions()), (0,) * grid.count
        context.video.set_object(QueryMemory(step.previous, still, inputs, ages), step.obj_id, step.reverse)
        counts = tuple(len(grid.token_ids([window])) for window in range(grid.count))
        region = ObjectRegion(torch.ones(grid.tokens, dtype=torch.bool, device=parameter.device), counts)
        context.video.states[FrameRegions] = FrameRegions(context.frame, (), grid, share, {step.obj_id: region})

    def kind(self, context: FrameContext, part: Part, fixed: bool) -> tuple[Any, ...]:
        """See `Bound.kind`."""
        record = context.records.get(self.settings.type)
        return () if part != ATTENTION else (isinstance(record, QueryRoute), isinstance(record, list))

    def own(self, context: FrameContext, part: Part) -> None:
        """See `Bound.own`."""
        record = context.records.get(self.settings.type)
        if part != ATTENTION or record is None:
            return
        inputs: list[Any] = record.inputs if isinstance(record, QueryRoute) else record
        inputs[:] = [None if each is None else each.clone() for each in inputs]


def renewed_picture(last: Tensor | None, current: Tensor | None, index: Tensor) -> Tensor | None:
    """The picture of every token when it was last a query: fp32 [3, H, W], after the queries `index` of this frame."""
    if last is None or current is None:
        return current
    places, now = index.to(current.device), current.flatten(1)
    seen = last.to(current.device).flatten(1).index_copy(1, places, now.index_select(1, places))
    return seen.reshape(current.shape)

"""The surgery's part of one frame, the same for every host: whose step it is, which windows, which keys.

Hosts call these from their own per-frame seams. Nothing here knows a host library.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TypeVar

import torch
from torch import Tensor

from surgery.errors import ModelStateError
from surgery.hosts.base import Binding, HostView, ObjectStep
from surgery.hosts.choice import FramePreview, choose_windows, tile_route
from surgery.operations.compile import settle_route
from surgery.operations.precision import inside, is_half
from surgery.retrieval.bank import KeyPlan, plan_keys, remember
from surgery.routing.router import centre, moved
from surgery.routing.span import dense_route, make_route, updated_memory
from surgery.routing.tiles import updated_tiles
from surgery.session import Evidence, FrameRecord, SessionHandle, VideoState

T = TypeVar("T")


@contextmanager
def step_of(binding: Binding, step: ObjectStep, taps: int) -> Iterator[None]:
    """Bind one object's step on one frame for the duration of the host's own per-object call.

    taps: token-to-image attentions of the decoder.
    """
    state, before = binding.state_of(step.handle), binding.step
    state.sync_objects(step.objects)
    if step.prompted:
        state.shared = None
    else:
        if state.cursor != (step.frame, step.reverse):
            _drop_routed(state, step.handle, step.frame)
            state.advance(step.frame, step.reverse)
        state.begin(step.obj_id, step.reverse)
    for direction in (False, True):
        state.memory_of(step.obj_id, direction).forget(step.frame)
    routing = binding.routing
    binding.step = step
    binding.taps = [None] * taps if routing is not None and routing.windows == "object" else None
    try:
        yield
    finally:
        binding.step = before
        binding.taps = None
        binding.memory_frames = None


def _drop_routed(state: VideoState, handle: SessionHandle, frame: int) -> None:
    """Make the host encode `frame` again if the features it caches were routed."""
    if frame in state.routed:
        handle.evict(frame)
        state.routed.discard(frame)


def _drop_halved(state: VideoState, handle: SessionHandle, frame: int) -> None:
    """Make the host encode `frame` again if the features it caches are of half precision."""
    if frame in state.halved:
        handle.evict(frame)
        state.halved.discard(frame)


def image_features(binding: Binding, handle: SessionHandle, frame: int, run: Callable[[], T]) -> T:
    """Wrap the host's "features of this frame, cached or encoded" call."""
    if not binding.enabled:
        state = handle.holder.get(handle.key)
        if isinstance(state, VideoState):
            _drop_routed(state, handle, frame)
            _drop_halved(state, handle, frame)
        return run()
    state = binding.state_of(handle)
    step = binding.step
    if step is not None and step.dense:
        _drop_routed(state, handle, frame)
    before, binding.pending = binding.pending, (state, frame, handle)
    held = frame in handle.cached()
    try:
        features = run()
    finally:
        binding.pending = before
    if not held and is_half(binding, "encoder"):
        state.halved = (state.halved | {frame}) & handle.cached()
    handle.guard(state)
    return features


def encode(view: HostView, pixels: Tensor, run: Callable[[], T]) -> T:
    """Wrap the host's encoder call on normalised pixels [1, 3, S, S]: choose windows, run, remember."""
    binding, span = view.binding, view.span_info
    pending = binding.pending
    if not binding.enabled or pending is None or binding.routing is None or binding.grid is None or span is None:
        return run()
    state, frame, handle = pending
    settings, grid = binding.routing, binding.grid
    shortcut = view.shortcut_module(span)
    observe = settings.windows == "object"
    tiles = binding.tiles if observe and settings.span == "tiles" else None
    late = binding.late if observe and settings.stage4 == "routed" else None
    limited = binding.queries is not None and binding.queries.budget < 1.0
    preview = FramePreview.at(pixels, settings, grid, limited) if observe else FramePreview()
    watcher = binding.watcher
    if watcher is not None:
        watcher.frame(state, frame, binding.step, pixels)
    evidence = state.encode(frame, binding.step is None or binding.step.dense)
    windows: list[int] | None = None
    reason: str | None = "watched" if watcher is not None else "every window asked for"
    if observe and watcher is None:
        windows, reason = choose_windows(binding, view, state, evidence, frame, preview, pixels.device)
    if windows is not None:
        memory = state.span if settings.temporal and tiles is None else None
        early = tile_route(tiles, settings, state, evidence, windows, preview) if tiles is not None else None
        late_route = None
        if late is not None and state.stage4 is not None:
            late_route = late.route(windows, pixels.device, state.stage4)
        route = make_route(
            grid,
            windows,
            pixels.device,
            memory,
            settings.padding == "published",
            not shortcut.pointwise,
            early,
            late_route,
        )
    elif settings.padding == "published" and grid.padded and watcher is None:
        route = make_route(grid, range(grid.count), pixels.device, None, published_padding=True)
    else:
        watch = tiles.watch(watcher is not None) if tiles is not None else None
        late_watch = late.watch() if late is not None else None
        route = dense_route(watcher is not None or (observe and settings.temporal), watch, late_watch)
    if not route.dense and "forward" in vars(view.image_encoder()):
        # The VOS predictor compiled its encoder itself, one graph for each shape, and fails at the ninth.
        settle_route(route, grid)
    binding.route = route
    try:
        features = run()
    finally:
        binding.route = None
    if watcher is not None and route.seen_input is not None and route.seen_output is not None:
        if route.tiles is not None and route.tiles.maps is not None:
            watcher.stages(route.tiles.maps)
        watcher.encoded(route.seen_input, route.seen_output)
    elif route.tiles is not None and route.seen_output is not None:
        picture = preview.picture if settings.early else None
        with inside(binding, "encoder", view.image_encoder(), pixels.device.type):
            state.tiles = updated_tiles(
                route.tiles, route.chosen, route.seen_output, picture, route.seen_input, shortcut
            )
    elif settings.temporal and observe:
        with inside(binding, "encoder", view.image_encoder(), pixels.device.type):
            state.span = updated_memory(route, shortcut, grid)
    if route.late is not None and route.late.seen is not None:
        state.stage4 = route.late.seen.contiguous()
    _note(binding, state, frame, handle.cached(), windows, reason, preview)
    return features


def _note(
    binding: Binding, state: VideoState, frame: int, cached: set[int], windows: list[int] | None, reason: str | None,
    preview: FramePreview,
) -> None:  # fmt: skip
    grid, step = binding.grid, binding.step
    assert grid is not None
    state.encoded, state.thumbnail = frame, preview.thumbnail
    state.computed = tuple(windows) if windows is not None else None
    state.seen = preview.remembered(state.seen, windows, grid)
    state.changed = None
    if binding.queries is not None and binding.queries.budget < 1.0:
        assert preview.picture is not None and state.seen is not None
        state.changed = (preview.picture - state.seen.to(preview.picture.device)).abs().mean(0).flatten()
    state.routed = (state.routed & cached) - {frame}
    if windows is None:
        state.ages = [0] * grid.count
        state.since_dense = 0
    else:
        chosen = set(windows)
        state.routed.add(frame)
        state.ages = [0 if window in chosen else age + 1 for window, age in enumerate(state.ages)]
        state.since_dense += 1
    assert state.found is not None
    if step is not None and not step.prompted and not state.found.counted:
        state.found.counted = True
        computed = tuple(range(grid.count)) if windows is None else tuple(windows)
        state.stats.windows_kept += len(computed) / grid.count - 1.0
        state.stats.last = FrameRecord(
            frame, computed, (grid.rows, grid.cols), reason, grid.cols * grid.window / grid.width
        )
        if reason is not None:
            state.stats.dense[reason] += 1


def record_evidence(binding: Binding, masks: Tensor, ious: Tensor | None, score: Tensor) -> None:
    """Remember where the object of this step is. Runs outside compiled regions.

    Args:
        masks: candidate logits [..., M, h, w] (batch 1). ious: [..., M] predicted IoU, used by `candidates: best`.
        score: object score logit, one element.

    Raises:
        ModelStateError: the decoder's attentions bypass the surgery.
    """
    step, routing, taps = binding.step, binding.routing, binding.taps
    if step is None or routing is None or taps is None:
        return
    candidates = masks.reshape(-1, *masks.shape[-2:])
    score = score.reshape(-1)[:1]
    watched, best = binding.watcher is not None, None
    if watched or routing.candidates == "best":
        best = candidates
        if ious is not None and candidates.shape[0] > 1:
            best = candidates.index_select(0, ious.reshape(-1).argmax().reshape(1))
    union = ((candidates if watched or best is None else best) > 0).any(0) & (score > 0)
    noted = tuple(tap for tap in taps if tap is not None)
    if len(noted) < len(taps):
        raise ModelStateError(
            f"the mask decoder ran {len(noted)} of its {len(taps)} token-to-image attentions under the surgery; was "
            "the model compiled before sparsify? Call sparsify first, then compile"
        )
    known = binding.state_of(step.handle).evidence
    middle, ahead = None, union
    if routing.motion:
        middle = centre(union)
        ahead = _ahead(known.get(step.obj_id), union, middle, step, routing.motion)
    known[step.obj_id] = Evidence(
        step.frame,
        ahead,
        score,
        noted,
        (best[0] > 0) & (score > 0) if watched and best is not None else None,
        middle,
    )


def _ahead(before: Evidence | None, mask: Tensor, middle: Tensor, step: ObjectStep, frames: float) -> Tensor:
    """The mask, and where it would be after `frames` at the speed since the frame before, if that is known."""
    previous = step.frame + 1 if step.reverse else step.frame - 1
    if before is None or before.frame != previous or before.centre is None or before.centre.device != middle.device:
        return mask
    return moved(mask, (middle - before.centre) * frames)


@contextmanager
def key_plan(
    binding: Binding, *, length: int, pointers: int, layers: int, bank: int, stride: int, device: torch.device
) -> Iterator[KeyPlan | None]:
    """Bind the rows to read for one memory attention call, and keep what it measures."""
    step, settings, memory_frames = binding.step, binding.retrieval, binding.memory_frames
    if not binding.enabled or step is None or settings is None or not memory_frames:
        yield None
        return
    spatial = length - pointers
    if spatial % len(memory_frames):
        raise ModelStateError(
            f"memory of {spatial} spatial rows does not divide into the {len(memory_frames)} memory frames that the "
            "host gathered"
        )
    state = binding.state_of(step.handle)
    memory = state.memory_of(step.obj_id, step.reverse)
    plan = plan_keys(
        memory_frames,
        memory,
        tokens=spatial // len(memory_frames),
        length=length,
        pointers=pointers,
        layers=layers,
        keep=settings.keep,
        query_stride=settings.query_stride,
        middle=sys.maxsize if binding.watcher is not None else max(0, bank - 2) if settings.warm_up else 0,
        stride=stride,
        device=device,
        keep_conditioning=settings.keep_conditioning,
        rebalance=settings.rebalance,
    )
    if plan is not None and binding.watcher is not None:
        plan.listener = binding.watcher.saliency
    stats = state.stats
    begun = state.begun.get(step.obj_id)
    if not step.prompted and begun is not None and begun.keys is None:
        begun.keys = 1.0 if plan is None else plan.kept / plan.total
        stats.key_calls += 1
        stats.keys_kept += begun.keys
    binding.plan = plan
    try:
        yield plan
    finally:
        binding.plan = None
    if plan is not None:
        remember(plan, memory)

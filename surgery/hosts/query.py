"""Memory attention of one object, the same for every host: what it takes from the objects before it on the same frame,
and, under query routing, which of its tokens are queries and what the others keep."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
from torch import Tensor

from surgery.errors import ModelStateError
from surgery.graft import Graft
from surgery.hosts.base import Binding, ObjectStep
from surgery.hosts.blocks import LayerPart
from surgery.retrieval.attention import Projections
from surgery.retrieval.queries import (
    QueryMemory,
    QueryRoute,
    query_count,
    query_tokens,
    routed_self_attention,
)
from surgery.retrieval.shared import SharedSelfAttention
from surgery.routing.router import longest_waiting
from surgery.session import VideoState

Run = Callable[[Tensor, Tensor | None], Tensor]


class MemorySelfAttention(Graft):
    """Self-attention of a memory attention layer."""

    _surgery: LayerPart

    def _routed(self, tokens: Tensor, cos: Tensor, sin: Tensor, route: QueryRoute) -> Tensor:
        """Normed tokens of the queries [K, C] -> [K, C]. cos, sin: [T, d / 2] grid tables."""
        every = route.renewed(tokens, self._surgery.layer)
        return routed_self_attention(tokens, every, route.index, self._projections(), cos, sin)

    def _note(self, tokens: Tensor) -> None:
        """Normed tokens [T, C] of a frame on which all are queries."""
        inputs = self._surgery.binding.inputs
        if inputs is not None:
            inputs[self._surgery.layer] = tokens

    def _work(self) -> SharedSelfAttention | None:
        """What other objects of the frame may take from this module, or have left for it; None: run it."""
        # Compiled by the user: see `shared_self_attention`.
        if torch.compiler.is_compiling() or self._surgery.layer > 0 or self.training:  # type: ignore[attr-defined]
            return None
        return self._surgery.binding.shared

    def _projections(self) -> Projections:
        raise NotImplementedError


@contextmanager
def shared_self_attention(binding: Binding, features: Tensor, positions: Tensor | None) -> Iterator[None]:
    """Bind what the objects of the step's frame share for one memory attention call, dropped after the last object.

    features: [T, 1, C] of the frame; positions: their position code or None.
    """
    step = binding.step
    # A compiled graph must not keep tensors from one call to the next, and fuses as it likes.
    compiled = binding.compiled is not None and "memory_attention" in binding.compiled.parts
    if step is None or compiled or not binding.enabled or len(step.objects) < 2 or features.shape[1] != 1:
        yield
        return
    state = binding.state_of(step.handle)
    if state.shared is None or not state.shared.fits(step.frame, features, positions):
        state.shared = SharedSelfAttention.of(step.frame, features, positions)
    before, binding.shared = binding.shared, state.shared
    try:
        yield
    finally:
        binding.shared = before
        if step.obj_id == next(reversed(step.objects)):
            state.shared = None


def conditioned(binding: Binding, current: Tensor, positions: Tensor | None, layers: int, run: Run) -> Tensor:
    """Memory attention for one object, for all tokens or for a subset.

    Args:
        current: features of the frame, [T, 1, C]; positions: their position code or None.
        layers: memory attention layers.
        run: calls the host's own memory attention on the tokens it is given.

    Returns:
        Conditioned features of all T tokens, in the shape the host returns.

    Raises:
        ModelStateError: the host's layers bypass the surgery.
    """
    step, grid = binding.step, binding.grid
    if step is None or grid is None or binding.queries is None or not binding.enabled or current.shape[1] != 1:
        return run(current, positions) if binding.query is None else _subset(binding, current, positions, run)
    state, key = binding.state_of(step.handle), (step.obj_id, step.reverse)
    windows = _windows(binding, state, step, current)
    route = None
    if windows is not None:
        route = _route(binding, state, step, windows, current.device)
    begun = state.begun.get(step.obj_id)
    if not step.prompted and begun is not None and begun.tokens is None:
        begun.tokens = 1.0 if route is None else route.index.shape[0] / route.tokens
        state.stats.query_calls += 1
        state.stats.queries_kept += begun.tokens
    ages = [0] * grid.count
    noted: list[Tensor | None] = [None] * layers
    before = binding.query, binding.inputs
    binding.query, binding.inputs = route, noted if route is None else None
    try:
        out = run(current, positions) if route is None else _subset(binding, current, positions, run)
    finally:
        binding.query, binding.inputs = before
    inputs = [tokens for tokens in noted if tokens is not None]
    if route is not None:
        assert windows is not None
        inputs = route.inputs
        ages = [0 if window in windows else age + 1 for window, age in enumerate(state.queries[key].ages)]
    if len(inputs) != layers:
        raise ModelStateError(
            f"memory attention ran {len(inputs)} of its {layers} self-attentions under the surgery; was the model "
            "compiled before sparsify? Call sparsify first, then compile"
        )
    state.queries[key] = QueryMemory(step.frame, out.reshape(-1, out.shape[-1]), tuple(inputs), ages)
    return out


def _subset(binding: Binding, current: Tensor, positions: Tensor | None, run: Run) -> Tensor:
    route = binding.query
    assert route is not None
    taken = current.index_select(0, route.index)
    out = run(taken, None if positions is None else positions.index_select(0, route.index))
    merged = route.merged(out.reshape(-1, out.shape[-1]))
    # Stock sam2 returns [T, 1, C], transformers [1, 1, T, C].
    return merged[:, None] if out.ndim == 3 else merged[None, None]


def _windows(binding: Binding, state: VideoState, step: ObjectStep, current: Tensor) -> set[int] | None:
    """Windows whose tokens are all queries, or None when every token is one."""
    settings, grid = binding.queries, binding.grid
    assert settings is not None and grid is not None
    last = state.queries.get((step.obj_id, step.reverse))
    previous = step.frame + 1 if step.reverse else step.frame - 1
    stale = last is None or last.frame != previous or last.output.device != current.device
    if step.dense or stale or state.encoded != step.frame or state.computed is None or binding.watcher is not None:
        return None
    if step.obj_id not in state.regions or current.shape[0] != grid.tokens:
        return None
    assert last is not None
    taken = [window in state.computed for window in range(grid.count)]
    return {*state.computed, *longest_waiting(last.ages, taken, settings.rolling)}


def _route(
    binding: Binding, state: VideoState, step: ObjectStep, windows: set[int], device: torch.device
) -> QueryRoute | None:
    grid, region = binding.grid, state.regions[step.obj_id]
    assert grid is not None
    certain = grid.token_ids(sorted(windows))
    outside = sum(count for window, count in enumerate(region.counts) if window not in windows)
    assert binding.queries is not None
    count = query_count(grid.tokens, len(certain), outside, binding.queries.budget)
    if count == grid.tokens:
        return None
    changed = state.changed.to(device) if state.changed is not None else None
    known = torch.from_numpy(certain).to(device, non_blocking=True)
    index = query_tokens(known, region.tokens.to(device), count, changed)
    last = state.queries[step.obj_id, step.reverse]
    return QueryRoute(index, grid.tokens, last.output, list(last.inputs))

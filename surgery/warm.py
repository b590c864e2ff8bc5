"""Compile before the first video: track made-up frames until every usual kind of call has its graph."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from time import perf_counter
from typing import Any

import numpy as np
import torch
from torch import Tensor

from surgery.core.access import access_to
from surgery.engine import require_surgery
from surgery.errors import ModelStateError
from surgery.core.host import HostView
from surgery.core.driver import follow
from surgery.operations.compile import Spent
from surgery.core.session import VideoState


@dataclass(frozen=True)
class WarmUp:
    """What `warm_up` did.

    seconds: all of it, the tracking included. parts: for every compiled part the seconds spent compiling, the graphs
    made and the kinds of call met, all of this warm-up alone: zeros where everything was compiled before. windows: the
    window counts that were run. frames: made-up frames tracked.
    """

    seconds: float
    parts: dict[str, Spent]
    windows: tuple[int, ...]
    frames: int

    @property
    def graphs(self) -> int:
        """Graphs compiled, over all parts."""
        return sum(spent.graphs for spent in self.parts.values())

    def __str__(self) -> str:
        lines = [f"{self.graphs} graphs in {self.seconds:.1f} s, {self.frames} frames tracked"]
        lines += [f"{part}: {spent.graphs} graphs, {spent.seconds:.1f} s" for part, spent in self.parts.items()]
        return "\n".join(lines)


def warm_up(model: Any) -> WarmUp:
    """Compile every part of a model under a recipe with operation `compile`, for all usual shapes, up front.

    Made-up frames are tracked through the model's own calls, in a session of their own that is then dropped. Call it as
    you will track: under the same autocast, after `.to()`. A second call compiles nothing.

    Args:
        model: under surgery, with operation `compile` in its recipe.

    Returns:
        The seconds it took, graphs by part, and the window counts that were run.

    Raises:
        ModelStateError: the model is not under surgery, its recipe does not compile, or it is disabled.
    """
    view = require_surgery(model)
    binding = view.binding
    if binding.compilation is None:
        name = view.recipe.metadata.name if view.recipe is not None else None
        raise ModelStateError(
            f"recipe {name!r} compiles nothing, so there is nothing to warm up; call sparsify(model, recipe, "
            "compile=True)"
        )
    if not binding.enabled:
        raise ModelStateError("the surgery is disabled here, and so is what it compiles; call warm_up outside")
    spent = binding.compilation.spent
    before = {part: replace(each) for part, each in spent.items()}
    counts = window_counts(view)
    start = perf_counter()
    with _aside(view):
        # The bank fills up, pruning starts, and all window counts are seen with it full.
        frames = _track(view, counts, 1, 2 * view.bank_size() + 2)
        # Hosts that encode the memories of all objects at once take another graph for more than one.
        frames += _track(view, counts, 2, 3)
    seconds = perf_counter() - start
    parts = {
        part: Spent(now.seconds - was.seconds, now.graphs - was.graphs, now.kinds - was.kinds)
        for (part, now), was in zip(spent.items(), before.values(), strict=True)
    }
    return WarmUp(seconds, parts, counts, frames)


def window_counts(view: HostView) -> tuple[int, ...]:
    """Window counts that need graphs of their own, or all that can occur where graphs are of fixed shape; rising."""
    grid, routing, compilation = view.binding.grid, view.binding.routing, view.binding.compilation
    if grid is None or routing is None or compilation is None or routing.windows == "all":
        return ()
    if not compilation.fixes_shapes(grid):
        return tuple(sorted({1, min(2, grid.count - 1), min(3, grid.count - 1), grid.count - 1}))
    most = grid.count - 1 if routing.budget >= 1.0 else min(grid.count - 1, max(1, round(routing.budget * grid.count)))
    if routing.fill and routing.budget < 1.0:
        return (most,)
    step = routing.round_to
    return tuple(sorted({min(most, count) for count in range(step, most + step, step)}))


@contextmanager
def _aside(view: HostView) -> Iterator[None]:
    """Other threads wait, and what the model says of its last session stays."""
    binding = view.binding
    with access_to(view.model).frame():
        before = binding.forced, binding.stats
        try:
            yield
        finally:
            binding.forced, binding.stats = before


def _track(view: HostView, counts: Sequence[int], objects: int, least: int) -> int:
    """Track made-up frames, `least` and as many more as there are counts; the number of frames."""
    binding, side = view.binding, view.image_size()
    length = least + len(counts)
    masks = _squares(side, objects)
    known = set(binding.states)
    clip = _Noise(length, side, next(view.model.parameters()))
    state: VideoState | None = None
    for number, _ in enumerate(follow(view, clip, masks)):
        if state is None:
            state = next((each for each in binding.states if each not in known), None)
        if state is not None:
            _steer(state, view, masks, number, counts)
    return length


def _steer(state: VideoState, view: HostView, masks: dict[int, np.ndarray], number: int, counts: Sequence[int]) -> None:
    """Say what frame `number + 1` will be like, whatever the weights made of the noise."""
    binding = view.binding
    if counts:
        count = counts[number % len(counts)]
        binding.forced = range(count)
    for obj_id, evidence in state.evidence.items():
        small = torch.from_numpy(masks[obj_id])[:: masks[obj_id].shape[0] // evidence.mask.shape[0]]
        small = small[:, :: small.shape[1] // evidence.mask.shape[1]]
        state.evidence[obj_id] = replace(evidence, mask=small.to(evidence.mask.device))
    for memory in state.memories.values():
        if number % 4 == 3 and memory.frames:
            # As on a frame tracked before: the newest memory frame was measured already.
            last = next(reversed(memory.frames))
            memory.frames[number], memory.offsets[number] = memory.frames[last], memory.offsets[last]


def _squares(side: int, objects: int) -> dict[int, np.ndarray]:
    masks = {}
    for number in range(objects):
        mask = np.zeros((side, side), dtype=bool)
        corner = side // 4 + number * side // 4
        mask[corner : corner + side // 8, corner : corner + side // 8] = True
        masks[number + 1] = mask
    return masks


class _Noise:
    """Normalised frames [3, S, S], the same on every run, on the device and in the precision of `like`."""

    def __init__(self, length: int, side: int, like: Tensor) -> None:
        self._length, self._side, self._like = length, side, like

    def __len__(self) -> int:
        return self._length

    def __getitem__(self, index: int) -> Tensor:
        noise = torch.randn(3, self._side, self._side, generator=torch.Generator().manual_seed(index))
        return noise.to(self._like.device, self._like.dtype)

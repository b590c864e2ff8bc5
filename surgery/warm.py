"""Compile before the first video: track made-up frames until every usual kind of call has its graph."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from time import perf_counter
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from surgery.bench.clip import LoopingClip
from surgery.core.access import access_to
from surgery.core.driver import follow
from surgery.core.session import VideoState
from surgery.core.surgery import Surgery
from surgery.engine import require_surgery
from surgery.errors import ModelStateError
from surgery.operations.compile import Compilation, Spent
from surgery.operations.memory_retrieval.bank import ObjectMemory
from surgery.operations.window_routing.bound import WindowRouter
from surgery.operations.window_routing.policy import FixedWindows


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
    surgery = require_surgery(model)
    compilation = surgery.find(Compilation)
    if compilation is None:
        name = surgery.recipe.metadata.name if surgery.recipe is not None else None
        raise ModelStateError(
            f"recipe {name!r} compiles nothing, so there is nothing to warm up; call sparsify(model, recipe, "
            "compile=True)"
        )
    if not surgery.enabled:
        raise ModelStateError("the surgery is disabled here, and so is what it compiles; call warm_up outside")
    spent = compilation.spent
    before = {part: replace(each) for part, each in spent.items()}
    counts = window_counts(surgery)
    start = perf_counter()
    with _aside(surgery):
        # The bank fills up, pruning starts, and all window counts are seen with it full.
        frames = _track(surgery, counts, 1, 2 * surgery.host.bank_size() + 2)
        # Hosts that encode the memories of all objects at once take another graph for more than one.
        frames += _track(surgery, counts, 2, 3)
    seconds = perf_counter() - start
    parts = {
        part: Spent(now.seconds - was.seconds, now.graphs - was.graphs, now.kinds - was.kinds)
        for (part, now), was in zip(spent.items(), before.values(), strict=True)
    }
    return WarmUp(seconds, parts, counts, frames)


def window_counts(surgery: Surgery) -> tuple[int, ...]:
    """Window counts that need graphs of their own, or all that can occur where graphs are of fixed shape; rising."""
    router, compilation = surgery.find(WindowRouter), surgery.find(Compilation)
    if router is None or compilation is None or router.settings.windows == "all":
        return ()
    routing, count = router.settings, router.grid.count
    if router.grid.padded or not compilation.reuses_memory:
        return tuple(sorted({1, min(2, count - 1), min(3, count - 1), count - 1}))
    most = min(count - 1, router.allowed)
    if routing.fill and routing.budget < 1.0:
        return (most,)
    step = routing.round_to
    return tuple(sorted({min(most, each) for each in range(step, most + step, step)}))


@contextmanager
def _aside(surgery: Surgery) -> Iterator[None]:
    """Other threads wait; how windows are chosen, and what the model says of its last session, stay."""
    router = surgery.find(WindowRouter)
    with access_to(surgery.host.model).frame(), ExitStack() as stack:
        stack.callback(setattr, surgery, "stats", surgery.stats)
        if router is not None:
            stack.callback(setattr, router, "policy", router.policy)
        yield


def _track(surgery: Surgery, counts: Sequence[int], objects: int, least: int) -> int:
    """Track made-up frames, `least` and as many more as there are counts; the number of frames."""
    host, known = surgery.host, set(surgery.states)
    clip = LoopingClip(host.image_size(), least + len(counts), objects, next(host.model.parameters()).device)
    for number, _ in enumerate(follow(host, clip, clip.masks)):
        video = next((each for each in surgery.states if each not in known), None)
        if video is not None:
            _steer(video, surgery, clip.masks, number, counts)
    return len(clip)


def _steer(
    video: VideoState, surgery: Surgery, masks: dict[int, npt.NDArray[np.bool_]], number: int, counts: Sequence[int]
) -> None:
    """Say what frame `number + 1` will be like, whatever the weights made of the clip."""
    router = surgery.find(WindowRouter)
    if counts and router is not None:
        router.policy = FixedWindows(tuple(range(counts[number % len(counts)])))
    for obj_id, evidence in video.evidence.items():
        small = torch.from_numpy(masks[obj_id])[:: masks[obj_id].shape[0] // evidence.mask.shape[0]]
        small = small[:, :: small.shape[1] // evidence.mask.shape[1]]
        video.evidence[obj_id] = replace(evidence, mask=small.to(evidence.mask.device))
    for states in video.objects.values():
        memory = states.get(ObjectMemory)
        if number % 4 == 3 and isinstance(memory, ObjectMemory) and memory.frames:
            # As on a frame tracked before: the newest memory frame was measured already.
            last = next(reversed(memory.frames))
            memory.frames[number] = memory.frames[last]

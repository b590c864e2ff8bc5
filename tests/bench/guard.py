"""Counts of the work of one routed frame, for `test_guard.py`: `python -m tests.bench.guard` records them anew."""

from __future__ import annotations

import functools
import json
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch._dynamo.testing import CompileCounter
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils._python_dispatch import _disable_current_modes
from torch.utils.flop_counter import FlopCounterMode

import surgery
from benchmarks.work import LaunchCounter, OperatorCounter, SyncCounter
from surgery.bench.modules import fixed_windows
from surgery.core.driver import follow
from surgery.engine import require_surgery
from surgery.hosts import view_of
from surgery.operations import CudaGraphs, ExactSavings
from surgery.operations.cuda_graphs import Recordings
from surgery.recipe import Metadata, Recipe
from tests.hosts.drive import BLOCKS, LARGE, make, square, video
from tests.hosts.test_compile import encoder

FILE = Path(__file__).with_name("guard.json")
COMMAND = "python -m tests.bench.guard"
HOSTS = ("sam2", "transformers")
RECIPES = {
    "balanced": "balanced",
    "fast": "fast",
    "tiles-queries": str(Path(__file__).resolve().parents[2] / "benchmarks" / "recipes" / "tiles-queries.yaml"),
}
COMPILED = ("balanced", "tiles-queries")
"""Recipes whose graphs are counted; `fast` runs the encoder as `balanced` does."""
TUNED = ("balanced", "turbo")
ALONE = Recipe(metadata=Metadata(name="recorded", description="The stock model, recorded."), operations=(CudaGraphs(),))
SURE = ["routing.object.unsure=null", "retrieval.unsure=null"]
"""Random weights are unsure of every mask."""
SHARE, WARM, FULL = 0.25, 9, 20
SCHEDULE = (0.25, 0.5, 0.125, 0.375, 0.25)
TOLERANCE = {"operators": 0.02, "gathered_bytes": 0.02}
"""Shares by which a count may change; every other count is exact."""


def tracked(model: Any, frames: int) -> Iterator[Tensor]:
    """The object of `video`, prompted by its mask; one `next` is one frame."""
    return follow(view_of(model), video(frames), {1: square(20, 90, 40).numpy()})


@dataclass(frozen=True)
class Frame:
    """Work of one frame after the memory bank is full; each count is of a frame of its own, one after the other.

    syncs, early: see `SyncCounter`.
    """

    operators: OperatorCounter
    syncs: Counter[str]
    early: list[int]
    flops: int


@functools.cache
def observed(host: str, recipe: str | None) -> Frame:
    """A routed frame under a recipe of `RECIPES`, or a frame of the stock model."""
    return frame_of(host, None if recipe is None else Recipe.load(RECIPES[recipe]))


def frame_of(host: str, recipe: Recipe | None) -> Frame:
    """The same under any recipe."""
    model = make(host).model
    run = tracked(model, WARM + 3)
    flops = FlopCounterMode(display=False)
    with torch.inference_mode(), ExitStack() as stack:
        if recipe is not None:
            surgery.sparsify(model, recipe)
            stack.enter_context(fixed_windows(require_surgery(model), SHARE))
        for _ in range(WARM):
            next(run)
        with SyncCounter() as waits:
            # Copies are started on one frame and read on the next.
            with OperatorCounter() as work:
                next(run)
            waits.again()
            next(run)
        with sdpa_kernel(SDPBackend.MATH), flops:
            next(run)
    return Frame(work, waits.syncs, waits.early, flops.get_total_flops())


@functools.cache
def measured(host: str, recipe: str) -> dict[str, int]:
    """The counts of one case."""
    frame = observed(host, recipe)
    counts = {
        "flops": frame.flops,
        "operators": frame.operators.total,
        "gathered_bytes": frame.operators.gathered,
        "host_syncs": frame.syncs.total(),
        "early_reads": len(frame.early),
        "launches_before_read": min(frame.early),
    }
    if recipe in COMPILED:
        counts["graphs"] = graphs(host, recipe)
    return counts


def uncounted(run: Callable[[list[Tensor]], list[Tensor]], inputs: list[Tensor]) -> Callable[[], list[Tensor]]:
    """Stands in for a CUDA graph: what a replay runs is one launch, and not of this frame's operators."""

    def play() -> list[Tensor]:
        with _disable_current_modes():
            return run(inputs)

    return play


@functools.cache
def launches(host: str, recipe: str | None, recorded: bool = False, blocks: tuple[int, ...] = BLOCKS) -> int:
    """Launches of one frame with a full bank: of the stock model, or of a routed frame of a quarter of the windows.

    recorded: with operation `cuda_graphs`; each replay is one. Strips, which are a CPU's, are left out.
    """
    model, replays = make(host, blocks=blocks).model, 0
    run = tracked(model, FULL + 1)
    with torch.inference_mode(), ExitStack() as stack:
        recordings = None
        if recipe is not None or recorded:
            chosen = Recipe.load(recipe, SURE) if recipe is not None else ALONE
            chosen = chosen.with_operation(ExactSavings(savings=("codes", "self_attention", "products")))
            surgery.sparsify(model, chosen.with_operation(CudaGraphs()) if recorded else chosen)
            recordings = require_surgery(model).find(Recordings)
        if recordings is not None:
            recordings.recorders = {"cpu": uncounted}
        if recipe is not None:
            stack.enter_context(fixed_windows(require_surgery(model), SHARE))
        for _ in range(FULL):
            next(run)
        if recordings is not None:
            replays = -sum(calls["replayed"] for calls in recordings.calls.values())
        with LaunchCounter() as work:
            next(run)
        if recordings is not None:
            replays += sum(calls["replayed"] for calls in recordings.calls.values())
    return work.total + replays


def graphs(host: str, recipe: str) -> int:
    """Graphs compiled of the encoder while the share of windows changes from frame to frame."""
    model = surgery.sparsify(make(host).model, Recipe.load(RECIPES[recipe]))
    torch._dynamo.reset()
    counter = CompileCounter()
    encoder(model).compile(backend=counter)
    run = tracked(model, len(SCHEDULE) + 2)
    with torch.inference_mode():
        for share in (SHARE, SHARE, *SCHEDULE):
            with fixed_windows(require_surgery(model), share):
                next(run)
    return counter.frame_count


def launched(host: str, blocks: tuple[int, ...]) -> dict[str, int]:
    """Launches of stock and of the tuned recipes, eager and recorded. Of a size of SAM 2 only its `blocks` count."""
    found = {}
    for name in (None, *TUNED):
        found[name or "stock"] = launches(host, name, False, blocks)
        found[f"{name or 'stock'} recorded"] = launches(host, name, True, blocks)
    return found


def versions() -> dict[str, str]:
    """Major and minor version of what the counts depend on beside this library."""
    return {name: ".".join(metadata.version(name).split(".")[:2]) for name in ("torch", "transformers", "sam2")}


def changes(case: str, recorded: dict[str, int], found: dict[str, int], names: tuple[str, ...]) -> list[str]:
    """A sentence for every count of `names` that left its tolerance."""
    said = []
    for name in sorted(set(names) & (recorded.keys() | found.keys())):
        before, now = recorded[name], found[name]
        if abs(now - before) > TOLERANCE.get(name, 0.0) * before:
            said.append(
                f"{case}: {name} {'rose' if now > before else 'fell'} from {before:,} to {now:,}; if that is meant, "
                f"record it: {COMMAND}"
            )
    return said


def main() -> None:
    """Record the counts of every case."""
    torch.set_num_threads(1)
    cases = {f"{host} {recipe}": measured(host, recipe) for host in HOSTS for recipe in RECIPES}
    found = {"versions": versions(), "cases": cases, "launches": {host: launched(host, LARGE) for host in HOSTS}}
    FILE.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
    print(FILE.read_text(encoding="utf-8"))


if __name__ == "__main__":
    main()

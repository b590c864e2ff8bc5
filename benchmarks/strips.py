"""What strips and kept position codes save on a CPU at 1024 px, and how much of it the allocator explains.

    python -m benchmarks.strips

Each way runs in turn with the other, processor time, one thread, random weights. All is measured twice, in a process as
users have it and in one whose glibc keeps large blocks instead of giving them back after every operation.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from benchmarks.savings import CPU, POINTERS, bank, bank_plan, compared
from surgery import Recipe, disabled, sparsify
from surgery.bench.machine import machine
from surgery.engine import require_view
from surgery.core.host import HostView
from surgery.hosts.positions import NeckCodes, Trunk
from surgery.loading import load_model
from surgery.operations import SparseMemoryRetrieval
from surgery.routing.span import dense_route

KEEPING = {"MALLOC_MMAP_THRESHOLD_": str(2**32), "MALLOC_TRIM_THRESHOLD_": str(2**33), "MALLOC_TOP_PAD_": str(2**30)}
HERE = Path(__file__).parent


def main() -> None:
    """Measure in both processes and write the JSON."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--models", default="base-plus,large")
    parser.add_argument("--pairs", type=int, default=5)
    parser.add_argument("--out", type=Path, default=HERE / "results" / "strips-cpu.json")
    parser.add_argument("--only-this-process", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    torch.set_num_threads(1)
    if options.only_this_process:
        with torch.inference_mode():
            print(json.dumps({name: of_model(name, options.pairs) for name in options.models.split(",")}))
        return
    found = {}
    for label, variables in {"allocator as it is": {}, "allocator that keeps large blocks": KEEPING}.items():
        command = [sys.executable, "-m", "benchmarks.strips", "--only-this-process", "--models", options.models]
        done = subprocess.run(
            [*command, "--pairs", str(options.pairs)],
            env={**os.environ, **variables}, cwd=HERE.parent, check=True, capture_output=True, text=True,
        )  # fmt: skip
        found[label] = json.loads(done.stdout.splitlines()[-1])
        print(json.dumps({label: found[label]}, indent=1), flush=True)
    document = {
        "kind": "strips",
        "schema": 1,
        "command": f"python -m benchmarks.strips --models {options.models} --pairs {options.pairs}",
        "date": time.strftime("%Y-%m-%d"),
        "machine": machine(CPU),
        "unit": "milliseconds of processor time, one thread, fp32, 1024 px, random weights, stock sam2",
        "variables": KEEPING,
        "results": found,
    }
    options.out.write_text(json.dumps(document, indent=1) + "\n")


def of_model(name: str, pairs: int) -> dict[str, Any]:
    """Blocks before the span, memory attention of one object, position codes: whole or anew, in strips or kept."""
    model: Any = sparsify(load_model(f"random:{name}", "sam2", "cpu"), "balanced")
    view = require_view(model)
    return {
        "blocks before the span": early(view, pairs),
        "memory attention, keys as balanced": memory(view, pairs),
        "position codes": codes(view, pairs),
    }


def whole_and_strips(view: HostView, call: Callable[[], Tensor], pairs: int) -> dict[str, float]:
    """`call` without strips and with them, and how far its outputs differ."""
    outputs: list[Tensor] = []

    def way(strips: bool) -> Callable[[], None]:
        def run() -> None:
            view.binding.strips = strips
            outputs.append(call())

        return run

    found = compared(way(False), way(True), pairs)
    return {**found, "largest_difference": max(float((one - outputs[0]).abs().max()) for one in outputs)}


def early(view: HostView, pairs: int) -> dict[str, float]:
    """Stages 1 and 2, and what of stage 3 lies before the span."""
    assert view.span_info is not None
    blocks = view.blocks()[: view.span_info.entry]
    side = view.image_size() // view.patch_stride()
    embedding = torch.randn(1, side, side, view.block_info(0).dim)

    def call() -> Tensor:
        tokens = embedding
        for block in blocks:
            tokens = block(tokens)
        return tokens

    view.binding.route = dense_route(False)
    try:
        return whole_and_strips(view, call, pairs)
    finally:
        view.binding.route = None


def memory(view: HostView, pairs: int) -> dict[str, float]:
    """All layers; what strips change is their feed-forwards."""
    current, rows = bank()
    view.binding.plan = bank_plan(Recipe.load("balanced").find(SparseMemoryRetrieval))
    try:
        return whole_and_strips(view, lambda: view.run_memory_attention(current, rows, POINTERS), pairs)
    finally:
        view.binding.plan = None


def codes(view: HostView, pairs: int) -> dict[str, float]:
    """The trunk's code and the neck's four, as the host makes them, and as sessions keep them."""
    modules = list(view.image_encoder().modules())
    trunk: Any = next(part for part in modules if isinstance(part, Trunk))
    neck: Any = next(part for part in modules if isinstance(part, NeckCodes))
    side = view.image_size() // view.patch_stride()
    levels = [torch.empty(1, 256, side // scale, side // scale) for scale in (1, 2, 4, 8)]

    def kept() -> None:
        for level in levels:
            neck(level)

    def stock() -> None:
        with disabled(view.model):
            trunk._get_pos_embed((side, side))
            kept()

    stock()  # stock sam2 fills its own cache once
    return compared(stock, kept, pairs)


if __name__ == "__main__":
    main()

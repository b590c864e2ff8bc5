"""SAM 3's tracker at full size on a CPU: `python -m benchmarks.sam3`.

Encoder and memory attention with a full bank, random weights, fp32, stock and sparse in turn in one process, beside
what operations counted predict. Mask decoder, memory encoder and the choice of windows (0.3 % of the operations of a
stock frame) are not timed.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import torch

from surgery import Recipe, sparsify
from surgery.bench.clock import Clock
from surgery.bench.machine import machine
from surgery.core.cost import gflop, pretended, stock_gflop, width_of
from surgery.core.engine import reconfigure
from surgery.core.parts import ATTENTION, ENCODER, Part
from surgery.core.surgery import Surgery
from surgery.engine import require_surgery
from surgery.loading import load_model

WINDOWS = 3 / 9
ARMS: dict[str, tuple[Part, str | None, dict[str, float]]] = {
    "encoder: stock": (ENCODER, None, {}),
    "encoder: 3 of 9 windows, packed": (ENCODER, "packed", {"windows": WINDOWS}),
    "encoder: 3 of 9 windows, cached": (ENCODER, "cached", {"windows": WINDOWS}),
    "memory attention: stock": (ATTENTION, None, {}),
    "memory attention: 5 % of the keys": (ATTENTION, "packed", {"queries": 1.0}),
    "memory attention: 5 % of the keys, 30 % of the queries": (ATTENTION, "packed", {"queries": 0.3}),
}
"""Part, kind of globals (None: stock) and shares kept."""
FRAMES = {
    "1 object, 3 of 9 windows packed, 5 % of the keys": (1, 1, 4),
    "1 object, 3 of 9 windows cached, 5 % of the keys": (1, 2, 4),
    "10 objects, all windows, 5 % of the keys, 30 % of the queries": (10, 0, 5),
}
"""Objects, and the arms of encoder and memory attention, against the stock ones (0 and 3)."""


def recipe(kind: str) -> Recipe:
    """Windows, keys and queries, of which the arms keep what they say."""
    operations = [
        {"type": "sparse_window_routing", "budget": 0.33, "skipped": {"temporal": True}, "stages": {"globals": kind}},
        {"type": "sparse_memory_retrieval", "keep": 0.05},
        {"type": "sparse_query_routing", "budget": 0.3, "rolling": 0},
    ]
    metadata = {"name": "timed", "description": "Timed."}
    return Recipe.from_dict({"schema": 1, "metadata": metadata, "operations": operations})


def runner(surgery: Surgery, part: Part) -> Callable[[], Any]:
    """One call of a part with what it is given on a late frame."""
    host = surgery.host
    if part == ENCODER:
        pixels = torch.randn(1, 3, host.image_size(), host.image_size())
        return lambda: host.image_encoder()(pixels)
    tokens, pointers = host.frame_tokens(), host.pointers()
    current = torch.randn(tokens, 1, width_of(host))
    memory = torch.randn(host.bank_size() * tokens + pointers, 1, host.memory_channels())
    return lambda: host.run_memory_attention(current, memory, pointers)


def inside(surgery: Surgery, kind: str | None, kept: dict[str, float]) -> AbstractContextManager[None]:
    """Where an arm's call runs."""
    if kind is None:
        return surgery.within(None)
    reconfigure(surgery, recipe(kind))
    return surgery.within(pretended(surgery, kept))


def main() -> None:
    """Time every arm in turn, so many times, and write the JSON."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--size", default="sam3")
    parser.add_argument("--runs", type=int, default=2)
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results" / "sam3-cpu.json")
    options = parser.parse_args()
    torch.set_num_threads(1)
    surgery = require_surgery(sparsify(load_model(f"random:{options.size}", device="cpu"), recipe("packed")))
    clock, times = Clock(torch.device("cpu"), processor=True), {name: list[float]() for name in ARMS}
    calls = {part: runner(surgery, part) for part in (ENCODER, ATTENTION)}
    for _ in range(options.runs):
        for name, (part, kind, kept) in ARMS.items():
            with torch.inference_mode(), inside(surgery, kind, kept):
                times[name].append(clock.timed(calls[part])[1])
            print(f"{name:58} {times[name][-1] / 1000:7.1f} s", flush=True)
    counted = {}
    for name, (part, kind, kept) in ARMS.items():
        if kind is not None:
            reconfigure(surgery, recipe(kind))
        counted[name] = stock_gflop(surgery.host, part) if kind is None else gflop(surgery, part, kept)
    best = {name: min(each) for name, each in times.items()}
    names, rows = list(ARMS), {}
    for frame, (objects, encoder, memory) in FRAMES.items():
        ratios = [
            (by[names[0]] + objects * by[names[3]]) / (by[names[encoder]] + objects * by[names[memory]])
            for by in (best, counted)
        ]
        rows[frame] = {"measured": ratios[0], "counted": ratios[1], "measured_over_counted": ratios[0] / ratios[1]}
        print(f"{frame:64} {ratios[0]:.2f}x, counted {ratios[1]:.2f}x")
    result = {
        "kind": "sam3", "schema": 1, "command": f"python -m benchmarks.sam3 --runs {options.runs}",
        "date": time.strftime("%Y-%m-%d"), "machine": machine(torch.device("cpu")), "model": f"random:{options.size}",
        "clock": "processor time of the process, one thread; ratios of the fastest of each arm",
        "arms": {
            name: {"ms": times[name], "median_ms": statistics.median(times[name]), "gflop": counted[name]}
            for name in ARMS
        },
        "frames": rows,
    }  # fmt: skip
    options.out.write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()

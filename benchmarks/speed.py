"""Speed of the published operations against the stock host, with forced window sets.

    python benchmarks/speed.py --size base-plus --share 0.25 --out benchmarks/results/speed-base-plus-cpu.json

One process, two models with the same random weights (speed does not depend on weights): the stock host, and the same
under surgery. Every figure is a median of ratios of alternating A/B pairs. `predicted` is the ratio of counted FLOPs
(`surgery.bench.flops`), `efficiency` is measured / predicted.
"""

from __future__ import annotations

import argparse
import copy
import json
import os
import platform
import statistics
import sys
import time
from collections.abc import Callable
from datetime import date
from pathlib import Path
from typing import Any

import torch

import surgery
from surgery.api import require_view
from surgery.bench.flops import encoder_gflop, memory_attention_gflop
from surgery.hosts.sam2_video import frames_instead_of_files
from surgery.loading import load_model
from surgery.retrieval.bank import ObjectMemory, plan_keys
from surgery.routing.span import SpanMemory, make_route

POINTERS = 64


def main() -> None:
    options = parse()
    torch.set_num_threads(options.threads)
    started = time.time()
    stock = load_model(f"random:{options.size}", device=options.device)
    ours = surgery.sparsify(copy.deepcopy(stock), "balanced")
    view = require_view(ours)
    grid = view.binding.grid
    assert grid is not None
    count = max(1, round(options.share * grid.count))
    windows = middle_first(grid.rows, grid.cols)[:count]
    print(f"{options.size}: {count} of {grid.count} windows {sorted(windows)}", flush=True)

    result: dict[str, Any] = {
        "what": "published operations (SWR + SMR), forced windows, against stock sam2",
        "command": " ".join(["python", *sys.argv]),
        "model": f"sam2.1 {options.size}, random weights",
        "host": "sam2 1.1.0",
        "precision": "fp32",
        "device": options.device,
        "threads": options.threads,
        "image_size": view.image_size(),
        "windows": f"{count}/{grid.count}",
        "keep": 0.05,
        "recipe": "balanced",
        "machine": machine(options.device),
        "versions": {"torch": torch.__version__, "surgery": surgery.__version__, "python": platform.python_version()},
        "date": date.today().isoformat(),
    }
    with torch.inference_mode():
        result["encoder"] = encoder(stock, view, windows, options.pairs)
        report("encoder", result["encoder"])
        result["memory_attention"] = memory(stock, view, options.pairs)
        report("memory attention", result["memory_attention"])
    if options.frames:
        result["whole_frame"] = frames(stock, ours, windows, options.frames, warm=8)
        saved = result["encoder"]["gflop"], result["memory_attention"]["gflop"]
        predicted = sum(part["stock"] for part in saved) / sum(part["ours"] for part in saved)
        result["whole_frame"]["predicted_without_decoder_and_memory_encoder"] = predicted
        result["whole_frame_speedup"] = result["whole_frame"]["ratio"]
        print("whole frame", result["whole_frame"], flush=True)
        surgery.sparsify(ours, "exact")
        result["exact_recipe_whole_frame"] = frames(stock, ours, None, options.frames, warm=2)
        print("exact recipe", result["exact_recipe_whole_frame"], flush=True)
    result["seconds"] = round(time.time() - started)
    if options.out:
        Path(options.out).parent.mkdir(parents=True, exist_ok=True)
        Path(options.out).write_text(json.dumps(result, indent=2) + "\n")


def encoder(stock: Any, view: Any, windows: list[int], pairs: int) -> dict[str, Any]:
    """Stock encoder against routed encoder; making the route (indices, copies) is inside the timed part."""
    grid, span, side = view.binding.grid, view.span_info, view.image_size()
    device = next(stock.parameters()).device
    pixels = torch.randn(1, 3, side, side, device=device)
    still = SpanMemory(
        torch.randn(grid.tokens, span.channels, device=device), torch.randn(grid.tokens, span.channels, device=device)
    )

    def routed() -> None:
        view.binding.route = make_route(grid, sorted(windows), device, still)
        view.model.image_encoder(pixels)
        view.binding.route = None

    return compare(
        lambda: stock.image_encoder(pixels), routed, pairs, encoder_gflop(view), encoder_gflop(view, windows)
    )


def memory(stock: Any, view: Any, pairs: int) -> dict[str, Any]:
    """Dense memory attention against the pruned one, the newest frame measured on the way, bank of seven frames."""
    tokens = (view.image_size() // 16) ** 2
    device = next(stock.parameters()).device
    current, memory = (
        torch.randn(tokens, 1, 256, device=device),
        torch.randn(7 * tokens + POINTERS, 1, 64, device=device),
    )
    known = ObjectMemory(measured=5)
    kept = int(0.05 * tokens)
    for frame in range(1, 6):
        known.frames[frame] = [torch.randperm(tokens, device=device)[:kept].sort().values for _ in range(4)]

    def attend(model: Any) -> Any:
        return model.memory_attention(
            curr=[current], curr_pos=[current], memory=memory, memory_pos=memory, num_obj_ptr_tokens=POINTERS
        )

    def pruned() -> None:
        view.binding.plan = plan_keys(
            [None, 1, 2, 3, 4, 5, 6], known, tokens=tokens, length=len(memory), pointers=POINTERS, layers=4, keep=0.05,
            query_stride=1, middle=5, stride=1, device=device,
        )  # fmt: skip
        attend(view.model)
        view.binding.plan = None

    return compare(
        lambda: attend(stock), pruned, pairs, memory_attention_gflop(view), memory_attention_gflop(view, keep=0.05)
    )


def frames(stock: Any, ours: Any, windows: list[int] | None, measured: int, warm: int) -> dict[str, Any]:
    """Two videos in lock step through the hosts' own `propagate_in_video`, one clicked object each."""
    binding = require_view(ours).binding
    binding.forced = windows
    side = stock.image_size
    generator = torch.Generator().manual_seed(0)
    clip = torch.randn(1, 3, side, side, generator=generator).repeat(warm + measured + 1, 1, 1, 1)
    runs = []
    for model in (stock, ours):
        with frames_instead_of_files(clip, (side, side)):
            state = model.init_state("memory")
        model.add_new_points_or_box(state, 0, 1, points=[[side / 2, side / 2]], labels=[1])
        runs.append(model.propagate_in_video(state))
    for run in runs:
        next(run)
    times: tuple[list[float], list[float]] = ([], [])
    for number in range(warm + measured):
        for which in (0, 1) if number % 2 else (1, 0):
            seconds = timed(lambda which=which: next(runs[which]))  # type: ignore[misc]
            if number >= warm:
                times[which].append(seconds)
    binding.forced = None
    return summary(*times)


def compare(
    dense: Callable[[], Any], sparse: Callable[[], Any], pairs: int, dense_gflop: float, sparse_gflop: float
) -> dict[str, Any]:
    dense(), sparse()
    times: tuple[list[float], list[float]] = ([], [])
    for number in range(pairs):
        for which in (0, 1) if number % 2 else (1, 0):
            times[which].append(timed((dense, sparse)[which]))
    figures = summary(*times)
    predicted = dense_gflop / sparse_gflop
    return {
        **figures,
        "gflop": {"stock": dense_gflop, "ours": sparse_gflop},
        "predicted": predicted,
        "efficiency": figures["ratio"] / predicted,
    }


def summary(stock: list[float], ours: list[float]) -> dict[str, Any]:
    ratios = sorted(a / b for a, b in zip(stock, ours, strict=True))
    return {
        "ratio": statistics.median(ratios),
        "ratios": [round(value, 4) for value in ratios],
        "stock_ms": round(1000 * statistics.median(stock), 1),
        "ours_ms": round(1000 * statistics.median(ours), 1),
        "pairs": len(ratios),
    }


def timed(call: Callable[[], Any]) -> float:
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    start = time.perf_counter()
    call()
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return time.perf_counter() - start


def middle_first(rows: int, columns: int) -> list[int]:
    """Window ids from the centre outwards: where an object usually is, and full windows before padded ones."""
    centre = ((rows - 1) / 2, (columns - 1) / 2)
    cells = [(row, column) for row in range(rows) for column in range(columns)]
    cells.sort(key=lambda cell: (cell[0] - centre[0]) ** 2 + (cell[1] - centre[1]) ** 2)
    return [row * columns + column for row, column in cells]


def machine(device: str) -> str:
    if device.startswith("cuda"):
        return torch.cuda.get_device_name()
    listing = Path("/proc/cpuinfo")
    lines = listing.read_text().splitlines() if listing.exists() else []
    found = (line.split(":")[1].strip() for line in lines if line.startswith("model name"))
    name = next(found, platform.processor() or "unknown processor")
    return f"{name}, {os.cpu_count()} cores"


def report(name: str, part: dict[str, Any]) -> None:
    print(
        f"{name}: {part['stock_ms']:.0f} -> {part['ours_ms']:.0f} ms, {part['ratio']:.3f}x measured, "
        f"{part['predicted']:.3f}x predicted, efficiency {part['efficiency']:.3f}",
        flush=True,
    )


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", default="base-plus", choices=["tiny", "small", "base-plus", "large"])
    parser.add_argument("--share", type=float, default=0.25, help="share of windows computed")
    parser.add_argument("--pairs", type=int, default=5)
    parser.add_argument("--frames", type=int, default=5, help="measured whole frames; 0 skips them")
    parser.add_argument("--threads", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--out")
    return parser.parse_args()


if __name__ == "__main__":
    main()

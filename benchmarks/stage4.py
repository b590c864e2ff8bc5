"""Stage 4 whole against routed: `python -m benchmarks.stage4`. GFLOP, encoder CPU time, J&F of the demo model.

GFLOP and time are of random weights at 1024 px, middle windows chosen. J&F is of held-out synthetic clips prompted by
masks on the first frame, against ground truth and against the dense model's own masks; "blank" is a control in which
skipped windows return zeros instead of their last stage-4 output.
"""

from __future__ import annotations

import argparse
import copy
import json
import statistics
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

import surgery.demo as demo
from surgery import Recipe, sparsify, status
from surgery.bench.flops import encoder_gflop
from surgery.bench.machine import machine
from surgery.bench.modules import middle_first
from surgery.demo.clips import HELD_OUT, make_clip
from surgery.demo.show import calibrated, prompt_for
from surgery.engine import require_view
from surgery.evaluation import boundary_f, region_j
from surgery.loading import load_model
from surgery.operate import reconfigure
from surgery.routing.late import LateGrid, LateRoute
from surgery.routing.span import make_route
from surgery.tracking import track
from surgery.video import labels_from_logits, open_video

CHOICES = ("dense", "routed")
CPU = torch.device("cpu")
FRAMES = 24


def recipe(span: str, choice: str) -> Recipe:
    """Recipe `fast` with the span and stage 4 given."""
    return Recipe.load("fast", [f"routing.stages.span={span}", f"routing.stages.stage4={choice}"])


def operations(size: str) -> list[dict[str, Any]]:
    """GFLOP of the encoder, stock and with three shares of the windows."""
    view = require_view(sparsify(load_model(f"random:{size}"), recipe("stage3", "dense")))
    grid = view.binding.grid
    assert grid is not None
    stock, rows = encoder_gflop(view), []
    for span in ("stage3", "tiles"):
        for share in (0.125, 0.25, 0.5):
            count = round(share * grid.count)
            row: dict[str, Any] = {"size": size, "span": span, "windows": count, "of": grid.count, "stock": stock}
            for choice in CHOICES:
                reconfigure(view, recipe(span, choice))
                row[choice] = encoder_gflop(view, middle_first(grid.rows, grid.cols)[:count])
            rows.append(row)
    return rows


@torch.inference_mode()
def seconds(size: str, pairs: int) -> dict[str, Any]:
    """Processor seconds of the encoder with a quarter of the tiles, stage 4 whole and routed in turn, one thread."""
    view = require_view(sparsify(load_model(f"random:{size}", "sam2"), recipe("tiles", "routed")))
    binding, span = view.binding, view.span_info
    grid, tiles, late = binding.grid, binding.tiles, binding.late
    assert grid is not None and tiles is not None and late is not None and span is not None
    chosen = sorted(middle_first(grid.rows, grid.cols)[: grid.count // 4])
    pixels = torch.randn(1, 3, view.image_size(), view.image_size())
    last, memory = late.blank(CPU, pixels.dtype), tiles.blank(span.channels, CPU, pixels.dtype)
    times: dict[str, list[float]] = {choice: [] for choice in CHOICES}
    for turn in range(pairs + 1):
        for choice in CHOICES[:: 1 if turn % 2 else -1]:
            stage = late.route(chosen, CPU, last) if choice == "routed" else None
            route = make_route(grid, chosen, CPU, None, tiles=tiles.route(chosen, CPU, memory), late=stage)
            binding.route = route
            start = time.process_time()
            view.image_encoder()(pixels)
            times[choice].append(time.process_time() - start)
            binding.route = None
    measured = {choice: taken[1:] for choice, taken in times.items()}
    ratios = [dense / routed for dense, routed in zip(*measured.values(), strict=True)]
    return {
        "size": size,
        "windows": len(chosen),
        "of": grid.count,
        **measured,
        "median_ratio": statistics.median(ratios),
    }


class Blank(LateGrid):
    """Skipped windows return zeros."""

    def route(self, windows: Any, device: torch.device, last: Tensor) -> LateRoute:
        """As the base class's, with nothing remembered."""
        return super().route(windows, device, torch.zeros_like(last))


def models() -> dict[str, dict[str, Any]]:
    """By setting, then by what is done with stage 4."""
    settings: dict[str, tuple[Recipe, Path | None]] = {"balanced, adapter": calibrated("balanced")}
    for span, budget in (("stage3", 0.25), ("tiles", 0.375), ("tiles", 0.5)):
        values = {
            "routing.stages.span": span, "routing.budget": budget, "routing.rolling": 16, "retrieval.keep": 1.0,
            "retrieval.keep_conditioning": 1.0,
        }  # fmt: skip
        settings[f"{span}, budget {budget}, nothing fitted"] = Recipe.load("fast").with_values(values), None
    stock = demo.load("sam2")
    found: dict[str, dict[str, Any]] = {}
    for name, (base, adapter) in settings.items():
        found[name] = {}
        for choice in (*CHOICES, "blank"):
            chosen = base.with_values({"routing.stages.stage4": "dense" if choice == "dense" else "routed"})
            found[name][choice] = sparsify(copy.deepcopy(stock), chosen, adapter=adapter)
        binding = require_view(found[name]["blank"]).binding
        assert binding.late is not None
        binding.late = Blank(binding.late.grid, binding.late.channels)
    return {"stock": {"dense": stock}, **found}


def labels_of(model: Any, clip: Any) -> list[Any]:
    """Label maps of a clip, prompted by the exact masks of its first frame."""
    prompts = [prompt_for("mask", clip.labels[0] == label, label) for label in range(1, clip.visible.shape[1] + 1)]
    return [labels_from_logits(result.logits) for result in track(model, open_video(clip.frames), prompts)]


def agreement(found: list[Any], wanted: Any, objects: int) -> list[float]:
    """J&F of every object, mean over tracked frames."""
    return [
        statistics.fmean(
            (region_j(a == label, b == label) + boundary_f(a == label, b == label)) / 2
            for a, b in zip(found[1:], wanted[1:], strict=True)
        )
        for label in range(1, objects + 1)
    ]


def fidelity(clips: int) -> list[dict[str, Any]]:
    """J&F per setting: means, and the paired differences of routed and blank from dense with their standard errors."""
    held: dict[tuple[str, str, str], list[float]] = {}
    windows: dict[tuple[str, str], list[float]] = {}
    everything = models()
    for number in range(clips):
        clip = make_clip(HELD_OUT + number, FRAMES, difficulty="medium")
        objects = clip.visible.shape[1]
        dense = labels_of(everything["stock"]["dense"], clip)
        for name, variants in everything.items():
            for choice, model in variants.items():
                found = dense if name == "stock" else labels_of(model, clip)
                held.setdefault((name, choice, "truth"), []).extend(agreement(found, clip.labels, objects))
                held.setdefault((name, choice, "dense_masks"), []).append(
                    statistics.fmean(agreement(found, dense, objects))
                )
                windows.setdefault((name, choice), []).append(status(model).windows_kept or 1.0)
        print(f"{number + 1} of {clips} clips", flush=True)
    rows = []
    for name, choice in windows:
        row = {"setting": name, "stage4": choice, "windows": statistics.fmean(windows[name, choice])}
        for against in ("truth", "dense_masks"):
            values = np.array(held[name, choice, against])
            change = values - np.array(held[name, "dense", against])
            row |= {
                f"j_and_f_{against}": float(values.mean()),
                f"change_{against}": float(change.mean()),
                f"change_{against}_standard_error": float(change.std(ddof=1) / len(change) ** 0.5),
                f"change_{against}_worst": float(change.min()),
            }
        rows.append(row)
    return rows


def main() -> None:
    """Run all three, or one that replaces its section of the JSON."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--clips", type=int, default=12)
    parser.add_argument("--pairs", type=int, default=4)
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results" / "stage4.json")
    parser.add_argument("--only", choices=("seconds", "gflop", "fidelity"))
    options = parser.parse_args()
    torch.set_num_threads(1)
    sections = {
        "seconds": lambda: seconds("base-plus", options.pairs),
        "gflop": lambda: [row for size in ("tiny", "base-plus", "large") for row in operations(size)],
        "fidelity": lambda: fidelity(options.clips),
    }
    result = json.loads(options.out.read_text()) if options.only else {}
    result["command"] = f"python -m benchmarks.stage4 --clips {options.clips} --pairs {options.pairs}"
    result |= {"date": time.strftime("%Y-%m-%d"), "machine": machine(CPU)}
    for name in [options.only] if options.only else sections:
        result[name] = sections[name]()
    options.out.write_text(json.dumps(result, indent=1) + "\n")
    print(json.dumps(result, indent=1))


if __name__ == "__main__":
    main()

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
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch

import surgery.demo as demo
from surgery import Recipe, sparsify, status
from surgery.bench.machine import machine
from surgery.bench.modules import middle_first
from surgery.bench.pair import twin
from surgery.core.cost import count, stock_gflop
from surgery.core.frame import FrameContext
from surgery.core.parts import ENCODER
from surgery.core.session import VideoState
from surgery.demo.clips import HELD_OUT, make_clip
from surgery.demo.show import calibrated, prompt_for
from surgery.engine import require_surgery
from surgery.evaluation import boundary_f, region_j
from surgery.hosts import view_of
from surgery.loading import load_model
from surgery.operations.window_routing.bound import require_router
from surgery.operations.window_routing.reuse import RunMemory
from surgery.operations.window_routing.stage4 import Stage4Grid, Stage4Route
from surgery.tracking import track
from surgery.video import labels_from_logits, open_video

CHOICES = ("dense", "routed")
CPU = torch.device("cpu")
FRAMES = 24


def recipe(span: str, choice: str) -> Recipe:
    """Recipe `fast` with the span and stage 4 given."""
    return Recipe.load("fast", [f"routing.stages.span={span}", f"routing.stages.stage4={choice}"])


def cut(model: Any, span: str) -> dict[str, Any]:
    """`model` with stage 4 whole and routed, on the same weights."""
    return {choice: sparsify(twin(model), recipe(span, choice)) for choice in CHOICES}


def middle(model: Any, share: float) -> list[int]:
    """The middle windows of a model under surgery that routes windows, a share of all."""
    grid = require_router(require_surgery(model)).grid
    return sorted(middle_first(grid.rows, grid.cols)[: round(share * grid.count)])


@contextmanager
def on_windows(model: Any, windows: list[int]) -> Iterator[None]:
    """Inside, the encoder called by itself is on a frame that computes just these windows."""
    surgery, context = require_surgery(model), FrameContext(0, VideoState(None), None)
    require_router(surgery).pretend_windows(context, windows)
    with surgery.within(context):
        yield


def gflop(model: Any, windows: list[int]) -> float:
    """GFLOP of the encoder on such a frame."""
    host = view_of(model)
    encoder, side = host.image_encoder(), host.image_size()
    with on_windows(model, windows):
        return count(host, encoder, lambda: encoder(torch.empty(1, 3, side, side)))


def operations(size: str) -> list[dict[str, Any]]:
    """GFLOP of the encoder, stock and with three shares of the windows."""
    stock = load_model(f"random:{size}", weights=False)
    whole, rows = stock_gflop(view_of(stock), ENCODER), []
    for span in ("stage3", "tiles"):
        models = cut(stock, span)
        for share in (0.125, 0.25, 0.5):
            windows = middle(models["dense"], share)
            counted = {choice: gflop(model, windows) for choice, model in models.items()}
            of = status(models["dense"]).windows
            rows.append({"size": size, "span": span, "windows": len(windows), "of": of, "stock": whole, **counted})
    return rows


@torch.inference_mode()
def seconds(size: str, pairs: int) -> dict[str, Any]:
    """Processor seconds of the encoder with a quarter of the tiles, stage 4 whole and routed in turn, one thread."""
    models = cut(load_model(f"random:{size}", "sam2"), "tiles")
    encoders = {choice: view_of(model).image_encoder() for choice, model in models.items()}
    side, windows = view_of(models["dense"]).image_size(), middle(models["dense"], 0.25)
    pixels = torch.randn(1, 3, side, side)
    times: dict[str, list[float]] = {choice: [] for choice in CHOICES}
    for turn in range(pairs + 1):
        for choice in CHOICES[:: 1 if turn % 2 else -1]:
            with on_windows(models[choice], windows):
                start = time.process_time()
                encoders[choice](pixels)
                times[choice].append(time.process_time() - start)
    measured = {choice: taken[1:] for choice, taken in times.items()}
    ratios = [dense / routed for dense, routed in zip(*measured.values(), strict=True)]
    return {
        "size": size,
        "windows": len(windows),
        "of": status(models["dense"]).windows,
        **measured,
        "median_ratio": statistics.median(ratios),
    }


class Blank(Stage4Grid):
    """Skipped windows return zeros."""

    def route(self, windows: Any, device: torch.device, last: RunMemory) -> Stage4Route:
        """As the base class's, with nothing remembered."""
        return super().route(windows, device, RunMemory(torch.zeros_like(last.reused), last.entering))


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
        router = require_router(require_surgery(found[name]["blank"]))
        assert router.stage4 is not None
        router.stage4 = Blank(router.stage4.grid, router.stage4.channels)
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

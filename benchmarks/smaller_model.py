"""A large model under surgery against a smaller stock one: is it worth its name? Random weights, so speed only.

    python -m benchmarks.smaller_model --large large --small base-plus

All models track the same clip in one process, frame by frame in rotating order, with full memory banks.
"""

from __future__ import annotations

import argparse
import gc
import json
import time
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import torch

from benchmarks.arms import in_turn, model_spec
from surgery import Recipe, sparsify
from surgery.bench import Settings, figures
from surgery.bench.clip import LoopingClip
from surgery.bench.clock import Clock
from surgery.bench.machine import machine
from surgery.bench.modules import fixed_windows
from surgery.bench.pair import inference, stepped, twin
from surgery.core.driver import follow
from surgery.engine import require_surgery
from surgery.hosts import view_of
from surgery.loading import load_model

WARM = 8
"""Frames after which the memory bank of seven is full."""


def main() -> None:
    """Measure and write the JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--large", default="large")
    parser.add_argument("--small", default="base-plus")
    parser.add_argument("--host", default="sam2")
    parser.add_argument("--recipes", default="balanced,turbo")
    parser.add_argument("--share", type=float, default=0.25)
    parser.add_argument("--frames", type=int, default=3)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--out", type=Path, default=None)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    place = torch.device("cpu")
    small = load_model(model_spec(options.small), options.host, "cpu")
    large = load_model(model_spec(options.large), options.host, "cpu")
    recipes = [Recipe.load(name) for name in options.recipes.split(",")]
    sparse = [sparsify(twin(large), recipe) for recipe in recipes]
    settings = Settings(frames=options.frames, warm=WARM, clock="processor")
    clip = LoopingClip(view_of(small).image_size(), WARM + options.frames + 2, 1, place)
    models = [small, *sparse]
    with inference(place), ExitStack() as stack:
        for model in sparse:
            stack.enter_context(fixed_windows(require_surgery(model), options.share))
        runs = [stepped(follow(view_of(model), clip, clip.masks), place, settings, False) for model in models]
        gc.disable()
        series = in_turn(
            runs, Clock(place, processor=True), 1 + WARM + options.frames, lambda: print(end=".", flush=True)
        )
    measured = [times[1 + WARM :] for times in series]
    document = {
        "kind": "smaller-model",
        "schema": 1,
        "command": f"python -m benchmarks.smaller_model --large {options.large} --small {options.small} --host "
        f"{options.host} --recipes {options.recipes} --frames {options.frames} --threads {options.threads}",
        "date": time.strftime("%Y-%m-%d"),
        "machine": machine(place),
        "clock": "processor",
        "small": {"model": options.small, "recipe": None, **figures.latency(measured[0])},
        "rows": [row(options, recipe, measured[0], own) for recipe, own in zip(recipes, measured[1:], strict=True)],
    }
    out = options.out or Path(__file__).parent / "results" / f"smaller-{options.large}-{options.small}-cpu.json"
    out.write_text(json.dumps(document, indent=1) + "\n", encoding="utf-8")
    print(json.dumps(document["rows"], indent=1), out)


def row(options: argparse.Namespace, recipe: Recipe, small: list[float], own: list[float]) -> dict[str, Any]:
    """One recipe: time of the small stock model over that of the large sparse one."""
    ratio, interval = figures.speedup((small, own))
    return {
        "model": options.large, "host": options.host, "device": "cpu", "precision": "fp32", "recipe": recipe.to_dict(),
        "windows_share": options.share, "small_over_large": ratio, "interval": list(interval or ()),
        **figures.latency(own),
    }  # fmt: skip


if __name__ == "__main__":
    main()

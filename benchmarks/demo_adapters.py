"""Make the adapters that ship with the demo model: `python -m benchmarks.demo_adapters`.

`--model sam3 --recipes balanced` makes one of the SAM 3 miniature, which does not ship.

Each is calibrated on 8 synthetic clips of medium difficulty that are neither trained on nor among the held-out clips of
`surgery demo-eval`. Writes `adapters/demo-<recipe>/` and `benchmarks/results/calibration-demo-<recipe>/`. The proposal
head of `everything` is fitted without labels on frames of such clips, of all difficulties.
"""

from __future__ import annotations

import argparse
import json
import resource
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch

import surgery.demo as demo
from benchmarks.miniatures import MINIATURES, ROOT
from surgery import calibrate, fit_everything, save_adapter
from surgery.bench.machine import machine
from surgery.calibration import CalibrationClip
from surgery.demo.clips import HELD_OUT, Difficulty, make_clip
from surgery.demo.show import prompt_for
from surgery.recipe import Recipe
from surgery.video import open_video

FIRST = 200_000
"""Offset of the calibration clips among the held-out seeds: the score uses 0.., the choice of weights 100,000.."""
RECIPES = ("faithful", "balanced", "fast", "turbo")
EVERYTHING: dict[str, Any] = {
    "everything.filters.iou": 0.4,
    "everything.filters.stability": 0.6,
    "everything.points": 16,
    "everything.boxes.max_prompts": 32,
    "everything.boxes.nms": 0.5,
    "everything.boxes.residual_points": 0,
}
"""The stock thresholds give no mask on the embedded model."""
LEVELS: tuple[Difficulty, ...] = ("easy", "medium", "hard")
SHOWN = 8
"""Frame of a clip that is looked at for everything: objects have moved, and cover each other."""


def clip_of(number: int, frames: int = 24, difficulty: Difficulty = "medium", truth: bool = True) -> CalibrationClip:
    """A synthetic clip with mask prompts on its first frame."""
    clip = make_clip(HELD_OUT + number, frames, difficulty=difficulty)
    prompts = tuple(prompt_for("mask", clip.labels[0] == label, label) for label in range(1, clip.visible.shape[1] + 1))
    return CalibrationClip(clip.name, open_video(clip.frames), prompts, list(clip.labels) if truth else None)


def picture_of(number: int) -> tuple[Any, Any]:
    """A frame and the masks of its objects, those of 20 visible pixels and more: uint8 [H, W, 3], bool [n, H, W]."""
    clip = make_clip(HELD_OUT + number, SHOWN + 1, difficulty=LEVELS[number % 3])
    masks = np.stack([clip.labels[SHOWN] == each for each in clip.objects])
    return clip.frames[SHOWN], masks[masks.reshape(len(masks), -1).sum(1) >= 20]


def fit_head(host: str, out: Path, pictures: int) -> None:
    """Fit the proposal head of `everything`, and save."""
    began = time.perf_counter()
    model = demo.load(host=host)
    recipe = Recipe.load("everything").with_values(EVERYTHING)
    report = fit_everything(model, (picture_of(2 * FIRST + number)[0] for number in range(pictures)), recipe)
    save_adapter(model, out / "adapters" / "demo-everything")
    found = {"date": time.strftime("%Y-%m-%d"), "machine": machine(torch.device("cpu")), "first": 2 * FIRST,
             "seconds": time.perf_counter() - began, **report.as_dict()}  # fmt: skip
    target = out / "benchmarks" / "results" / "calibration-demo-everything.json"
    target.parent.mkdir(parents=True, exist_ok=True)
    target.write_text(json.dumps(found, indent=2) + "\n", encoding="utf-8")
    print(json.dumps(found, indent=2), flush=True)


def main() -> None:
    """Calibrate and save."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--recipes", nargs="+", default=[*RECIPES, "everything"])
    parser.add_argument("--clips", type=int, default=8)
    parser.add_argument("--frames", type=int, default=24)
    parser.add_argument("--pictures", type=int, default=240, help="that the proposal head is fitted and measured on")
    parser.add_argument("--model", default="demo", choices=list(MINIATURES))
    parser.add_argument("--host", help="default: the first that builds the model")
    parser.add_argument("--out", type=Path, default=ROOT)
    options = parser.parse_args()
    torch.set_num_threads(1)
    miniature = MINIATURES[options.model]
    host = miniature.host(options.host)
    routed = {*options.recipes} - {"everything"}
    clips = [clip_of(FIRST + number, options.frames) for number in range(options.clips) if routed]
    for recipe in options.recipes:
        if recipe == "everything":
            fit_head(host, options.out, options.pictures)
            continue
        began = time.perf_counter()
        model = miniature.load(host)
        report = calibrate(model, clips, miniature.recipe(recipe), name=miniature.name)
        save_adapter(model, miniature.adapter(recipe, options.out))
        report.save(options.out / "benchmarks" / "results" / f"calibration-{miniature.name}-{recipe}")
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
        print(report.as_markdown())
        print(f"{recipe}: {time.perf_counter() - began:.0f} s, peak memory {peak:.0f} MB\n", flush=True)


if __name__ == "__main__":
    main()

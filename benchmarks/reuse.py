"""What skipped windows lose by what they reuse: their own last output, or what has moved; embedded model.

    python -m benchmarks.reuse --real CLIPS      # reuse-demo.json

One dense pass over every clip; each token of the routed span is then taken as if it had been skipped for 1, 2, 4 or 8
frames. Error: squared difference from the span's true output, as a share of how much that output has changed. Each row
has a shortcut of its own, fitted on other synthetic clips. Of real clips only numbers are written.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

import surgery.demo as demo
from benchmarks.demo_adapters import FIRST, LEVELS, clip_of
from benchmarks.head import head
from benchmarks.miniatures import ROOT
from surgery import Recipe, sparsify
from surgery.calibration import CalibrationClip, gather_clips
from surgery.calibration.linear import AGES, ResidualRegression, start_from
from surgery.core.observer import Observer
from surgery.core.windows import WindowGrid
from surgery.engine import require_surgery
from surgery.evaluation.bootstrap import mean_interval
from surgery.operations.window_routing import matching
from surgery.operations.window_routing.bound import SpanSeen, require_router
from surgery.operations.window_routing.shortcut import BottleneckShortcut
from surgery.tracking import track

SYNTHETIC = 640_000
"""First of the held-out seeds of the synthetic clips."""
Passes = list[tuple[Tensor, Tensor]]
Reuse = Callable[[Tensor, Tensor, Tensor], Tensor]
"""(input now, input then, what is reused) -> what each token reuses."""


class _Seen(Observer):
    def __init__(self) -> None:
        self.passes: Passes = []

    def noted(self, what: Any) -> None:
        if isinstance(what, SpanSeen):
            self.passes += [(entering.clone(), leaving.clone()) for entering, leaving in what.runs]


def passes_of(model: Any, clip: CalibrationClip, frames: int) -> Passes:
    """Input and output of the span, [H * W, C] each, on every frame."""
    seen, surgery = _Seen(), require_surgery(model)
    with surgery.plain_parts(), surgery.observed_by(seen):
        for number, _ in enumerate(track(model, clip.video, clip.prompts), 1):
            if number == frames:
                break
    return seen.passes


def fitted(clips: Sequence[Passes], grid: WindowGrid | None) -> BottleneckShortcut:
    """The closed form for tokens that reuse what has moved on `grid`; None: their own."""
    sums = ResidualRegression(clips[0][0][0].shape[-1], True, torch.device("cpu"), grid)
    for passes in clips:
        sums.start()
        for entering, leaving in passes:
            sums.add(entering, leaving)
    shortcut = BottleneckShortcut(sums.level.shape[0] - 1)
    start_from(shortcut, *sums.summed(), sums.level, True)
    return shortcut.eval()


def left(passes: Passes, age: int, shortcut: BottleneckShortcut | None, reuse: Reuse) -> float:
    """Error of one clip, see above."""
    error = change = 0.0
    for (then, before), (now, after) in zip(passes, passes[age:], strict=False):
        if shortcut is None:
            found = reuse(now, then, before)
        else:
            found = shortcut(now) + reuse(now, then, before - shortcut(then))
        error += float((after - found).square().sum())
        change += float((after - before).square().sum())
    return error / change


def rows_of(grid: WindowGrid) -> dict[str, tuple[bool, float, Reuse]]:
    """By name: whether a shortcut is fitted, how sharp matching is, what a token reuses."""

    def own(now: Tensor, then: Tensor, values: Tensor) -> Tensor:
        return values

    def moved(now: Tensor, then: Tensor, values: Tensor) -> Tensor:
        return matching.reused_map(grid, matching.normed(now), matching.normed(then), values)

    sharp = matching.SHARPNESS
    return {
        "its own": (False, sharp, own),
        "its own, and a shortcut": (True, sharp, own),
        "what has moved": (False, sharp, moved),
        "what has moved, and a shortcut": (True, sharp, moved),
        "half as sharp": (True, sharp / 2, moved),
        "twice as sharp": (True, sharp * 2, moved),
    }


@torch.inference_mode()
def measured(groups: Mapping[str, Sequence[Passes]], fit: Sequence[Passes], grid: WindowGrid) -> list[dict[str, Any]]:
    """Every row on every group."""
    rows, usual = [], matching.SHARPNESS
    try:
        for name, (fits, sharp, reuse) in rows_of(grid).items():
            matching.SHARPNESS = sharp
            shortcut = fitted(fit, None if name.startswith("its own") else grid) if fits else None
            row: dict[str, Any] = {"row": name}
            for group, clips in groups.items():
                errors = {age: [left(each, age, shortcut, reuse) for each in clips] for age in AGES}
                row[group] = {
                    str(age): {"error": sum(each) / len(each), "interval": mean_interval(each)}
                    for age, each in errors.items()
                }
            rows.append(row)
            print(name, {group: [round(row[group][str(age)]["error"], 3) for age in AGES] for group in groups})
    finally:
        matching.SHARPNESS = usual
    return rows


def main(arguments: list[str] | None = None) -> None:
    """Measure and write."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.reuse", description=__doc__.splitlines()[0])
    parser.add_argument("--real", type=Path, help="folder of real clips, measured beside synthetic ones")
    parser.add_argument("--clips", type=int, default=6, help="synthetic clips of each difficulty")
    parser.add_argument("--frames", type=int, default=24)
    parser.add_argument("--out", type=Path, default=ROOT / "benchmarks" / "results" / "reuse-demo.json")
    given = parser.parse_args(arguments)
    torch.set_num_threads(1)
    model = sparsify(demo.load("sam2"), Recipe.load("balanced"))
    grid = require_router(require_surgery(model)).grid
    synthetic = [
        clip_of(SYNTHETIC + 10_000 * level + number, given.frames, difficulty)
        for level, difficulty in enumerate(LEVELS)
        for number in range(given.clips)
    ]
    real = gather_clips([given.real], given.frames)[0] if given.real is not None else []
    groups = {
        name: [passes_of(model, clip, given.frames) for clip in clips]
        for name, clips in (("synthetic", synthetic), ("real", real))
        if clips
    }
    fit = [passes_of(model, clip_of(FIRST + number, given.frames), given.frames) for number in range(4)]
    result = {**head("reuse", "reuse", arguments), "ages": AGES, "rows": measured(groups, fit, grid)}
    given.out.write_text(json.dumps(result) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()

"""How even are the frames of a live stream? `balanced` and `streaming`: work of every frame, and what it costs.

    python -m benchmarks.streaming                   # streaming-demo.json

Embedded model, stock `sam2`, shortcut of the adapter `demo-balanced`. Work: a stream of hard clips with a cut between
two, frames after the bank is full; the shares that each kept, as operations of SAM 2.1 large. Quality: J&F against
exact masks on held-out clips of the three difficulties, drop with its interval.
"""

from __future__ import annotations

import argparse
import json
import statistics
from pathlib import Path
from typing import Any

import numpy as np
import torch

import surgery.demo as demo
from benchmarks.demo_adapters import ROOT, clip_of
from benchmarks.head import head
from benchmarks.held_out import by_object, score
from surgery import Recipe, sparsify
from surgery.calibration import CalibrationClip
from surgery.core.cost import CostModel
from surgery.digests import weights_digest
from surgery.engine import require_surgery
from surgery.evaluation.bootstrap import mean_interval
from surgery.loading import load_model
from surgery.tracking import track
from surgery.video import open_video

FIRST = 660_000
"""First of the held-out seeds: used for nothing else."""
RECIPES = ("balanced", "streaming")
FULL = 20
"""Frames until the bank is full."""


def models() -> dict[str, Any]:
    """The stock model, and one under each recipe."""
    found = {"stock": demo.load("sam2")}
    for name in RECIPES:
        model = found[name] = demo.load("sam2")
        sparsify(model, Recipe.load(name), adapter=ROOT / "adapters" / "demo-balanced")
    return found


def stream(clips: int) -> CalibrationClip:
    """Hard clips one after the other; the objects of the first are prompted."""
    parts = [clip_of(FIRST + number, 40, "hard") for number in range(clips)]
    frames = np.concatenate([np.stack(list(part.video)) for part in parts])
    return CalibrationClip("stream", open_video(frames), parts[0].prompts, None)


def shares(model: Any, clip: CalibrationClip) -> list[dict[str, float]]:
    """What every frame kept, once the bank is full."""
    found, before = [], None
    for result in track(model, clip.video, clip.prompts):
        stats = require_surgery(model).stats
        assert stats is not None
        if before is not None and result.index >= FULL:
            found.append(stats.since(before))
        before = stats.copied()
    return found


def work(recipe: str, kept: list[dict[str, float]]) -> dict[str, float]:
    """GFLOP of frames, encoder and memory attention of one object, if the shares were those of SAM 2.1 large."""
    cost = CostModel(require_surgery(sparsify(load_model("random:large", weights=False), recipe)))
    values = [sum(cost.parts(each).values()) for each in kept]
    p50, p95 = np.percentile(values, [50, 95])
    return {
        "stock": sum(cost.stock.values()), "p50": float(p50), "p95": float(p95), "p95_over_p50": float(p95 / p50),
        "worst_over_p50": max(values) / float(p50),
    }  # fmt: skip


def main(arguments: list[str] | None = None) -> None:
    """Measure and write."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.streaming", description=__doc__.splitlines()[0])
    parser.add_argument("--parts", type=int, default=4, help="clips of the stream, 40 frames each")
    parser.add_argument("--clips", type=int, default=15, help="held-out clips of each difficulty")
    parser.add_argument("--out", type=Path, default=ROOT / "benchmarks" / "results" / "streaming-demo.json")
    given = parser.parse_args(arguments)
    torch.set_num_threads(1)
    arms = models()
    clip = stream(given.parts)
    measured = {name: work(name, shares(arms[name], clip)) for name in RECIPES}
    rows = [
        score(arms, clip_of(FIRST + 100 + number, 24, difficulty))
        for number in range(given.clips)
        for difficulty in ("easy", "medium", "hard")
    ]
    quality = {}
    for name in RECIPES:
        pairs = [(statistics.fmean(by_object(row, "stock")), statistics.fmean(by_object(row, name))) for row in rows]
        drops = [stock - mine for stock, mine in pairs]
        quality[name] = {"drop": statistics.fmean(drops), "interval": mean_interval(drops), "clips": len(drops)}
    result = {
        **head("streaming", "streaming", arguments),
        "weights": weights_digest(arms["stock"].state_dict()),
        "gflop": measured,
        "quality": quality,
    }
    print(json.dumps({"gflop": measured, "quality": quality}, indent=1))
    given.out.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()

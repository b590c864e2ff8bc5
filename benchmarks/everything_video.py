"""Everything in synthetic videos: ids against the truth, time of frames: `python -m benchmarks.everything_video`.

The embedded model follows everything that the shipped proposal head finds, once with stock tracking and once under
`turbo` with its adapter, frame by frame in turn. An id switches where an object of the truth is covered (IoU 0.5) by
another id than when it was last covered.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch

import surgery
import surgery.demo as demo
from benchmarks.demo_adapters import EVERYTHING, LEVELS, ROOT
from surgery.adapters import read_adapter
from surgery.adapters.shipped import shipped_adapters
from surgery.bench.machine import machine
from surgery.demo.clips import HELD_OUT, make_clip
from surgery.operations import SegmentEverything
from surgery.recipe import Recipe
from surgery.tracking_everything import track_everything
from surgery.video import open_video

FIRST = 700_000
"""Offset of the seeds among the held-out ones."""


def followed(found: list[Any], truth: Any) -> dict[str, int]:
    """Objects of the truth, frames that show one of them, how often one is covered, switches of id."""
    last: dict[int, int] = {}
    seen = covered = switches = 0
    for labels, exact in zip(found, truth, strict=True):
        for obj_id in np.unique(exact[exact > 0]).tolist():
            mask = exact == obj_id
            if mask.sum() < 20:
                continue
            seen += 1
            ids, counts = np.unique(labels[mask & (labels > 0)], return_counts=True)
            if not len(ids):
                continue
            best = int(ids[counts.argmax()])
            if counts.max() / (mask | (labels == best)).sum() >= 0.5:
                covered += 1
                switches += last.get(obj_id, best) != best
                last[obj_id] = best
    return {"objects": len(np.unique(truth[truth > 0])), "seen": seen, "covered": covered, "switches": switches}


def operated(tracking: str, filters: dict[str, Any]) -> Any:
    """The embedded model, tracking by a shipped adapter's recipe ("none": stock), with a whole grid for everything."""
    own = Recipe.load("everything-exact").with_values({**filters, "everything.folded": True})
    if tracking == "none":
        return surgery.sparsify(demo.load(host="sam2"), own)
    folder = shipped_adapters()[f"demo-{tracking}"]
    settings = own.find(SegmentEverything)
    assert settings is not None
    return surgery.sparsify(
        demo.load(host="sam2"), read_adapter(folder).recipe.with_operation(settings), adapter=folder
    )


def main() -> None:
    """Measure and write."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--clips", type=int, default=12)
    parser.add_argument("--frames", type=int, default=24)
    parser.add_argument("--tracking", default="turbo")
    parser.add_argument("--out", type=Path, default=ROOT / "benchmarks" / "results" / "everything-video-demo.json")
    options = parser.parse_args()
    torch.set_num_threads(1)
    filters = {key: value for key, value in EVERYTHING.items() if key.split(".")[1] in ("filters", "points")}
    models = {name: operated(name, filters) for name in ("none", options.tracking)}
    rows: list[dict[str, Any]] = []
    for number in range(options.clips):
        clip = make_clip(HELD_OUT + FIRST + number, options.frames, difficulty=LEVELS[number % 3])
        runs = {name: track_everything(model, open_video(clip.frames), every=8) for name, model in models.items()}
        frames: dict[str, list[Any]] = {name: [] for name in runs}
        for _ in range(options.frames):
            for name, run in runs.items():
                frames[name].append(next(run))
        for name, each in frames.items():
            plain = [one for one in each if one.index % 8]  # nothing is looked for on these
            rows.append({
                "tracking": name, "clip": clip.name, **followed([one.labels for one in each], clip.labels),
                "ids": sum(len(one.new) for one in each), "alive": statistics.fmean(one.alive for one in plain),
                "seconds": statistics.median(one.seconds for one in plain),
            })  # fmt: skip
        print(rows[-2], rows[-1], flush=True)
    totals = {
        name: {key: sum(row[key] for row in rows if row["tracking"] == name)
               for key in ("objects", "seen", "covered", "switches", "ids", "seconds")}
        for name in models
    }  # fmt: skip
    report = {"what": "everything followed in synthetic videos, stock and sparse tracking in turn",
              "date": time.strftime("%Y-%m-%d"), "machine": machine(torch.device("cpu")), "settings": filters,
              "totals": totals, "speedup": totals["none"]["seconds"] / totals[options.tracking]["seconds"],
              "clips": rows}  # fmt: skip
    options.out.write_text(json.dumps(report, indent=2) + "\n", encoding="utf-8")
    print(json.dumps(totals, indent=2), report["speedup"])


if __name__ == "__main__":
    main()

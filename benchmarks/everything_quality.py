"""What a label-free proposal head finds in pictures, beside grids of points: `python -m benchmarks.everything_quality`.

Mask AR against exact masks, on held-out frames of the three difficulties, with the embedded model and the head that
ships with it. Everything is at that adapter's own filters, and ranked by predicted IoU x stability. `--clips FOLDER`
(one folder a clip, with `frames/` and `masks/`) adds the recall of annotated objects on real frames.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import statistics
import time
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

import surgery
import surgery.demo as demo
from benchmarks.demo_adapters import EVERYTHING, ROOT, picture_of
from surgery.adapters.shipped import shipped_adapters
from surgery.bench.machine import machine
from surgery.core.pictures import Points
from surgery.demo.model import WEIGHTS
from surgery.evaluation.bootstrap import mean_interval
from surgery.evaluation.recall import average_recall, average_recalls
from surgery.operations.segment_everything.decoding import found
from surgery.pictures import bound_of
from surgery.recipe import Recipe
from surgery.video import read_label_png

FIRST = 500_000
"""Offset of the seeds among the held-out ones; the head is fitted on others."""
HEAD = "head, 32 boxes"
Run = Callable[[Any], tuple[Any, int]]
"""A picture -> masks, best first, and prompts."""


def annotated(clips: Path) -> Iterator[tuple[Any, Any]]:
    """Every tenth frame of CLIPS/*/frames, with the masks of its objects in CLIPS/*/masks."""
    for annotation in sorted(clips.glob("*/masks/*.png"))[::10]:
        image = Image.open(annotation.parents[1] / "frames" / f"{annotation.stem}.jpg").convert("RGB")
        labels = read_label_png(annotation)
        yield np.asarray(image), np.array([labels == each for each in np.unique(labels) if each])


def arm(host: str, name: str = "everything-exact", columns: int = 0, rows: int = 0, **changes: Any) -> Run:
    """A built-in recipe at the settings of the embedded model. columns, rows: of a grid that is not square."""
    recipe = Recipe.load(name).with_values(
        {**EVERYTHING, **{f"everything.{key}": value for key, value in changes.items()}}
    )
    adapter = shipped_adapters()["demo-everything"] if name == "everything" else None
    model = surgery.sparsify(demo.load(host=host), recipe, adapter=adapter)
    bound = bound_of(model)
    driver = bound.driver()
    if columns:
        x, y = np.meshgrid((np.arange(columns) + 0.5) / columns, (np.arange(rows) + 0.5) / rows)
        places = torch.from_numpy(np.stack([x, y], -1).reshape(-1, 2)).float()
        driver.grid = lambda side, picture: Points(  # type: ignore[method-assign]
            places * torch.tensor(picture.size[::-1]), places * bound.surgery.host.image_size()
        )

    @torch.no_grad()
    def run(image: Any) -> tuple[Any, int]:
        picture = driver.encode(image)
        kept = bound.candidates(driver, picture, image)
        return found(kept, picture.size, bound.settings.filters.nms, kept.worth).masks.numpy(), bound.prompts

    return run


def scored(arms: dict[str, Run], pictures: Iterable[tuple[Any, Any]]) -> dict[str, Any]:
    """AR of every arm, and of the head less the grids', with intervals over pictures."""
    rows: dict[str, list[dict[str, float]]] = {name: [] for name in arms}
    for image, truth in pictures:
        if not len(truth):
            continue
        for name, run in arms.items():
            began = time.process_time()
            masks, prompts = run(image)
            seconds = time.process_time() - began
            recalls = {"ar": average_recall(masks, truth), **average_recalls(masks, truth, (10, 32))}
            rows[name].append({**recalls, "prompts": prompts, "masks": len(masks), "seconds": seconds})
        if len(rows[HEAD]) % 10 == 0:
            print(len(rows[HEAD]), {name: round(statistics.fmean(row["ar"] for row in rows[name]), 3) for name in rows})
    summary: dict[str, Any] = {}
    for name, each in rows.items():
        means = {key: statistics.fmean(row[key] for row in each) for key in each[0]}
        summary[name] = {**means, "pictures": len(each), "ar_interval": mean_interval([row["ar"] for row in each])}
    for name in ("grid 16 x 16", "grid 8 x 4"):
        gaps = [one["ar"] - other["ar"] for one, other in zip(rows[HEAD], rows[name], strict=True)]
        summary[f"{HEAD}, less {name}"] = {"ar": statistics.fmean(gaps), "ar_interval": mean_interval(gaps)}
    return summary


def main() -> None:
    """Measure and write."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--frames", type=int, default=200)
    parser.add_argument("--clips", type=Path, help="a folder of clips with masks")
    parser.add_argument("--host", default="sam2", choices=["sam2", "transformers"])
    parser.add_argument("--out", type=Path, default=ROOT / "benchmarks" / "results" / "everything-demo.json")
    options = parser.parse_args()
    torch.set_num_threads(1)
    host = options.host
    coarse: dict[str, Any] = {"coarse.iou": 0.6, "coarse.stability": 0.8, "coarse.logit": 2.0}
    arms = {
        HEAD: arm(host, "everything"),
        "head, 16 boxes": arm(host, "everything", **{"boxes.max_prompts": 16}),
        "head, 32 boxes, residual 8 x 8": arm(host, "everything", **{"boxes.residual_points": 8}),
        "grid 16 x 16": arm(host),
        "grid 8 x 4": arm(host, columns=8, rows=4),
        "hierarchical 8 x 8, 16 x 16": arm(host, "everything-grid", **coarse),
    }
    sources: dict[str, Iterable[tuple[Any, Any]]] = {
        "synthetic": (picture_of(FIRST + number) for number in range(options.frames))
    }
    if options.clips is not None:
        sources["clips"] = annotated(options.clips)
    report = {
        "what": "mask AR against exact masks, IoU 0.5 to 0.95",
        "date": time.strftime("%Y-%m-%d"),
        "machine": machine(torch.device("cpu")),
        "weights_sha256": hashlib.sha256(WEIGHTS.read_bytes()).hexdigest(),
        "host": host,
        "settings": EVERYTHING,
        "hierarchical": coarse,
        "results": {name: scored(arms, pictures) for name, pictures in sources.items()},
    }
    options.out.write_text(json.dumps(report, indent=2) + "\n", encoding="utf-8")
    print(json.dumps(report["results"], indent=2))


if __name__ == "__main__":
    main()

"""What a label-free proposal head finds in pictures, beside grids of points: `python -m benchmarks.everything_quality`.

Fits the head of the embedded model on synthetic frames (no truth is used), saves it as `adapters/demo-everything/`, and
measures mask AR against exact masks on held-out frames of the three difficulties. Everything is at the recipe's own
filters, and ranked by predicted IoU x stability. `--adapter FOLDER` measures a fitted head and fits none; `--clips
FOLDER` (a data set in the DAVIS layout) adds the recall of annotated objects on first frames.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import statistics
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

import surgery
import surgery.demo as demo
from surgery.bench.machine import machine
from surgery.calibration.everything import fit_everything
from surgery.core.pictures import Points
from surgery.demo.clips import HELD_OUT, make_clip
from surgery.demo.model import WEIGHTS
from surgery.engine import require_surgery
from surgery.evaluation.bootstrap import mean_interval
from surgery.evaluation.recall import average_recall
from surgery.operations.segment_everything import Everything
from surgery.recipe import Recipe

ROOT = Path(__file__).resolve().parent.parent
LEVELS = ("easy", "medium", "hard")
FRAME = 8
"""Of every clip: objects have moved, and cover each other."""
FIT_ON, SCORED = 400_000, 500_000
"""Offsets of the seeds among the held-out ones."""
DEMO = {
    "everything.filters.iou": 0.4,
    "everything.filters.stability": 0.6,
    "everything.points": 16,
    "everything.boxes.nms": 0.5,
    "everything.max_recall_drop": 0.55,
}
"""The stock thresholds give no mask on the embedded model. Many of its own masks are of no object, hence the promise."""
PROMPTS = 32

Picture = tuple[npt.NDArray[np.uint8], npt.NDArray[np.bool_]]


def frame(number: int, first: int) -> Picture:
    """A frame and the masks of its objects, those of 20 visible pixels and more: uint8 [H, W, 3], bool [n, H, W]."""
    clip = make_clip(HELD_OUT + first + number, FRAME + 1, difficulty=LEVELS[number % 3])  # type: ignore[arg-type]
    labels = clip.labels[FRAME]
    masks = np.stack([labels == each for each in clip.objects])
    return clip.frames[FRAME], masks[masks.reshape(len(masks), -1).sum(1) >= 20]


def davis(folder: Path) -> Iterator[Picture]:
    """First frames of a data set in the DAVIS layout, with their annotated objects."""
    from PIL import Image

    from surgery.video import read_label_png

    for sequence in sorted(each for each in (folder / "Annotations" / "480p").iterdir() if each.is_dir()):
        annotation = sorted(sequence.glob("*.png"))[0]
        image = folder / "JPEGImages" / "480p" / sequence.name / f"{annotation.stem}.jpg"
        labels = read_label_png(annotation)
        yield (
            np.asarray(Image.open(image).convert("RGB")),
            np.stack([labels == each for each in np.unique(labels) if each]),
        )


def recipe(name: str, **changes: Any) -> Recipe:
    """A built-in one at the settings of the embedded model."""
    return Recipe.load(name).with_values({**DEMO, **{f"everything.{key}": value for key, value in changes.items()}})


def by_recipe(model: Any, recipe: Recipe, adapter: Path | None = None) -> Callable[[Any], tuple[Any, int]]:
    """A function of a picture: masks, best first, and prompts."""
    surgery.sparsify(model, recipe, adapter=adapter)
    bound = require_surgery(model).find(Everything)
    assert bound is not None
    driver = bound.driver()

    def run(image: Any) -> tuple[Any, int]:
        found = bound.find(image, driver)
        order = (found.scores * found.stability.nan_to_num()).argsort(descending=True, stable=True)
        return found.masks[order].numpy(), bound.prompts

    return run


def oblong(model: Any, columns: int, rows: int) -> Callable[[Any], tuple[Any, int]]:
    """The same of a grid that is not square."""
    run = by_recipe(model, recipe("everything-exact"))
    bound = require_surgery(model).find(Everything)
    assert bound is not None
    driver = bound.driver()

    def grid(side: int, picture: Any) -> Points:
        height, width = picture.size
        x, y = np.meshgrid((np.arange(columns) + 0.5) / columns, (np.arange(rows) + 0.5) / rows)
        places = torch.from_numpy(np.stack([x, y], -1).reshape(-1, 2)).float()
        return Points(places * torch.tensor([width, height]), places * bound.surgery.host.image_size())

    def run_oblong(image: Any) -> tuple[Any, int]:
        driver.grid = grid  # type: ignore[method-assign]
        found = bound.find(image, driver)
        order = (found.scores * found.stability.nan_to_num()).argsort(descending=True, stable=True)
        return found.masks[order].numpy(), bound.prompts

    del run
    return run_oblong


def main() -> None:
    """Fit, save, measure, write."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--frames", type=int, default=200, help="scored")
    parser.add_argument("--fit-frames", type=int, default=240)
    parser.add_argument("--steps", type=int, default=600)
    parser.add_argument("--adapter", type=Path, help="a fitted head, instead of fitting one")
    parser.add_argument("--clips", type=Path, help="a data set in the DAVIS layout")
    parser.add_argument("--host", default="sam2", choices=["sam2", "transformers"])
    parser.add_argument("--out", type=Path, default=ROOT / "benchmarks" / "results" / "everything-demo.json")
    options = parser.parse_args()
    torch.set_num_threads(1)
    head = recipe("everything", **{"boxes.max_prompts": PROMPTS, "boxes.residual_points": 0})
    adapter, fitted = options.adapter, None
    if adapter is None:
        model = demo.load(host=options.host)
        began = time.perf_counter()
        pictures = (frame(number, FIT_ON)[0] for number in range(options.fit_frames))
        fitted = fit_everything(model, pictures, head, steps=options.steps).as_dict()
        fitted["seconds"] = time.perf_counter() - began
        adapter = ROOT / "adapters" / "demo-everything"
        surgery.save_adapter(model, adapter)
        print(fitted, flush=True)
    models = [demo.load(host=options.host) for _ in range(6)]
    arms = {
        "head, 32 boxes": by_recipe(models[0], head, adapter),
        "head, 16 boxes": by_recipe(models[1], head.with_values({"everything.boxes.max_prompts": 16}), adapter),
        "head, 32 boxes, residual 8 x 8": by_recipe(
            models[2], head.with_values({"everything.boxes.residual_points": 8}), adapter
        ),
        "grid 16 x 16": by_recipe(models[3], recipe("everything-exact")),
        "grid 8 x 4": oblong(models[4], 8, 4),
        "hierarchical 8 x 8, 16 x 16": by_recipe(
            models[5],
            recipe("everything-grid", **{"coarse.iou": 0.6, "coarse.stability": 0.8, "coarse.logit": 2.0}),
        ),
    }
    sources = {"synthetic": (frame(number, SCORED) for number in range(options.frames))}
    if options.clips is not None:
        sources["clips"] = davis(options.clips)
    results = {name: _scored(arms, pictures) for name, pictures in sources.items()}
    report = {
        "what": "mask AR against exact masks",
        "date": time.strftime("%Y-%m-%d"),
        "machine": machine(torch.device("cpu")),
        "weights_sha256": hashlib.sha256(WEIGHTS.read_bytes()).hexdigest(),
        "host": options.host,
        "fitted": fitted,
        "frame": FRAME,
        "recipe": head.to_dict(),
        "results": results,
    }
    options.out.write_text(json.dumps(report, indent=2) + "\n", encoding="utf-8")
    print(json.dumps(results, indent=2))


def _scored(arms: dict[str, Any], pictures: Iterator[Picture]) -> dict[str, Any]:
    scores: dict[str, list[dict[str, float]]] = {name: [] for name in arms}
    for image, truth in pictures:
        if not len(truth):
            continue
        for name, run in arms.items():
            began = time.process_time()
            masks, prompts = run(image)
            seconds = time.process_time() - began
            scores[name].append(
                {
                    "ar": average_recall(masks, truth),
                    "ar@10": average_recall(masks, truth, 10),
                    "ar@32": average_recall(masks, truth, 32),
                    "prompts": prompts,
                    "masks": len(masks),
                    "seconds": seconds,
                }
            )
    found: dict[str, Any] = {}
    for name, rows in scores.items():
        means = {key: statistics.fmean(row[key] for row in rows) for key in rows[0]}
        found[name] = {**means, "pictures": len(rows), "ar_interval": mean_interval([row["ar"] for row in rows])}
    for name in ("grid 16 x 16", "grid 8 x 4"):
        gaps = [one["ar"] - other["ar"] for one, other in zip(scores["head, 32 boxes"], scores[name], strict=True)]
        found[f"head, 32 boxes, less {name}"] = {"ar": statistics.fmean(gaps), "ar_interval": mean_interval(gaps)}
    return found


if __name__ == "__main__":
    main()

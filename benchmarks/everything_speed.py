"""What everything in a picture costs, stock and under surgery in turn: `python -m benchmarks.everything_speed`.

Random weights at 1024 px on one CPU thread, processor time. The least predicted IoU is set to the median over points of
the best of their three, so that half of the points survive; stability is not asked for. Boxes are drawn at random and
pass all filters: they stand for what a proposer would say, whose own time is not in them.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch

import surgery
from surgery.bench.machine import machine
from surgery.hosts import loader_of
from surgery.hosts.sam21 import SIZES
from surgery.operations.segment_everything import Everything
from surgery.pictures import bound_of
from surgery.recipe import Recipe

ROOT = Path(__file__).resolve().parent.parent
HEIGHT, WIDTH = 768, 1024


def built(size: str) -> Any:
    """A stock `sam2` model with the weights it starts from, its mask heads included, and norms and scales at work."""
    torch.manual_seed(0)
    return loader_of("sam2").build(SIZES[size]).eval()


def bound(model: Any, name: str, **changes: Any) -> Everything:
    """The operation of a recipe in the model."""
    recipe = Recipe.load(name).with_values({f"everything.{key}": value for key, value in changes.items()})
    return bound_of(surgery.sparsify(model, recipe))


@torch.no_grad()
def median_score(model: Any, image: Any) -> float:
    """Of the best predicted IoU of 64 points."""
    own = bound(model, "everything-exact")
    driver = own.driver()
    picture, parts = driver.encode(image), driver.decoder()
    tokens = parts.with_prompts(driver.point_prompts(driver.grid(8, picture).inputs))
    tokens, _ = parts.transform(picture.embedding.repeat_interleave(64, 0), picture.positions, tokens)
    surgery.desparsify(model)
    return float(parts.scores(tokens)[:, 1:].amax(1).median())


def some_boxes(count: int) -> Callable[[Any], tuple[torch.Tensor, torch.Tensor]]:
    """A proposer that looks at nothing."""
    generator = torch.Generator().manual_seed(0)
    corners = torch.rand(count, 2, generator=generator) * torch.tensor([0.8 * WIDTH, 0.8 * HEIGHT])
    boxes = torch.cat([corners, corners + 40 + 100 * torch.rand(count, 2, generator=generator)], 1)
    return lambda image: (boxes, torch.linspace(1, 0.5, count))


def main() -> None:
    """Measure and write."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--size", default="tiny", choices=list(SIZES))
    parser.add_argument("--points", type=int, default=32)
    parser.add_argument("--rounds", type=int, default=1)
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    torch.set_num_threads(1)
    model = built(options.size)
    image = np.random.default_rng(0).integers(0, 255, (HEIGHT // 32, WIDTH // 32, 3), dtype=np.uint8)
    image = np.kron(image, np.ones((32, 32, 1), dtype=np.uint8))
    least = median_score(model, image)

    def stock() -> int:
        from sam2.automatic_mask_generator import SAM2AutomaticMaskGenerator

        generator = SAM2AutomaticMaskGenerator(
            model, points_per_side=options.points, pred_iou_thresh=least, stability_score_thresh=0.0
        )
        return len(generator.generate(image))

    def encoder() -> int:
        own = bound(model, "everything-exact")
        own.driver().encode(image)
        surgery.desparsify(model)
        return 0

    def ours(folded: bool) -> Callable[[], int]:
        changes = {"points": options.points, "filters.iou": least, "filters.stability": 0.0, "folded": folded}

        def run() -> int:
            bound(model, "everything-exact", **changes)
            count = len(surgery.everything(model, image))
            surgery.desparsify(model)
            return count

        return run

    def boxes(count: int) -> Callable[[], int]:
        changes = {"boxes.detector": "none", "boxes.max_prompts": count, "boxes.nms": 1.0, "boxes.least": 0.0,
                   "folded": True, "batch": 64, "filters.nms": 0.7}  # fmt: skip

        def run() -> int:
            bound(model, "published-everything", **changes).detector = some_boxes(count)
            found = len(surgery.everything(model, image))
            surgery.desparsify(model)
            return found

        return run

    arms = {
        "encoder": encoder, "stock": stock, "exact": ours(False), "folded": ours(True), "320 boxes": boxes(320),
        "64 boxes": boxes(64),
    }  # fmt: skip
    seconds: dict[str, list[float]] = {name: [] for name in arms}
    masks: dict[str, int] = {}
    for _ in range(options.rounds):
        for name, run in arms.items():
            began = time.process_time()
            masks[name] = run()
            seconds[name].append(time.process_time() - began)
            print(f"{name}: {seconds[name][-1]:.1f} s, {masks[name]} masks", flush=True)
    best = {name: min(times) for name, times in seconds.items()}
    after = {name: best[name] - best["encoder"] for name in ("stock", "exact", "folded")}
    report = {
        "what": "processor seconds of everything in one picture, stock sam2 and surgery in turn",
        "date": time.strftime("%Y-%m-%d"), "machine": machine(torch.device("cpu")), "size": options.size,
        "picture": [HEIGHT, WIDTH], "points": options.points**2, "least_iou": least, "seconds": seconds, "masks": masks,
        "decoder_and_after": {name: after["stock"] / after[name] for name in ("exact", "folded")},
        "whole_picture": {name: best["stock"] / best[name] for name in best if name not in ("stock", "encoder")},
    }  # fmt: skip
    out = options.out or ROOT / "benchmarks" / "results" / f"everything-speed-{options.size}-cpu.json"
    out.write_text(json.dumps(report, indent=2) + "\n", encoding="utf-8")
    print(json.dumps(report["decoder_and_after"]), json.dumps(report["whole_picture"]))


if __name__ == "__main__":
    main()

"""Masks of one video under every recipe, for `test_masks.py`: `python -m tests.hosts.masks` records them."""

from __future__ import annotations

import functools
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

import surgery
from surgery import Recipe, demo
from surgery.adapters.shipped import demo_adapter
from surgery.demo.clips import HELD_OUT
from tests.hosts.drive import Driver, StockDriver, TransformersDriver, make, video

FILE = Path(__file__).with_name("masks.npz")
RECIPES = Path(__file__).parents[1] / "compat" / "grouped"
COMMAND = "python -m tests.hosts.masks"
HOSTS = ("sam2", "transformers")
TOLERANCE = {"small": 1e-4, "demo": 2e-2}
"""By model. The kernels of other processors move masks by up to a twentieth of it, weights that are off by a millionth
by up to a half; one wrong window of one frame moves them by 13 and more, a memory frame missing in `demo` by 7."""
SEED = HELD_OUT + 34
"""Of the demo clip: no choice of windows or keys is near another one, so that both hosts make the same."""
FRAMES = 16
"""Fewer are tracked: stock sam2 scales pointer times by the length of shorter clips."""
LAST = {"small": 4, "demo": 8}
"""Frame on which the first pass ends. On five tracked ones the middle of the memory bank is measured."""
CELLS, LIMIT = 8, 32.0
"""Recorded are means over CELLS x CELLS equal parts of the logits, no further from 0 than LIMIT (-1024: no object)."""

Masks = dict[str, NDArray[np.float32]]


@functools.cache
def clip(model: str) -> tuple[Tensor, dict[int, tuple[int, int]]]:
    """Normalised pixels [T, 3, 256, 256], and by object id a point in each of three objects on frame 2."""
    if model == "small":
        return video(FRAMES), {7: (70, 120), 9: (200, 60), 11: (60, 210)}
    made = demo.make_clip(SEED, FRAMES, objects=3)
    points = {}
    for label in (1, 2, 3):
        rows, columns = (made.labels[2] == label).nonzero()
        points[label] = int(columns[len(rows) // 2]), int(rows[len(rows) // 2])
    mean, std = torch.tensor([0.485, 0.456, 0.406]), torch.tensor([0.229, 0.224, 0.225])
    pixels = (torch.from_numpy(made.frames.copy()) / 255 - mean) / std
    return pixels.permute(0, 3, 1, 2).contiguous(), points


@functools.cache
def _driver(model: str, host: str) -> Driver:
    """One for all recipes: building a model takes longer than tracking with it."""
    if model == "small":
        return make(host)
    return StockDriver(demo.load("sam2")) if host == "sam2" else TransformersDriver(demo.load("transformers"))


def tracked(
    model: str, host: str, recipe: str, values: Mapping[str, Any] | None = None,
    between: Callable[[Any], object] = lambda session: None,
) -> Masks:  # fmt: skip
    """Three objects forward from frame 2; one prompted again on the next frame, two frames from there; and back from
    frame 2.

    model: `small` has random weights, `demo` trained ones and its adapters. values: of the recipe, changed. between:
    is given the session before the second prompt.

    Returns:
        By pass and frame: mean mask logits fp32 [3, CELLS, CELLS].
    """
    driver = _driver(model, host)
    # A recipe that ships no adapter but has a shortcut: any trained one.
    adapter = demo_adapter("balanced" if recipe.startswith("published") else recipe) if model == "demo" else None
    chosen: Recipe | None = None if adapter is not None and not recipe.startswith("published") else _recipes()[recipe]
    surgery.sparsify(driver.model, chosen, adapter=adapter)
    if values:
        own = surgery.status(driver.model).recipe
        assert own is not None
        surgery.sparsify(driver.model, own.with_values(values), adapter=adapter)
    frames, points = clip(model)
    found: Masks = {}

    def run(name: str, **how: Any) -> None:
        for frame, masks in driver.propagate(session, **how):
            logits = torch.stack(list(masks.values())).reshape(3, 1, 64, 64).clamp(-LIMIT, LIMIT)
            found[f"{name} {frame}"] = F.avg_pool2d(logits, 64 // CELLS)[:, 0].numpy()

    try:
        with torch.inference_mode():
            session = driver.session(frames)
            driver.click(session, 2, points)
            last = LAST[model]
            run("forward", start=2, count=last - 2)
            between(session)
            again, (x, y) = next(iter(points.items()))
            driver.click(session, last + 1, {again: (x + 6, y + 6)})
            run("prompted", start=last + 1, count=1)
            run("back", start=2, count=2, reverse=True)
    finally:
        surgery.desparsify(driver.model)
    return found


@functools.cache
def _recipes() -> dict[str, Recipe]:
    """As they were shipped when masks were first recorded: what they mean stays."""
    return {path.stem: Recipe.load(path) for path in sorted(RECIPES.glob("*.yaml")) if path.stem != "tiles-queries"}


def shipped() -> dict[str, str]:
    """Every recipe, and the first one that has the same operations, under whose name its masks are recorded."""
    recipes = _recipes()
    return {
        name: next(other for other in recipes if recipes[other].operations == recipe.operations)
        for name, recipe in recipes.items()
    }


def recorded(model: str, recipe: str) -> Masks:
    """What the file holds, empty where it has nothing."""
    prefix = f"{model}/{shipped()[recipe]}/"
    with np.load(FILE) as file:
        return {key.removeprefix(prefix): file[key] for key in file.files if key.startswith(prefix)}


def furthest(model: str, before: Masks, now: Masks) -> tuple[str, float]:
    """Where masks differ most, and by how many tolerances.

    Raises:
        ValueError: they are not of the same frames.
    """
    if list(before) != list(now):
        raise ValueError(f"frames {', '.join(now)}; recorded are {', '.join(before) or 'none'}: {COMMAND} records them")
    apart = {
        f"{frame}, object {place}": float(np.abs(before[frame][place] - now[frame][place]).max()) / TOLERANCE[model]
        for frame in before
        for place in range(len(now[frame]))
    }
    return max(apart.items(), key=lambda item: item[1])


def main() -> None:
    """Record the masks of every recipe with the sam2 host; transformers must give the same."""
    os.environ["TQDM_DISABLE"] = "1"
    torch.set_num_threads(1)
    held = {
        f"{model}/{recipe}/{frame}": masks
        for model in TOLERANCE
        for recipe in sorted(set(shipped().values()))
        for frame, masks in tracked(model, "sam2", recipe).items()
    }
    np.savez_compressed(FILE, **held)  # type: ignore[arg-type]
    print(f"{len(held)} frames, {FILE.stat().st_size:,} bytes")


if __name__ == "__main__":
    main()

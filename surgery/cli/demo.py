"""`surgery demo`: the main job on the embedded model, with nothing to download."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import click
import numpy as np

from surgery.cli.common import Command, OutPath, err, noted, out, print_json, shown
from surgery.cli.options import host_option, recipe_options
from surgery.cli.tables import SCORES, print_table, score_cells

PUBLISHED = "published-base-plus"
"""Recipe with the thresholds of the released code; without its weights the shortcut is the identity."""


@click.command(cls=Command)
@click.option("--out", "folder", default="demo-output", show_default=True, type=OutPath(file_okay=False))
@recipe_options(adapter=False)
@click.option("--clips", default=3, show_default=True, type=click.IntRange(1, 1000))
@click.option("--frames", default=24, show_default=True, type=click.IntRange(2, 1000))
@click.option("--difficulty", default="medium", show_default=True, type=click.Choice(["easy", "medium", "hard"]))
@host_option
@click.option("--seed", default=0, show_default=True, help="First held-out clip.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON on stdout.")
def demo(
    folder: str, recipe: str, overrides: tuple[str, ...], clips: int, frames: int, difficulty: str, host: str | None,
    seed: int, as_json: bool,
) -> None:  # fmt: skip
    """Track synthetic clips with the embedded model, stock and under surgery, and show the difference."""
    import torch

    from surgery.demo import model as demo_model
    from surgery.demo.page import arms, write_page
    from surgery.demo.show import calibrated, run
    from surgery.hosts import view_of
    from surgery.recipe import Recipe

    trained = demo_model.WEIGHTS.is_file()
    chosen, adapter = calibrated(recipe, overrides) if trained else (Recipe.load(recipe, overrides), None)
    # One thread: at this size a second one costs more than it gives, and times scatter.
    torch.set_num_threads(1)
    model = demo_model.load(host) if trained else demo_model.build(host)
    if not trained:
        err.print("The demo model has random weights: the figures show speed and routing, not quality.", style="yellow")
    target = Path(folder)
    target.mkdir(parents=True, exist_ok=True)
    video = target / "side-by-side.mp4"
    with shown(f"{clips} clips, stock and {chosen.metadata.name}", 3 * clips * frames) as step:
        result = run(
            model, chosen, clips, frames, difficulty, seed, "mask", video, step, adapter, [Recipe.load(PUBLISHED)]
        )
    summary = {
        "dense": result.dense.as_dict(),
        "sparse": result.sparse.as_dict(),
        "published": result.also[0].as_dict(),
        "dense_frames": result.dense_frames,
        "recipe": chosen.metadata.name,
        "adapter": adapter.name if adapter is not None else None,
        "host": view_of(model).name,
        "clips": clips,
        "frames": frames,
        "difficulty": difficulty,
        "seed": seed,
        "trained": trained,
    }
    (target / "summary.json").write_text(json.dumps(summary, indent=2) + "\n")
    _pictures(result.pictures, target)
    write_page(target / "report.html", summary, result)
    if as_json:
        print_json(summary)
        return
    rows = [[name, *score_cells({**figures, "ms": figures["ms_per_frame"]})] for name, figures in arms(summary)]
    print_table(("", *SCORES), rows)
    for name, what in _FILES.items():
        out.print(noted(f"  {target / name}", what))


_FILES = {
    "report.html": "what came out, and a player of the first clip",
    "side-by-side.mp4": "first clip, stock and under surgery; dark windows were not computed",
    "windows.png": "four frames of it",
    "summary.json": "the figures",
}


def _pictures(pictures: list[Any], target: Path) -> None:
    from PIL import Image

    rows = [np.concatenate(pictures[start : start + 2], axis=1) for start in (0, 2)]
    Image.fromarray(np.concatenate(rows)).resize((1024, 544)).save(target / "windows.png", optimize=True)

"""`surgery demo`, `demo-eval` and `demo-clips`: the main job on the embedded model, its scores, and its clips."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any, get_args

import click
import torch

from surgery import __version__
from surgery.api import sparsify
from surgery.cli.common import SCORES, Command, OutPath, noted, out, print_json, print_table, score_cells, shown
from surgery.cli.options import host_option, json_option, recipe_option, set_option, together
from surgery.demo import model as demo_model
from surgery.demo.clips import Difficulty, held_out, write_davis
from surgery.demo.show import DemoRun, calibrated, run
from surgery.hosts import view_of
from surgery.video.prompts import PROMPTS

PUBLISHED = "published-base-plus"
"""Recipe with the thresholds of the released code; without its weights the shortcut is the identity."""

_difficulty_option = click.option("--difficulty", default="medium", type=click.Choice(get_args(Difficulty)))
_seed_option = click.option("--seed", default=0, help="First held-out clip.")


def _comparing(clips: int) -> Callable[[Any], Any]:
    """What `_compare` asks for. clips: by default."""
    return together(
        recipe_option,
        set_option,
        click.option("--clips", default=clips, type=click.IntRange(1, 10_000)),
        click.option("--frames", default=24, type=click.IntRange(2, 1000)),
        _difficulty_option,
        host_option,
        _seed_option,
        json_option,
    )


def _compare(
    clips: int, frames: int, difficulty: Any, seed: int, host: str | None, recipe: str, overrides: tuple[str, ...],
    prompt: str = "mask", video: Path | None = None,
) -> tuple[dict[str, Any], DemoRun]:  # fmt: skip
    """Run the embedded model, stock and under surgery, and with a video as published besides."""
    chosen, adapter = calibrated(recipe, overrides)
    # One thread: at this size a second one costs more than it gives, and times scatter.
    torch.set_num_threads(1)
    model = demo_model.load(host)
    models = {"dense": model, "sparse": sparsify(copy.deepcopy(model), chosen, adapter=adapter)}
    if video is not None:
        models["published"] = sparsify(copy.deepcopy(model), PUBLISHED)
    with shown(f"{clips} clips, stock and {chosen.metadata.name}", len(models) * clips * frames) as step:
        result = run(models, held_out(seed, clips, frames, difficulty=difficulty), prompt, step, video)
    summary = {
        **result.as_dict(), "recipe": chosen.to_dict(), "adapter": adapter.name if adapter is not None else None,
        "clips": clips, "frames": frames, "difficulty": difficulty, "prompt": prompt, "host": view_of(model).name,
        "seed": seed, "surgery": __version__, "torch": torch.__version__,
    }  # fmt: skip
    return summary, result


@click.command(cls=Command)
@click.option("--out", "folder", default="demo-output", type=OutPath(file_okay=False))
@_comparing(clips=3)
def demo(folder: str, as_json: bool, **asked: Any) -> None:
    """Track synthetic clips with the embedded model, stock and under surgery, and show the difference."""
    from surgery.demo.page import arms, write_page

    target = Path(folder)
    target.mkdir(parents=True, exist_ok=True)
    summary, result = _compare(**asked, video=target / "side-by-side.mp4")
    (target / "summary.json").write_text(json.dumps(summary, indent=2) + "\n")
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
    "summary.json": "the figures",
}


@click.command(cls=Command, name="demo-eval")
@_comparing(clips=100)
@click.option("--prompt", default="mask", type=click.Choice(PROMPTS))
def demo_eval(as_json: bool, **asked: Any) -> None:
    """Score the embedded model on held-out clips, stock and under RECIPE side by side.

    J and F are means over objects, the prompted frame excluded; ms is the median over tracked frames, both models in
    turn on every frame; windows and keys are fractions averaged over tracked frames. Recipes faithful, balanced and
    fast run with the adapters that ship (calibrated on 8 other synthetic clips); others with an untrained shortcut.
    """
    summary, _ = _compare(**asked)
    if as_json:
        print_json(summary)
        return
    rows = [
        [arm, *("-" if value is None else f"{value:.4g}" for value in summary[arm].values())]
        for arm in ("dense", "sparse")
    ]
    print_table(("", "J&F", "J", "F", "score acc.", "absence recall", "ms/frame", "windows", "keys"), rows)


@click.command(cls=Command, name="demo-clips")
@click.option("--out", "folder", required=True, type=OutPath(file_okay=False), help="Folder for the DAVIS layout.")
@click.option("--clips", default=3, type=click.IntRange(1, 10_000))
@click.option("--frames", default=24, type=click.IntRange(1, 10_000))
@click.option("--size", default=256, type=click.IntRange(64, 2048), help="Side in pixels.")
@_difficulty_option
@click.option("--cuts", default=0, type=click.IntRange(0), help="Scene cuts per clip.")
@_seed_option
def demo_clips(folder: str, seed: int, clips: int, **how: Any) -> None:
    """Write held-out synthetic clips with exact masks as a DAVIS-layout folder."""
    for path in write_davis(held_out(seed, clips, **how), Path(folder)):
        out.print(str(path))

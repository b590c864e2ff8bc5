"""`surgery demo-eval` and `surgery demo-clips`: the embedded model on held-out synthetic clips, and the clips."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from surgery.cli.common import Command, OutPath, out, print_json, shown
from surgery.cli.options import host_option, recipe_options
from surgery.cli.tables import print_table

_PROMPTS = click.Choice(["mask", "box", "point"])
_LEVELS = click.Choice(["easy", "medium", "hard"])


@click.command(cls=Command, name="demo-eval")
@click.option("--clips", default=100, show_default=True, type=click.IntRange(1, 10_000))
@click.option("--frames", default=24, show_default=True, type=click.IntRange(2, 1000))
@click.option("--difficulty", default="medium", show_default=True, type=_LEVELS)
@click.option("--prompt", default="mask", show_default=True, type=_PROMPTS)
@host_option
@recipe_options(adapter=False)
@click.option("--seed", default=0, show_default=True, help="First held-out clip.")
@click.option("--weights", type=click.Path(), help="Other weights of the demo architecture (stock key names).")
@click.option("--json", "as_json", is_flag=True, help="Print JSON on stdout.")
def demo_eval(
    clips: int, frames: int, difficulty: str, prompt: str, host: str | None, recipe: str, overrides: tuple[str, ...],
    seed: int, weights: str | None, as_json: bool,
) -> None:  # fmt: skip
    """Score the embedded model on held-out clips, stock and under RECIPE side by side.

    J and F are means over objects, the prompted frame excluded; ms is the median over tracked frames, both models in
    turn on every frame; windows and keys are fractions averaged over tracked frames. Recipes faithful, balanced and
    fast run with the adapters that ship (calibrated on 8 other synthetic clips); others with an untrained shortcut.
    """
    import torch

    from surgery import __version__
    from surgery.demo import model as demo_model
    from surgery.demo.show import calibrated, run
    from surgery.hosts import view_of
    from surgery.recipe import Recipe

    chosen, adapter = calibrated(recipe, overrides) if weights is None else (Recipe.load(recipe, overrides), None)
    torch.set_num_threads(1)
    model = demo_model.load(host, weights=weights)
    with shown(f"{clips} clips", 2 * clips * frames) as step:
        result = run(model, chosen, clips, frames, difficulty, seed, prompt, None, step, adapter)
    summary: dict[str, Any] = {
        "dense": result.dense.as_dict(),
        "sparse": result.sparse.as_dict(),
        "dense_frames": result.dense_frames,
        "recipe": chosen.to_dict(),
        "adapter": adapter.name if adapter is not None else None,
        "clips": clips,
        "frames": frames,
        "difficulty": difficulty,
        "prompt": prompt,
        "host": view_of(model).name,
        "seed": seed,
        "surgery": __version__,
        "torch": torch.__version__,
    }
    if as_json:
        print_json(summary)
        return
    print_table(
        _COLUMNS,
        [
            [name, *("-" if value is None else f"{value:.4g}" for value in summary[name].values())]
            for name in ("dense", "sparse")
        ],
    )


_COLUMNS = ("", "J&F", "J", "F", "score acc.", "absence recall", "ms/frame", "windows", "keys")


@click.command(cls=Command, name="demo-clips")
@click.option("--out", "folder", required=True, type=OutPath(file_okay=False), help="Folder for the DAVIS layout.")
@click.option("--clips", default=3, show_default=True, type=click.IntRange(1, 10_000))
@click.option("--frames", default=24, show_default=True, type=click.IntRange(1, 10_000))
@click.option("--size", default=256, show_default=True, type=click.IntRange(64, 2048), help="Side in pixels.")
@click.option("--difficulty", default="medium", show_default=True, type=_LEVELS)
@click.option("--cuts", default=0, show_default=True, type=click.IntRange(0), help="Scene cuts per clip.")
@click.option("--seed", default=0, show_default=True, help="First held-out clip.")
def demo_clips(folder: str, clips: int, frames: int, size: int, difficulty: str, cuts: int, seed: int) -> None:
    """Write held-out synthetic clips with exact masks as a DAVIS-layout folder."""
    from surgery.demo.clips import HELD_OUT, make_clip, write_davis

    made = (
        make_clip(HELD_OUT + seed + number, frames, size, difficulty, cuts=cuts)  # type: ignore[arg-type]
        for number in range(clips)
    )
    for path in write_davis(made, Path(folder)):
        out.print(str(path))

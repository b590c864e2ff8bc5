"""`surgery demo`: the main job on the embedded model, with nothing to download."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import click
import numpy as np
from rich.table import Table

from surgery.cli.common import Command, OutPath, err, noted, out, print_json, progress

PUBLISHED = "published-base-plus"
"""Recipe with the thresholds of the released code; without its weights the shortcut is the identity."""

_COLUMNS = ("", "J&F", "J", "F", "ms/frame", "windows", "keys")


@click.command(cls=Command)
@click.option("--out", "folder", default="demo-output", show_default=True, type=OutPath(file_okay=False))
@click.option("--recipe", default="balanced", show_default=True, help="Recipe name or YAML path.")
@click.option("--set", "overrides", multiple=True, metavar="OP.FIELD=VALUE", help="Change a recipe field; repeatable.")
@click.option("--clips", default=3, show_default=True, type=click.IntRange(1, 1000))
@click.option("--frames", default=24, show_default=True, type=click.IntRange(2, 1000))
@click.option("--difficulty", default="medium", show_default=True, type=click.Choice(["easy", "medium", "hard"]))
@click.option("--host", default="sam2", show_default=True, type=click.Choice(["sam2", "transformers"]))
@click.option("--seed", default=0, show_default=True, help="First held-out clip.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON on stdout.")
def demo(
    folder: str, recipe: str, overrides: tuple[str, ...], clips: int, frames: int, difficulty: str, host: str,
    seed: int, as_json: bool,
) -> None:  # fmt: skip
    """Track synthetic clips with the embedded model, stock and under surgery, and show the difference."""
    import torch

    from surgery.demo import model as demo_model
    from surgery.demo.show import calibrated, run
    from surgery.recipe import Recipe

    trained = demo_model.WEIGHTS.is_file()
    chosen, adapter = calibrated(recipe, overrides) if trained else (Recipe.load(recipe, overrides), None)
    # One thread: at this size a second one costs more than it gives, and times scatter.
    torch.set_num_threads(1)
    model = demo_model.load(host) if trained else demo_model.build(host)  # type: ignore[arg-type]
    if not trained:
        err.print("The demo model has random weights: the figures show speed and routing, not quality.", style="yellow")
    target = Path(folder)
    target.mkdir(parents=True, exist_ok=True)
    video = target / "side-by-side.mp4"
    with progress() as bar:
        task = bar.add_task(f"{clips} clips, stock and {chosen.metadata.name}", total=3 * clips * frames)
        result = run(
            model,
            chosen,
            clips,
            frames,
            difficulty,
            seed,
            "mask",
            video,
            lambda: bar.advance(task),
            adapter,
            [Recipe.load(PUBLISHED)],
        )
    summary = {
        "dense": result.dense.as_dict(),
        "sparse": result.sparse.as_dict(),
        "published": result.also[0].as_dict(),
        "dense_frames": result.dense_frames,
        "recipe": chosen.metadata.name,
        "adapter": adapter.name if adapter is not None else None,
        "host": host,
        "clips": clips,
        "frames": frames,
        "difficulty": difficulty,
        "seed": seed,
        "trained": trained,
    }
    (target / "summary.json").write_text(json.dumps(summary, indent=2) + "\n")
    _pictures(result.pictures, target)
    _page(summary, result.pictures, target)
    if as_json:
        print_json(summary)
        return
    table = Table(*_COLUMNS, box=None, pad_edge=False)
    for row in _rows(summary):
        table.add_row(*row)
    out.print(table)
    for name, what in _FILES.items():
        out.print(noted(f"  {target / name}", what), soft_wrap=True)


_FILES = {
    "report.html": "the table, pictures and video on one page",
    "side-by-side.mp4": "first clip, stock and under surgery; dark windows were not computed",
    "windows.png": "four frames of it",
    "summary.json": "the figures",
}


def _rows(summary: dict[str, Any]) -> list[list[str]]:
    rows = []
    ours = f"{summary['recipe']}, " + ("calibrated" if summary["adapter"] else "not calibrated")
    for name, key in (("stock", "dense"), ("published, identity shortcut", "published"), (ours, "sparse")):
        part = summary[key]
        kept = [part["windows_kept"], part["keys_kept"]]
        rows.append(
            [
                name,
                *(f"{part[field]:.3f}" for field in ("j_and_f", "j", "f")),
                f"{part['ms_per_frame']:.1f}",
                *("100 %" if value is None else f"{100 * value:.0f} %" for value in kept),
            ]
        )
    return rows


def _pictures(pictures: list[Any], target: Path) -> None:
    from PIL import Image

    rows = [np.concatenate(pictures[start : start + 2], axis=1) for start in (0, 2)]
    Image.fromarray(np.concatenate(rows)).resize((1024, 544)).save(target / "windows.png", optimize=True)


def _page(summary: dict[str, Any], pictures: list[Any], target: Path) -> None:
    from surgery.report.page import Page

    page = Page("SAM 2 under surgery: the demo run")
    page.text(
        f"{summary['clips']} synthetic clips of {summary['frames']} frames, difficulty {summary['difficulty']}, "
        f"tracked from the masks of the first frame by the embedded miniature SAM 2 ({summary['host']} host), stock "
        f"and under recipe {summary['recipe']}, frame by frame in turn in one process."
    )
    if not summary["trained"]:
        page.text("The model has random weights: speed and routing are real, quality is not.")
    page.table(_COLUMNS, _rows(summary))
    page.text(
        "J&F against exact masks, mean over objects; ms/frame is the median on this machine; windows: stage-3 windows "
        "computed, keys: spatial memory keys read, of all. A miniature at 256 px "
        "has little to save: the fixed costs of a frame weigh more than the skipped windows. At 1024 px the balance is "
        "another one, see docs/benchmarks.md."
    )
    page.heading("Which windows were computed")
    page.text("Left stock, right under surgery. Dark windows were skipped and reuse their last output.")
    page.video(target / "side-by-side.mp4", pictures[0], "First clip: stock on the left, under surgery on the right")
    for number, picture in enumerate(pictures):
        page.picture(picture, f"Frame sample {number + 1} of {len(pictures)} of the first clip")
    if summary["dense_frames"]:
        page.heading("Why some frames were computed whole")
        page.table(("reason", "frames"), [[reason, str(count)] for reason, count in summary["dense_frames"].items()])
    page.write(target / "report.html")

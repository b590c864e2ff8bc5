"""`surgery calibrate` and `surgery fit`: an adapter for a model from a few clips."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from surgery import calibration, jobs
from surgery.adapters import save_adapter
from surgery.calibration.clips import LAYOUTS
from surgery.calibration.whole import prompted
from surgery.cli.common import Command, OutPath, err, out, print_json
from surgery.cli.options import Asked, asking, json_option, on_ray, together
from surgery.errors import AdapterError, CalibrationError
from surgery.operations import SparseWindowRouting
from surgery.progress import progress_bar
from surgery.recipe import Recipe

_shared = together(
    click.argument("model"),
    asking(adapter=False),
    click.option(
        "--clips", multiple=True, required=True, metavar="PATH",
        help="Video file, folder of frames, folder with frames/ and masks/, or a folder of those; repeatable.",
    ),
    click.option("--out", "folder", required=True, type=OutPath(file_okay=False), help="Adapter to write."),
    click.option("--max-frames", type=click.IntRange(min=3), help="Use only so many frames of each clip."),
)  # fmt: skip


@click.command(cls=Command)
@_shared
@click.option("--held-out", multiple=True, metavar="PATH", help="Clips to measure on; default half of --clips.")
@click.option("--seed", default=0, type=click.IntRange(min=0))
@click.option("--runs", default=8, type=click.IntRange(min=1), help="Settings run for real.")
@click.option(
    "--if-missed", default="raise", type=click.Choice(["raise", "nearest"]),
    help="When no setting keeps the promise: fail, or write the most faithful one.",
)  # fmt: skip
@on_ray
@click.option("--report", "report_to", type=OutPath(file_okay=False), help="Report folder; default OUT-report.")
@json_option
def calibrate(
    asked: Asked, clips: tuple[str, ...], folder: str, held_out: tuple[str, ...], report_to: str | None,
    as_json: bool, ray: str | None, actors: int | None, threads: int | None, tries: int, **how: Any,
) -> None:  # fmt: skip
    """Calibrate MODEL on a few clips and write the result as an adapter.

    Fits the shortcut, chooses the fastest setting that keeps the recipe's promise on clips that took no part in
    fitting, and writes OUT (the adapter; a recipe where it routes no windows) and a report.

    \b
    surgery calibrate facebook/sam2.1-hiera-large --recipe balanced --clips a.mp4 --clips b.mp4 --out my-adapter
    """
    target = _target(folder)
    model, chosen = asked.load(), Recipe.load(str(asked.recipe), asked.overrides)
    reports = Path(report_to) if report_to is not None else target.with_name(target.name + "-report")
    pool = None if ray is None else jobs.PoolSettings(ray, actors, threads, tries)
    try:
        with jobs.clips_on(model, jobs.Setup(asked.model, host=asked.host, device=asked.device), pool) as each:
            report = calibration.calibrate(
                model, clips, chosen, held_out=held_out or None, progress=not as_json, name=asked.model, each=each,
                **how,
            )  # fmt: skip
    except calibration.PromiseError as error:
        error.report.save(reports)
        err.print(f"report: {reports}")
        raise
    report.save(reports)
    if report.recipe.find(SparseWindowRouting) is None:
        # Without window routing there are no weights to carry; the values found are a recipe.
        target.mkdir(parents=True, exist_ok=True)
        (target / "recipe.yaml").write_text(report.recipe.to_yaml(), encoding="utf-8")
    else:
        save_adapter(model, target)
    if as_json:
        print_json(report.as_dict())
    else:
        out.print(f"{report.as_markdown()}\nadapter: {target}\nreport:  {reports}")


@click.command(cls=Command)
@_shared
def fit(asked: Asked, clips: tuple[str, ...], folder: str, max_frames: int | None) -> None:
    """Fit only the shortcut of MODEL, leave the recipe's thresholds, and write an adapter."""
    target = _target(folder)
    model, chosen = asked.load(), Recipe.load(str(asked.recipe), asked.overrides)
    with progress_bar(True) as bars:
        usable, skipped = calibration.gather_clips(clips, max_frames, bars)
        asked.operate(model, chosen)
        usable = prompted(model, usable, skipped, bars)
        for clip in skipped:
            bars.say(f"skipped {clip}")
        if not usable:
            raise CalibrationError(f"none of the {len(skipped)} clips is usable. What works: {LAYOUTS}")
        result = calibration.fit_shortcut(model, usable, step=bars)
    save_adapter(model, target)
    explained = "" if result.explained is None else f"closed form explains {result.explained:.1%} of the residual; "
    out.print(f"{explained}adapter: {target}")


def _target(folder: str) -> Path:
    """The adapter folder, refused before the work and not after it."""
    target = Path(folder)
    if target.exists() and not (target / "adapter_config.json").is_file() and any(target.iterdir()):
        raise AdapterError(f"{target}: exists and is not an adapter; choose another folder")
    return target

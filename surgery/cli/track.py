"""`surgery track`: follow objects through a video and write masks, an overlay and a summary."""

from __future__ import annotations

import json
import re
import statistics
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import click
import numpy as np

from surgery.cli.common import Command, OutPath, loading, model_options, out, print_json, progress, recipe_options
from surgery.errors import PromptError, VideoError
from surgery.video.prompts import Prompt


@click.command(cls=Command)
@click.argument("video", type=click.Path())
@click.option("--model", "spec", required=True, help="Hub id, folder, CONFIG.yaml+CHECKPOINT.pt, random:SIZE or demo.")
@recipe_options(default=None)
@model_options
@click.option("--mask", "masks", multiple=True, metavar="PNG[@FRAME]", help="Label PNG: one object per value.")
@click.option("--box", "boxes", multiple=True, metavar="X0,Y0,X1,Y1[@FRAME][#ID]", help="Box in pixels.")
@click.option("--point", "points", multiple=True, metavar="X,Y[,LABEL][@FRAME][#ID]", help="Click; label 1 on, 0 off.")
@click.option("--out", "folder", required=True, type=OutPath(file_okay=False), help="Output folder.")
@click.option("--max-frames", type=click.IntRange(min=1), help="Stop after this many frames.")
@click.option("--fps", type=click.FloatRange(min=0.1), help="Overlay frame rate; default the video's, else 24.")
@click.option("--show-windows", is_flag=True, help="Darken the windows that were not computed in the overlay.")
@click.option("--overlay/--no-overlay", default=True, help="Write overlay.mp4.", show_default=True)
@click.option("--json", "as_json", is_flag=True, help="Print the summary as JSON on stdout.")
def track(
    video: str, spec: str, recipe: str | None, overrides: tuple[str, ...], adapter: str | None, host: str | None,
    device: str | None, masks: tuple[str, ...], boxes: tuple[str, ...], points: tuple[str, ...], folder: str,
    max_frames: int | None, fps: float | None, show_windows: bool, overlay: bool, as_json: bool,
) -> None:  # fmt: skip
    """Track objects through VIDEO (a folder of pictures or a video file).

    Writes OUT/masks/*.png (DAVIS palette), OUT/overlay.mp4 and OUT/summary.json.

    \b
    surgery track clip.mp4 --model facebook/sam2.1-hiera-large --recipe balanced --box 10,20,200,180 --out run
    surgery track frames/ --model demo --recipe none --mask first.png --out run
    """
    from surgery.tracking import track as run_tracker
    from surgery.video import check, open_video

    source = open_video(video)
    prompts = _prompts(masks, boxes, points)
    check(prompts, source.size, source.num_frames)
    target = Path(folder)
    if target.exists() and any(target.iterdir()):
        raise VideoError(f"{target}: not empty; choose a new folder")
    model = _model(spec, host, device, recipe, overrides, adapter)
    total = min(value for value in (max_frames, source.num_frames, 10**9) if value is not None)

    rows: list[dict[str, Any]] = []
    target.mkdir(parents=True, exist_ok=True)
    (target / "masks").mkdir()
    with ExitStack() as stack:
        bar = stack.enter_context(progress())
        task = bar.add_task(f"tracking {source.name}", total=None if total == 10**9 else total)
        writer = _writer(stack, target, source.fps, fps) if overlay else None
        for number, result in enumerate(run_tracker(model, source, prompts)):
            if max_frames is not None and number >= max_frames:
                break
            rows.append(_write(result, target, writer, show_windows))
            bar.advance(task)
    if not rows:
        raise VideoError(f"{video}: no frame was tracked")
    summary = _summary(model, spec, video, source, rows)
    (target / "summary.json").write_text(json.dumps(summary, indent=2) + "\n")
    print_json(summary) if as_json else _say(summary, target)


def _prompts(masks: tuple[str, ...], boxes: tuple[str, ...], points: tuple[str, ...]) -> list[Prompt]:
    from surgery.video import load_mask_prompts, merge_points, parse_box, parse_point

    found: list[Prompt] = []
    for text in masks:
        path, at, frame = text.rpartition("@")
        if not at or not re.fullmatch("[0-9]{1,9}", frame):
            path, frame = text, "0"
        if not Path(path).is_file():
            raise PromptError(f"no mask file at {path!r}")
        found += load_mask_prompts(path, int(frame))
    found += [parse_box(text) for text in boxes]
    found += merge_points([parse_point(text) for text in points])
    return found


def _model(
    spec: str, host: str | None, device: str | None, recipe: str | None, overrides: tuple[str, ...], adapter: str | None
) -> Any:
    from surgery.api import sparsify
    from surgery.loading import load_model
    from surgery.recipe import Recipe

    chosen = None if recipe in (None, "none") else Recipe.load(str(recipe), overrides)
    if chosen is None and overrides:
        raise click.UsageError("--set needs --recipe")
    with loading(spec):
        model = load_model(spec, host, device)
    if recipe == "none":
        if adapter is not None:
            raise click.UsageError("--recipe none runs the stock model: it takes no --adapter")
        return model
    return sparsify(model, chosen, adapter=adapter)


def _writer(stack: ExitStack, target: Path, native: float | None, wanted: float | None) -> Any:
    from surgery.video import VideoWriter

    return stack.enter_context(VideoWriter(target / "overlay.mp4", wanted or native or 24.0))


def _write(result: Any, target: Path, writer: Any, show_windows: bool) -> dict[str, Any]:
    from surgery.tracking import windows_drawn
    from surgery.video import draw_masks, labels_from_logits, write_label_png

    labels = labels_from_logits(result.logits)
    write_label_png(target / "masks" / f"{result.index:05d}.png", labels)
    record = result.record
    if writer is not None:
        shown = result.frame
        if show_windows and record is not None:
            shown = windows_drawn(shown, record)
        writer.write(draw_masks(shown, labels))
    return {
        "frame": result.index,
        "ms": round(1000 * result.seconds, 3),
        "windows": None if record is None else len(record.windows),
        "dense": None if record is None else record.dense,
        "area": {str(obj_id): int(np.count_nonzero(labels == obj_id)) for obj_id in result.logits},
    }


def _summary(model: Any, spec: str, video: str, source: Any, rows: list[dict[str, Any]]) -> dict[str, Any]:
    import torch

    from surgery import __version__, status
    from surgery.hosts import view_of

    state = status(model)
    times = [row["ms"] for row in rows]
    return {
        "surgery": __version__,
        "model": spec,
        "host": view_of(model).name,
        "device": str(next(model.parameters()).device),
        "torch": torch.__version__,
        "video": video,
        "size": list(source.size),
        "recipe": state.recipe.to_dict() if state.recipe is not None else None,
        "adapter": state.adapter,
        "frames": len(rows),
        "ms_per_frame": {"median": statistics.median(times), "mean": statistics.fmean(times), "max": max(times)},
        "windows_kept": state.windows_kept,
        "keys_kept": state.keys_kept,
        "dense_frames": state.dense_frames,
        "per_frame": rows,
    }


def _say(summary: dict[str, Any], target: Path) -> None:
    def share(value: float | None) -> str:
        return "all" if value is None else f"{value:.0%}"

    out.print(
        f"{summary['frames']} frames, median {summary['ms_per_frame']['median']:.0f} ms a frame; "
        f"windows computed {share(summary['windows_kept'])}, memory keys read {share(summary['keys_kept'])}",
        highlight=False,
    )
    for reason, count in (summary["dense_frames"] or {}).items():
        out.print(f"  dense frames, {reason}: {count}", highlight=False)
    for name in _written(target):
        out.print(f"  {name}", highlight=False, soft_wrap=True)


def _written(target: Path) -> Iterator[str]:
    yield f"{target / 'masks'}/"
    for name in ("overlay.mp4", "summary.json"):
        if (target / name).exists():
            yield str(target / name)

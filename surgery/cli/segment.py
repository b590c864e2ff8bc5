"""`surgery segment`: the masks of everything in pictures, or in a video."""

from __future__ import annotations

import json
import time
from collections.abc import Sequence
from dataclasses import replace
from itertools import islice
from pathlib import Path
from typing import Any

import click
import numpy as np
import numpy.typing as npt
from PIL import Image

from surgery.cli.common import Command, OutPath, counted, out, print_json
from surgery.cli.options import SAVED, Asked, asking, json_option
from surgery.core.pictures import Found
from surgery.errors import PictureError
from surgery.evaluation.coco import Annotations
from surgery.evaluation.recall import mask_ious, recall
from surgery.evaluation.trace import run_lengths
from surgery.files import write_whole
from surgery.pictures import bound_of, found_in, read_picture, stock_found_in
from surgery.progress import Bars, progress_bar
from surgery.report.frames import encoded
from surgery.report.segments import write_segments
from surgery.tracking_everything import apart, track_everything
from surgery.video import VideoWriter, draw_ids, draw_masks, open_video, write_label_png
from surgery.video.folder import KINDS
from surgery.video.masks import MAX_ID, Labels


@click.command(cls=Command)
@click.argument("source", type=click.Path())
@click.option("--model", required=True, help=f"Model: {SAVED}, random:SIZE or demo.")
@asking(stock=True)
@click.option("--out", "folder", required=True, type=OutPath(file_okay=False), help="Output folder.")
@click.option("--compare", is_flag=True, help="Pictures: also stock's masks, side by side in OUT/report.html.")
@click.option("--truth", type=click.Path(), help="Pictures: a COCO or LVIS instances JSON to score the masks by.")
@click.option("--as-video", is_flag=True, help="The pictures of a folder are the frames of one video.")
@click.option("--every", type=click.IntRange(min=1), default=16, help="Video: frames between looks.")
@click.option("--max-objects", type=click.IntRange(1, MAX_ID), default=50, help="Video: tracked at once.")
@click.option("--max-frames", type=click.IntRange(min=1), help="Video: stop after this many frames.")
@json_option
def segment(
    source: str, asked: Asked, folder: str, compare: bool, truth: str | None, as_video: bool, every: int,
    max_objects: int, max_frames: int | None, as_json: bool,
) -> None:  # fmt: skip
    """Masks of everything in SOURCE: a picture, a folder of pictures, or a video file.

    Without --recipe: the adapter's own, or everything-exact. Writes of every picture OUT/labels/NAME.png (objects
    do not overlap, the best on top), OUT/masks/NAME.json (COCO RLE, all masks) and OUT/overlay/NAME.png; of a video
    OUT/labels/*.png with stable ids and OUT/overlay.mp4; and OUT/summary.json. --compare takes the stock generator's
    masks at the recipe's points and filters. --truth adds the mask AR@10, 100 and 320 over IoU 0.5 to 0.95, whatever
    the category, of the pictures that the file annotates.

    \b
    surgery segment photo.jpg --model facebook/sam2.1-hiera-large --out run
    surgery segment clip.mp4 --model facebook/sam2.1-hiera-large --adapter my-head --out run
    """
    target, path = Path(folder), Path(source)
    pictures = path.suffix.lower() in KINDS or (path.is_dir() and not as_video)
    for option, given in (("--compare", compare), ("--truth", truth)):
        if given and not pictures:
            raise click.UsageError(f"{option} is for pictures, {source} is taken as a video")
    files = _files(path) if pictures else []
    annotations = Annotations(truth) if truth is not None else None
    if annotations is not None:
        annotations.check([file.stem for file in files])
    if asked.recipe is None and asked.adapter is None:
        asked = replace(asked, recipe="everything-exact")
    with progress_bar(True) as bars:
        model = asked.operate(asked.load(bars), asked.chosen())
        recipe = bound_of(model).surgery.recipe
        (target / "labels").mkdir(parents=True, exist_ok=True)
        if pictures:
            summary, shown = _pictures(model, files, target, compare, annotations, bars)
        else:
            summary = _video(model, path, target, every, max_objects, max_frames, bars)
    summary = {"model": asked.model, "source": source, "recipe": recipe.metadata.name if recipe else None, **summary}
    _write(target / "summary.json", summary)
    if compare:
        write_segments(target / "report.html", summary, shown)
    if as_json:
        print_json(summary)
    else:
        out.print(f"{counted(summary['objects'], 'object')} in {counted(summary['frames'], summary['unit'])}; {target}")
        if "truth" in summary:
            scores = {**summary["truth"]}
            of = f"{counted(scores.pop('objects'), 'annotated object')} in {counted(scores.pop('pictures'), 'picture')}"
            out.print(", ".join(f"{name.upper()} {value:.3f}" for name, value in scores.items()) + f" of {of}")


def _files(path: Path) -> list[Path]:
    """The picture, or those of a folder."""
    if path.suffix.lower() in KINDS:
        return [path]
    files = sorted(each for each in path.iterdir() if each.suffix.lower() in KINDS)
    if not files:
        raise PictureError(f"{path}: no JPEG or PNG picture in this folder")
    return files


def _pictures(
    model: Any, files: Sequence[Path], target: Path, compare: bool, annotations: Annotations | None, bars: Bars
) -> tuple[dict[str, Any], list[tuple[str, str]]]:
    """What is written to summary.json, and overlays of both for the page."""
    rows: list[dict[str, Any]] = []
    shown = []
    for kind in ("masks", "overlay"):
        (target / kind).mkdir(exist_ok=True)
    with bars.stage("segmenting", len(files)) as step:
        for file in files:
            image = read_picture(file)
            began = time.perf_counter()
            found = found_in(model, image)
            seconds = time.perf_counter() - began
            labels = label_map(found)
            write_label_png(target / "labels" / f"{file.stem}.png", labels)
            records = coco_records(found, file.stem)
            _write(target / "masks" / f"{file.stem}.json", records)
            if annotations is not None:
                annotations.add(file.stem, records)
            overlay = Image.fromarray(draw_masks(image, labels))
            overlay.save(target / "overlay" / f"{file.stem}.png")
            row: dict[str, Any] = {"name": file.stem, "masks": len(found.masks), "prompts": bound_of(model).prompts,
                                   "seconds": seconds}  # fmt: skip
            if compare:
                stock, prompts = stock_found_in(model, image)
                beside = Image.fromarray(draw_masks(image, label_map(stock)))
                shown.append((encoded(overlay), encoded(beside)))
                ious = mask_ious(found.masks.cpu().numpy(), stock.masks.cpu().numpy())
                row |= {"stock": {"masks": len(stock.masks), "prompts": prompts},
                        "recall": recall(ious, 0.5) if len(stock.masks) else None}  # fmt: skip
            rows.append(row)
            step()
    summary = {"unit": "picture", "frames": len(rows), "objects": sum(row["masks"] for row in rows), "pictures": rows}
    if annotations is not None:
        summary["truth"] = annotations.average_recalls()
    return summary, shown


def _video(
    model: Any, path: Path, target: Path, every: int, most: int, max_frames: int | None, bars: Bars
) -> dict[str, Any]:
    video = open_video(path)
    total = min(filter(None, (video.num_frames, max_frames)), default=None)
    rows, objects = [], 0
    with bars.stage("tracking", total) as step, VideoWriter(target / "overlay.mp4", video.fps or 24.0) as overlay:
        for each in islice(track_everything(model, video, every=every, max_objects=most), max_frames):
            write_label_png(target / "labels" / f"{video.name_of(each.index)}.png", each.labels)
            overlay.write(draw_ids(draw_masks(each.frame, each.labels), each.labels))
            objects += len(each.new)
            rows.append({"frame": each.index, "new": each.new, "ended": each.ended, "alive": each.alive,
                         "seconds": each.seconds})  # fmt: skip
            step()
    return {"unit": "frame", "frames": len(rows), "objects": objects, "tracked": rows}


def label_map(found: Found) -> Labels:
    """uint8 [H, W]: objects that do not overlap, numbered from the best on; 255 at most."""
    size = (int(found.masks.shape[1]), int(found.masks.shape[2]))
    labels = np.zeros(size, dtype=np.uint8)
    for number, mask in enumerate(apart(found, np.zeros(size, dtype=bool))[:MAX_ID], start=1):
        labels[mask] = number
    return labels


def coco_records(found: Found, name: str) -> list[dict[str, Any]]:
    """Every mask as a COCO result with uncompressed RLE, best first. bbox: x, y, width, height."""
    return [
        {"image_id": name, "category_id": 1, "segmentation": rle(mask), "area": int(mask.sum()),
         "bbox": [x0, y0, x1 - x0 + 1, y1 - y0 + 1], "score": score, "stability_score": stability}
        for mask, (x0, y0, x1, y1), score, stability in zip(
            found.masks.cpu().numpy(), found.boxes.tolist(), found.scores.tolist(), found.stability.tolist(),
            strict=True,
        )
    ]  # fmt: skip


def rle(mask: npt.NDArray[np.bool_]) -> dict[str, list[int]]:
    """COCO's uncompressed run lengths: column by column, the first run is of background."""
    return {"size": [*mask.shape], "counts": run_lengths(mask.T)}


def _write(path: Path, data: Any) -> None:
    write_whole(path, json.dumps(data) + "\n")

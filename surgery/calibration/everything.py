"""Fitting what proposes prompts, without labels: the model's own masks from a grid of points are the teacher."""

from __future__ import annotations

import itertools
import math
import os
import statistics
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from surgery.calibration.whole import as_it_was
from surgery.core.pictures import rgb
from surgery.engine import apply, require_surgery
from surgery.errors import CalibrationError, PictureError
from surgery.evaluation.bootstrap import mean_interval
from surgery.evaluation.recall import mask_ious, recall
from surgery.operations import SegmentEverything
from surgery.operations.segment_everything import Everything
from surgery.operations.segment_everything.decoding import found
from surgery.operations.segment_everything.filters import best_of_each, boxes_of
from surgery.operations.segment_everything.fit import Features, fit_head
from surgery.operations.segment_everything.head import features_of
from surgery.operations.segment_everything.teacher import largest_pieces
from surgery.pictures import bound_of, read_picture
from surgery.progress import Bars, Counter, progress_bar
from surgery.recipe import Recipe
from surgery.video import open_video
from surgery.video.folder import KINDS

PictureSource = Any
"""A picture (see `surgery.everything`), a file of one, or a video or a folder, of which some frames are taken."""
MIN_PICTURES = 8
HELD_OUT_EVERY = 4
LOGITS = (0.0, 0.5, 1.0, 2.0, 3.0, 4.0, 6.0, 8.5, 12.0)
"""Candidates for `coarse.logit`."""
MATCH = 0.5
"""IoU at which a mask of the teacher counts as found."""


@dataclass(frozen=True)
class EverythingReport:
    """What `fit_everything` found. pictures, held_out: how many were fitted on and measured on. drop: share of the
    teacher's masks missed on the held-out pictures, mean over them; interval: of that mean. promised: what the recipe
    allows. prompts, teacher_prompts: of a picture. masks, teacher_masks: the same. chosen: values that were set."""

    pictures: int
    held_out: int
    drop: float
    interval: tuple[float, float] | None
    promised: float
    prompts: float
    teacher_prompts: int
    masks: float
    teacher_masks: float
    chosen: dict[str, float]

    @property
    def kept(self) -> bool:
        """Whether the promise is kept."""
        return self.drop <= self.promised

    def as_dict(self) -> dict[str, Any]:
        """Plain data."""
        return {**asdict(self), "kept": self.kept}


@dataclass(frozen=True, eq=False)
class _Taught:
    """One picture and what the teacher says of it. boxes: [n, 4] on the model's input. masks: bool [n, H, W]."""

    image: npt.NDArray[np.uint8]
    features: Features
    boxes: Tensor
    masks: npt.NDArray[np.bool_]


def fit_everything(
    model: Any, pictures: Iterable[PictureSource] | str | Path, recipe: str | Path | Recipe = "everything", *,
    steps: int = 600, every: int = 12, most: int = 400, seed: int = 0, progress: bool = True,
) -> EverythingReport:  # fmt: skip
    """Fit the proposal head (`prompts: boxes`) or choose the threshold (`prompts: hierarchical`), without a label.

    The teacher is the model itself: its masks from the recipe's whole grid, at the recipe's filters. Every fourth
    picture takes no part in fitting; there the promise is measured.

    Args:
        model: stock or under surgery, of video or of pictures; left under surgery with the recipe.
        pictures: at least eight, or a folder of pictures; videos and folders of frames in a list are taken too.
        recipe: with `segment_everything`.
        steps: of fitting the head.
        every: of a video's frames one in so many is taken.
        most: pictures at most.
        seed: of the head's first weights.
        progress: show on stderr how far it is.

    Raises:
        CalibrationError: too few pictures, a teacher without masks, a loss that is not finite, or a promise
            (`max_recall_drop`) that is not kept.
        PictureError, VideoError: a source that cannot be read.
        and whatever `sparsify` raises. After any of these the model is as it was.
    """
    chosen = Recipe.load(recipe)
    settings = chosen.find(SegmentEverything)
    if settings is None or settings.prompts == "grid" or settings.boxes.proposer == "hub":
        raise CalibrationError(
            f"recipe {chosen.metadata.name!r} has nothing to fit: expected segment_everything with prompts boxes "
            "(proposer head) or hierarchical"
        )
    with as_it_was(model), progress_bar(progress) as bars:
        apply(model, chosen)
        taught = _lessons(model, itertools.islice(pictures_of(pictures, every), most), settings, bars)
        held = taught[HELD_OUT_EVERY - 1 :: HELD_OUT_EVERY]
        fit_on = [each for each in taught if each not in held]
        values: dict[str, float] = {}
        if settings.prompts == "boxes":
            _fit(model, fit_on, steps, seed, bars)
        else:
            values = _threshold(model, chosen, fit_on, settings.max_recall_drop, bars)
        measured = _measured(model, held, Counter(bars, "measuring", len(held)))
        drops, prompts, masks = zip(*measured, strict=True)
        report = EverythingReport(
            len(fit_on), len(held), statistics.fmean(drops), mean_interval(drops), settings.max_recall_drop,
            statistics.fmean(prompts), settings.points**2, statistics.fmean(masks),
            statistics.fmean(len(each.masks) for each in held), values,
        )  # fmt: skip
        if not report.kept:
            raise CalibrationError(
                f"the promise is not kept: {report.drop:.3f} of the grid's masks are missed on {report.held_out} "
                f"held-out pictures, promised {report.promised:g}; give more pictures, more prompts "
                "(everything.boxes.max_prompts, residual_points), or loosen everything.max_recall_drop"
            )
    return report


@torch.no_grad()
def _lessons(
    model: Any, pictures: Iterable[npt.NDArray[np.uint8]], settings: SegmentEverything, bars: Bars
) -> list[_Taught]:
    images = list(pictures)
    if len(images) < MIN_PICTURES:
        raise CalibrationError(f"{len(images)} pictures; expected {MIN_PICTURES} or more")
    teacher = Everything(settings.model_copy(update={"prompts": "grid", "folded": True}), require_surgery(model))
    driver, side, nms = teacher.driver(), teacher.surgery.host.image_size(), settings.filters.nms
    taught = []
    count = Counter(bars, "looking", len(images))
    for image in images:
        picture = driver.encode(image)
        kept = teacher.candidates(driver, picture, image)
        pieces = largest_pieces(kept.logits[best_of_each(kept.boxes, kept.worth, nms)] > 0)
        boxes = boxes_of(pieces).float() + torch.tensor([0, 0, 1, 1], device=pieces.device)
        boxes = boxes[pieces.flatten(1).any(1)] * (side / pieces.shape[-1])
        features = tuple(level.cpu() for level in features_of(picture))
        masks = found(kept, picture.size, nms, kept.worth).masks.cpu().numpy()
        taught.append(_Taught(image, features, boxes.cpu(), masks))  # type: ignore[arg-type]
        count()
    if not any(len(each.boxes) for each in taught):
        filters = settings.filters.of(driver.filters)
        raise CalibrationError(
            f"the model finds no mask in any of {len(images)} pictures at predicted IoU {filters.iou:g} and stability "
            f"{filters.stability:g}; lower everything.filters.iou and everything.filters.stability"
        )
    return taught


def _fit(model: Any, fit_on: Sequence[_Taught], steps: int, seed: int, bars: Bars) -> None:
    head = bound_of(model).head
    assert head is not None
    count = Counter(bars, "fitting", steps)

    def tick(loss: float) -> None:
        count()
        if not math.isfinite(loss):
            raise CalibrationError(f"the loss of the proposal head is {loss} after {count.done} steps")

    device = next(head.parameters()).device
    features = [tuple(level.to(device) for level in each.features) for each in fit_on]
    fit_head(head, features, [each.boxes.to(device) for each in fit_on], steps, seed=seed, tick=tick)  # type: ignore[arg-type]


def _measured(model: Any, held: Sequence[_Taught], step: Any = lambda: None) -> list[tuple[float, int, int]]:
    """Share of the teacher's masks missed, prompts and masks, of every picture where the teacher has some."""
    bound = bound_of(model)
    driver = bound.driver()
    rows = []
    for each in held:
        step()
        if len(each.masks):
            mine = bound.find(each.image, driver).masks.cpu().numpy()
            rows.append((1 - recall(mask_ious(mine, each.masks), MATCH), bound.prompts, len(mine)))
    if not rows:
        raise CalibrationError(f"the model finds no mask in any of {len(held)} held-out pictures; give more pictures")
    return rows


def _threshold(model: Any, recipe: Recipe, fit_on: Sequence[_Taught], promised: float, bars: Bars) -> dict[str, float]:
    """Leave the model under the lowest `coarse.logit`, which leaves the fewest points, that keeps the promise on the
    pictures it is chosen on; under the highest where none does. Returns what was set."""
    count = Counter(bars, "choosing", len(LOGITS))
    for logit in LOGITS:
        values = {"everything.coarse.logit": logit}
        apply(model, recipe.with_values(values))
        drops = [drop for drop, _, _ in _measured(model, fit_on)]
        count()
        if statistics.fmean(drops) <= promised:
            break
    count.finish()
    return values


def pictures_of(sources: Iterable[PictureSource] | str | Path, every: int) -> Iterator[npt.NDArray[np.uint8]]:
    """Pictures RGB [H, W, 3], see `fit_everything`."""
    if isinstance(sources, (str, os.PathLike)):
        folder = Path(sources)
        if not folder.is_dir():
            raise PictureError(f"{folder}: not a folder; expected one of pictures, or a list")
        sources = sorted(each for each in folder.iterdir() if each.suffix.lower() in KINDS)
    for source in sources:
        if not isinstance(source, (str, os.PathLike)):
            yield rgb(source)
        elif Path(source).suffix.lower() in KINDS:
            yield read_picture(source)
        else:
            yield from itertools.islice(open_video(source), 0, None, every)

"""What sparse masks lose against the dense model's.

A few frames from its own state decide. Whole clips, over which masks drift, may refute.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any, TypeVar, cast

import numpy as np

from surgery.adapters.record import Fidelity
from surgery.calibration.clips import CalibrationClip, Labels, PackedLabels
from surgery.engine import disabled, require_surgery
from surgery.errors import PromptError
from surgery.evaluation.bootstrap import mean_interval
from surgery.evaluation.drift_free import STEPS, drift_free
from surgery.evaluation.drift_free import summarise as summarise_runs
from surgery.evaluation.metrics import j_and_f
from surgery.tracking import track
from surgery.video import Video, labels_from_logits

T = TypeVar("T")
R = TypeVar("R")
Tick = Callable[[], None]
Each = Callable[[Callable[[Any, T, Tick], R], Any, Sequence[T], Tick], list[R]]
"""Calls a function, one of a module, with (model, item, step) for every item: here, or on models just like it."""
CLIPS = 3
"""Fewer clips do not say how much clips differ: then the interval is over their segments, and says so."""


@dataclass(eq=False)
class Reference:
    """A clip tracked by the dense model.

    labels: its masks. truth_score: its J&F against ground truth, or None. chance: 1 - J&F against these masks of the
    dense model itself on frames that differ by a grey level: how far masks drift apart for no reason.
    """

    clip: CalibrationClip
    labels: PackedLabels
    truth_score: float | None
    chance: float


@dataclass(frozen=True)
class ClipScore:
    """One clip under one setting.

    drop: 1 - J&F against the dense masks. segments: the same of parts of the clip. excess: drop less that of chance, or
    None; truth_drop: dense less sparse J&F against ground truth, or None. windows_kept, keys_kept: fractions over
    tracked frames, None where the recipe has no such operation. frames: tracked ones.
    """

    name: str
    drop: float
    segments: tuple[float, ...]
    windows_kept: float | None
    keys_kept: float | None
    frames: int
    excess: float | None = None
    truth_drop: float | None = None


def in_turn(function: Callable[[Any, T, Tick], R], model: Any, items: Sequence[T], step: Tick) -> list[R]:
    """One after the other, in this process."""
    return [function(model, item, step) for item in items]


def reference_of(model: Any, clip: CalibrationClip, step: Tick = lambda: None) -> Reference:
    """Track a clip with a model under surgery, dense.

    Raises:
        PromptError: the dense model loses every object at once: there is nothing to be faithful to.
    """
    with disabled(model):
        labels = _tracked(model, clip, step)
        again = _tracked(model, replace(clip, video=cast(Video, _Grainy(clip.video))), step)
    if not any(labels[index].any() for index in range(1, len(labels))):
        raise PromptError(f"{clip.name}: the dense model finds no object on any frame after the prompt")
    return Reference(clip, labels, _against_truth(clip, labels), 1.0 - _score(clip, again, labels))


def drift_of(model: Any, clip: CalibrationClip, step: Tick = lambda: None) -> ClipScore:
    """Runs from the dense model's own state, see `drift_free`, of the objects on the first prompted frame."""
    depth = min(max(STEPS), clip.tracked - 1)
    prompts = [prompt for prompt in clip.prompts if prompt.frame == clip.start]
    found = []
    for each in drift_free(model, clip.video, prompts, (depth,)):
        found.append(each)
        for _ in range(2 * depth):
            step()
    shares = summarise_runs(found)[0].kept
    losses = tuple(1.0 - each.masks for each in found)
    return ClipScore(
        clip.name, statistics.fmean(losses), losses, shares.get("windows"), shares.get("keys"), len(found) * depth
    )


def score_clip(model: Any, reference: Reference, step: Tick = lambda: None) -> ClipScore:
    """Track the clip of `reference` with the model as it is set now, and compare."""
    clip = reference.clip
    found = _tracked(model, clip, step)
    stats, truth = require_surgery(model).stats, _against_truth(clip, found)
    assert stats is not None
    drop = 1.0 - _score(clip, found, reference.labels)
    return ClipScore(
        name=clip.name,
        drop=drop,
        segments=(drop,),
        excess=drop - reference.chance,
        truth_drop=None if truth is None or reference.truth_score is None else reference.truth_score - truth,
        windows_kept=stats.fraction("windows"),
        keys_kept=stats.fraction("keys"),
        frames=stats.frames,
    )


def _tracked(model: Any, clip: CalibrationClip, step: Tick) -> PackedLabels:
    def labels() -> Iterator[Labels]:
        for result in track(model, clip.video, clip.prompts):
            yield labels_from_logits(result.logits)
            step()

    return PackedLabels(labels())


def _against_truth(clip: CalibrationClip, labels: PackedLabels) -> float | None:
    return None if clip.truth is None else _score(clip, labels, clip.truth, clip.start)


class _Grainy:
    """A video whose frames differ from another's by at most one grey level, the same way every time."""

    def __init__(self, video: Video) -> None:
        self._video = video

    def __getattr__(self, name: str) -> Any:
        return getattr(self._video, name)

    def __iter__(self) -> Iterator[Any]:
        draw = np.random.default_rng(0)
        for frame in self._video:
            grain = draw.integers(-1, 2, frame.shape, dtype=np.int16)
            yield (frame + grain).clip(0, 255).astype(np.uint8)


def summarise(scores: Sequence[ClipScore], reference: str, seed: int = 0) -> Fidelity | None:
    """Mean, interval and worst clip; None where a clip has no such score.

    The interval is over clips; of fewer than three over their segments, as far as they have any.

    Args:
        reference: "dense state" for scores of `drift_of`, "dense masks", "chance" or "ground truth" for those of
            `score_clip`.
    """
    field = {"chance": "excess", "ground truth": "truth_drop"}.get(reference, "drop")
    drops = [(value, score.name) for score in scores if (value := getattr(score, field)) is not None]
    if len(drops) < len(scores):
        return None
    worst, name = max(drops)
    values = [drop for drop, _ in drops]
    parts = [part for score in scores for part in score.segments] if field == "drop" else []
    few = len(values) < CLIPS and len(parts) > len(values)
    return Fidelity(
        reference=reference,  # type: ignore[arg-type]
        drop=statistics.fmean(parts if few else values),
        interval=mean_interval(parts if few else values, seed=seed),
        worst_drop=worst,
        worst_clip=name,
        over="segments" if few else "clips",
    )


def _score(
    clip: CalibrationClip, guess: PackedLabels, wanted: Sequence[Labels] | PackedLabels, offset: int = 0
) -> float:
    """Mean J&F over objects, and over the frames after each object's prompt. offset: of the first guess in `wanted`."""
    values: dict[int, list[float]] = {}
    since = {prompt.obj_id: prompt.frame for prompt in reversed(clip.prompts)}
    for index in range(len(guess)):
        mine, theirs = guess[index], wanted[index + offset]
        for obj_id, first in since.items():
            if clip.start + index > first:
                pair = np.asarray(mine == obj_id), np.asarray(theirs == obj_id)
                values.setdefault(obj_id, []).append(j_and_f(*pair))
    return statistics.fmean(statistics.fmean(each) for each in values.values())

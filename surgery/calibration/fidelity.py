"""What sparse masks lose: J&F against the dense model's own masks, and against ground truth where there is some."""

from __future__ import annotations

import statistics
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from surgery.adapters.record import Fidelity
from surgery.calibration.clips import CalibrationClip, Labels, PackedLabels
from surgery.engine import disabled, require_surgery
from surgery.errors import PromptError
from surgery.evaluation.bootstrap import mean_interval
from surgery.evaluation.metrics import boundary_f, region_j
from surgery.tracking import track
from surgery.video import labels_from_logits


@dataclass(eq=False)
class Reference:
    """A clip tracked by the dense model. labels: its masks. truth_score: its J&F against ground truth, or None."""

    clip: CalibrationClip
    labels: PackedLabels
    truth_score: float | None


@dataclass(frozen=True)
class ClipScore:
    """One clip under one setting. drop: 1 - J&F against the dense masks. truth_drop: dense less sparse J&F against
    ground truth, or None. windows_kept, keys_kept: fractions over tracked frames, None where the recipe has no such
    operation. frames: tracked ones.
    """

    name: str
    drop: float
    truth_drop: float | None
    windows_kept: float | None
    keys_kept: float | None
    frames: int


def reference_of(model: Any, clip: CalibrationClip, step: Callable[[], None] = lambda: None) -> Reference:
    """Track a clip with a model under surgery, dense.

    Raises:
        PromptError: the dense model loses every object at once: there is nothing to be faithful to.
    """
    labels = PackedLabels()
    with disabled(model):
        for result in track(model, clip.video, clip.prompts):
            labels.append(labels_from_logits(result.logits))
            step()
    start = min(prompt.frame for prompt in clip.prompts)
    if not any(labels[index].any() for index in range(1, len(labels))):
        raise PromptError(f"{clip.name}: the dense model finds no object on any frame after the prompt")
    truth = None
    if clip.truth is not None:
        truth = _score(clip, lambda index: labels[index], lambda index: clip.truth[start + index], len(labels))  # type: ignore[index]
    return Reference(clip, labels, truth)


def score_clip(model: Any, reference: Reference, step: Callable[[], None] = lambda: None) -> ClipScore:
    """Track the clip of `reference` with the model as it is set now, and compare."""
    clip = reference.clip
    found = PackedLabels()
    for result in track(model, clip.video, clip.prompts):
        found.append(labels_from_logits(result.logits))
        step()
    stats = require_surgery(model).stats
    assert stats is not None
    start = min(prompt.frame for prompt in clip.prompts)
    drop = 1.0 - _score(clip, lambda index: found[index], lambda index: reference.labels[index], len(found))
    truth_drop = None
    if reference.truth_score is not None and clip.truth is not None:
        truth = clip.truth
        truth_drop = reference.truth_score - _score(
            clip, lambda index: found[index], lambda index: truth[start + index], len(found)
        )
    return ClipScore(
        clip.name,
        drop,
        truth_drop,
        stats.fraction("windows"),
        stats.fraction("keys"),
        stats.frames,
    )


def summarise(scores: list[ClipScore], seed: int = 0) -> tuple[Fidelity, Fidelity | None]:
    """Mean, interval and worst clip, against dense masks and, where every clip has it, against ground truth."""
    dense = _summary("dense masks", [(score.drop, score.name) for score in scores], seed)
    truths = [(score.truth_drop, score.name) for score in scores if score.truth_drop is not None]
    return dense, _summary("ground truth", truths, seed) if len(truths) == len(scores) else None


def _summary(reference: Any, drops: list[tuple[float, str]], seed: int) -> Fidelity:
    worst, name = max(drops)
    values = [drop for drop, _ in drops]
    return Fidelity(
        reference=reference,
        drop=statistics.fmean(values),
        interval=mean_interval(values, seed=seed),
        worst_drop=worst,
        worst_clip=name,
    )


def _score(
    clip: CalibrationClip, guess: Callable[[int], Labels], wanted: Callable[[int], Labels], frames: int
) -> float:
    """Mean J&F over objects, and over the frames after each object's prompt."""
    values: dict[int, list[float]] = {}
    start = min(prompt.frame for prompt in clip.prompts)
    since = {prompt.obj_id: prompt.frame for prompt in reversed(clip.prompts)}
    for index in range(frames):
        mine, theirs = guess(index), wanted(index)
        for obj_id, first in since.items():
            if start + index > first:
                pair = np.asarray(mine == obj_id), np.asarray(theirs == obj_id)
                values.setdefault(obj_id, []).append((region_j(*pair) + boundary_f(*pair)) / 2)
    return statistics.fmean(statistics.fmean(each) for each in values.values())

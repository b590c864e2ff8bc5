"""What sparse masks lose: J&F against the dense model's own masks, and against ground truth where there is some."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from surgery.adapters.record import Fidelity
from surgery.calibration.clips import CalibrationClip, Labels, PackedLabels
from surgery.engine import disabled, require_surgery
from surgery.errors import PromptError
from surgery.evaluation.bootstrap import mean_interval
from surgery.evaluation.metrics import j_and_f
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
    with disabled(model):
        labels = _tracked(model, clip, step)
    if not any(labels[index].any() for index in range(1, len(labels))):
        raise PromptError(f"{clip.name}: the dense model finds no object on any frame after the prompt")
    return Reference(clip, labels, _against_truth(clip, labels))


def score_clip(model: Any, reference: Reference, step: Callable[[], None] = lambda: None) -> ClipScore:
    """Track the clip of `reference` with the model as it is set now, and compare."""
    clip = reference.clip
    found = _tracked(model, clip, step)
    stats, truth = require_surgery(model).stats, _against_truth(clip, found)
    assert stats is not None
    return ClipScore(
        name=clip.name,
        drop=1.0 - _score(clip, found, reference.labels),
        truth_drop=None if truth is None or reference.truth_score is None else reference.truth_score - truth,
        windows_kept=stats.fraction("windows"),
        keys_kept=stats.fraction("keys"),
        frames=stats.frames,
    )


def _tracked(model: Any, clip: CalibrationClip, step: Callable[[], None]) -> PackedLabels:
    labels = PackedLabels()
    for result in track(model, clip.video, clip.prompts):
        labels.append(labels_from_logits(result.logits))
        step()
    return labels


def _against_truth(clip: CalibrationClip, labels: PackedLabels) -> float | None:
    return None if clip.truth is None else _score(clip, labels, clip.truth, clip.start)


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

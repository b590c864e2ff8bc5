"""The demo run: the embedded model, stock and under surgery, side by side on synthetic clips with known masks."""

from __future__ import annotations

import statistics
from collections import Counter, deque
from collections.abc import Callable, Iterable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from surgery.adapters import read_adapter
from surgery.adapters.shipped import demo_adapter
from surgery.api import Status, status
from surgery.demo.clips import Clip
from surgery.evaluation import boundary_f, region_j
from surgery.evaluation.trace import Trace
from surgery.recipe import Recipe
from surgery.tracking import TrackedFrame, track, windows_drawn
from surgery.video import VideoWriter, draw_masks, labels_from_logits, open_video, with_legend
from surgery.video.masks import Labels
from surgery.video.prompts import prompt_for
from surgery.video.source import Frame

ABSENT = -1000.0
"""Hosts set every mask logit to -1024 when the object score is not positive; interpolation keeps a constant map."""

FPS = 12.0
"""Frames per second at which a clip is shown."""

CAPTION = "left: stock; right: under surgery; dark: windows not computed"


@dataclass
class Score:
    """One model's result over all clips: J and F per object, milliseconds per tracked frame.

    presence: per object and frame, whether the sign of the object score was right. absences: the same, only where the
    object was out of sight.
    """

    j: list[float] = field(default_factory=list)
    f: list[float] = field(default_factory=list)
    presence: list[bool] = field(default_factory=list)
    absences: list[bool] = field(default_factory=list)
    ms: list[float] = field(default_factory=list)
    windows: list[float] = field(default_factory=list)
    keys: list[float] = field(default_factory=list)

    def add(self, clip: Clip, found: Sequence[TrackedFrame], state: Status) -> None:
        """Add a clip: the mean over tracked frames (the prompted first one excluded), per object, labels disjoint."""
        tracked = found[1:]
        labels = [labels_from_logits(one.logits) for one in tracked]
        for label in clip.objects:
            pairs = [(guess == label, truth == label) for guess, truth in zip(labels, clip.labels[1:], strict=True)]
            self.j.append(statistics.fmean(region_j(*pair) for pair in pairs))
            self.f.append(statistics.fmean(boundary_f(*pair) for pair in pairs))
            there = clip.visible[1:, label - 1]
            right = np.array([one.logits[label].max() > ABSENT for one in tracked]) == there
            self.presence += right.tolist()
            self.absences += right[~there].tolist()
        self.ms += [1000 * one.seconds for one in tracked]
        self.windows += [] if state.windows_kept is None else [state.windows_kept]
        self.keys += [] if state.keys_kept is None else [state.keys_kept]

    def j_and_f(self) -> float:
        """Mean of J and F over objects."""
        return (statistics.fmean(self.j) + statistics.fmean(self.f)) / 2

    def as_dict(self) -> dict[str, float | None]:
        """Means over objects (J, F) and clips (fractions), median over frames (ms)."""
        return {
            "j_and_f": self.j_and_f(),
            "j": statistics.fmean(self.j),
            "f": statistics.fmean(self.f),
            "object_score_accuracy": statistics.fmean(self.presence),
            "absence_recall": statistics.fmean(self.absences) if self.absences else None,
            "ms_per_frame": statistics.median(self.ms),
            "windows_kept": statistics.fmean(self.windows) if self.windows else None,
            "keys_kept": statistics.fmean(self.keys) if self.keys else None,
        }


@dataclass
class DemoRun:
    """Scores by arm, and reasons for dense frames of the sparse one.

    Of clip one, where a video was asked for: its RGB frames [H, W, 3], and its trace.
    """

    scores: dict[str, Score]
    dense_frames: Counter[str] = field(default_factory=Counter)
    frames: list[Frame] = field(default_factory=list)
    trace: dict[str, Any] = field(default_factory=dict)

    def as_dict(self) -> dict[str, Any]:
        """The figures, as plain data."""
        return {**{arm: score.as_dict() for arm, score in self.scores.items()}, "dense_frames": dict(self.dense_frames)}


def run(
    models: dict[str, Any],
    clips: Iterable[Clip],
    prompt: str = "mask",
    step: Callable[[], None] = lambda: None,
    video: Path | None = None,
) -> DemoRun:
    """Track clips, prompted on their first frame, with all models, frame by frame in turn.

    Args:
        models: by arm, "dense" and "sparse" among them.
        prompt: "mask", "box" (tight) or "point" (one click, deepest inside the object).
        step: called after every frame of every model.
        video: where to write the first clip side by side, or None.
    """
    result = DemoRun({arm: Score() for arm in models})
    for number, clip in enumerate(clips):
        prompts = [prompt_for(prompt, clip.labels[0] == label, label) for label in clip.objects]
        runs = {arm: track(model, open_video(clip.frames), prompts) for arm, model in models.items()}
        found: dict[str, list[TrackedFrame]] = {arm: [] for arm in models}
        trace = Trace(clip.name, clip.frames.shape[1:3], FPS, [str(label) for label in clip.objects], models["sparse"])
        order = deque(models)
        with VideoWriter(video, FPS) if video is not None and number == 0 else nullcontext() as writer:
            for index in range(len(clip.frames)):
                for arm in order:
                    found[arm].append(next(runs[arm]))
                    step()
                # Another one first on every frame, so that no model always runs on a cache that another has warmed.
                order.rotate(-1)
                if writer is not None:
                    now = {arm: found[arm][-1] for arm in ("dense", "sparse")}
                    labels = {arm: labels_from_logits(one.logits) for arm, one in now.items()}
                    both = np.concatenate([_overlay(one, labels[arm]) for arm, one in now.items()], axis=1)
                    writer.write(with_legend(both, [], set(), CAPTION))
                    masks = {arm: {str(label): labels[arm] == label for label in clip.objects} for arm in now}
                    trace.add(index, f"{index:05d}", masks, now, index == 0)
        if writer is not None:
            result.frames, result.trace = list(clip.frames), trace.data
        for arm, model in models.items():
            result.scores[arm].add(clip, found[arm], status(model))
        result.dense_frames.update(status(models["sparse"]).dense_frames or {})
    return result


def calibrated(recipe: str | Path, overrides: Sequence[str] = ()) -> tuple[Recipe, Path | None]:
    """A recipe by name or path and the adapter that ships for it; a calibrated recipe is the adapter's own.

    Raises:
        RecipeError, AdapterError: either cannot be read.
    """
    folder = demo_adapter(str(recipe))
    found = read_adapter(folder).recipe if folder is not None else Recipe.load(recipe)
    return found.with_overrides(overrides), folder


def _overlay(result: TrackedFrame, labels: Labels) -> Frame:
    """Masks over the frame, enlarged, with windows that were not computed darkened."""
    scale = max(1, 512 // result.frame.shape[0])
    frame, labels = (each.repeat(scale, 0).repeat(scale, 1) for each in (result.frame, labels))
    return draw_masks(frame if result.record is None else windows_drawn(frame, result.record), labels)

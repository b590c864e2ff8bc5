"""The demo run: the embedded model, stock and under surgery, side by side on synthetic clips with known masks."""

from __future__ import annotations

import copy
import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from surgery.demo.clips import HELD_OUT, Clip, make_clip
from surgery.errors import PromptError, nearest
from surgery.evaluation import boundary_f, region_j
from surgery.recipe import Recipe
from surgery.video.rgb import Frame

PROMPTS = ("mask", "box", "point")
ABSENT = -1000.0
"""Hosts set every mask logit to -1024 when the object score is not positive; interpolation keeps a constant map."""

FPS = 12.0
"""Frames per second at which a clip is shown."""

CAPTIONS = ("stock", "under surgery")


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
    """Scores of the stock model, the sparse one and further recipes, and reasons for dense frames.

    Of clip one, where a video was asked for: four pictures of it, its RGB frames [H, W, 3], and its trace.
    """

    dense: Score
    sparse: Score
    dense_frames: dict[str, int]
    pictures: list[Frame]
    also: list[Score] = field(default_factory=list)
    frames: list[Frame] = field(default_factory=list)
    trace: dict[str, Any] = field(default_factory=dict)


def run(
    model: Any,
    recipe: Any,
    clips: int,
    frames: int,
    difficulty: str,
    seed: int,
    prompt: str,
    video: Path | None,
    step: Callable[[], None],
    adapter: Path | None = None,
    also: Sequence[Any] = (),
) -> DemoRun:
    """Track `clips` held-out clips, prompted on their first frame, with all models, frame by frame in turn.

    Args:
        model: a stock video model of either host; it is not changed.
        recipe: recipe or name.
        clips, frames, difficulty: see `surgery.demo.clips.make_clip`.
        seed: the first clip is held-out clip `seed`, never trained on.
        prompt: "mask", "box" (tight) or "point" (one click, deepest inside the object).
        video: where to write the first clip side by side, or None.
        step: called after every frame of every model.
        adapter: of `recipe`, or None for an untrained shortcut. also: recipes to run besides, without adapter.
    """
    from surgery import sparsify, status
    from surgery.evaluation.trace import Trace
    from surgery.tracking import track
    from surgery.video import VideoWriter, labels_from_logits, open_video, side_by_side

    models = [model, sparsify(copy.deepcopy(model), recipe, adapter=adapter)]
    models += [sparsify(copy.deepcopy(model), other) for other in also]
    result = DemoRun(Score(), Score(), {}, [], [Score() for _ in also])
    scores = [result.dense, result.sparse, *result.also]
    for number in range(clips):
        clip = make_clip(HELD_OUT + seed + number, frames, difficulty=difficulty)  # type: ignore[arg-type]
        prompts = [prompt_for(prompt, clip.labels[0] == label, label) for label in range(1, clip.visible.shape[1] + 1)]
        runs = [track(which, open_video(clip.frames), prompts) for which in models]
        guesses: list[list[Any]] = [[] for _ in models]
        writer = VideoWriter(video, FPS) if video is not None and number == 0 else None
        names = {label: str(label) for label in range(1, clip.visible.shape[1] + 1)}
        trace = Trace(clip.name, clip.frames.shape[1:3], FPS, list(names.values()), models[1])
        shown = []
        for index in range(frames):
            now: list[Any] = [None] * len(models)
            # Another one first on every frame, so that no model always runs on a cache that another has warmed.
            for which in ((index + offset) % len(models) for offset in range(len(models))):
                now[which] = next(runs[which])
                guesses[which].append(now[which].logits)
                if index:
                    scores[which].ms.append(1000 * now[which].seconds)
                step()
            if writer is not None:
                shown.append(side_by_side(_overlay(now[0]), _overlay(now[1]), CAPTIONS))
                pair = {"dense": now[0], "sparse": now[1]}
                labels = {arm: labels_from_logits(found.logits) for arm, found in pair.items()}
                masks = {arm: {name: found == label for label, name in names.items()} for arm, found in labels.items()}
                trace.add(index, f"{index:05d}", masks, pair, index == 0)
        if writer is not None:
            with writer:
                for picture in shown:
                    writer.write(picture)
            result.frames, result.trace = list(clip.frames), trace.result()
            result.pictures = [shown[index] for index in np.linspace(1, frames - 1, 4).astype(int)]
        for which, (score, found) in enumerate(zip(scores, guesses, strict=True)):
            _score(score, clip, found)
            state = status(models[which])
            if state.windows_kept is not None:
                score.windows.append(state.windows_kept)
            if state.keys_kept is not None:
                score.keys.append(state.keys_kept)
            for reason, count in (state.dense_frames or {}).items() if which == 1 else ():
                result.dense_frames[reason] = result.dense_frames.get(reason, 0) + count
    return result


def calibrated(recipe: str | Path, overrides: Sequence[str] = ()) -> tuple[Recipe, Path | None]:
    """A recipe by name or path and the adapter that ships for it; a calibrated recipe is the adapter's own.

    Raises:
        RecipeError, AdapterError: either cannot be read.
    """
    from surgery.adapters import read_adapter
    from surgery.adapters.shipped import demo_adapter

    folder = demo_adapter(str(recipe))
    found = read_adapter(folder).recipe if folder is not None else Recipe.load(recipe)
    return found.with_overrides(overrides), folder


def prompt_for(kind: str, mask: npt.NDArray[np.bool_], obj_id: int) -> Any:
    """A first-frame prompt of `kind` made from an object's exact mask. Raises PromptError for an unknown kind."""
    from surgery.video import BoxPrompt, MaskPrompt, PointPrompt, deepest_pixel

    if kind == "mask":
        return MaskPrompt(mask, obj_id)
    rows, columns = np.nonzero(mask)
    if kind == "box":
        return BoxPrompt(columns.min(), rows.min(), columns.max() + 1, rows.max() + 1, obj_id)
    if kind != "point":
        raise PromptError(f"prompt {kind!r}: expected one of {', '.join(PROMPTS)}{nearest(kind, PROMPTS)}")
    row, column = deepest_pixel(mask)
    return PointPrompt(((float(column), float(row)),), (1,), obj_id)


def _overlay(result: Any) -> Frame:
    """Masks over the frame, enlarged, with windows that were not computed darkened."""
    from surgery.tracking import windows_drawn
    from surgery.video import draw_masks, labels_from_logits

    scale = max(1, 512 // result.frame.shape[0])
    frame = result.frame.repeat(scale, 0).repeat(scale, 1)
    labels = labels_from_logits(result.logits).repeat(scale, 0).repeat(scale, 1)
    if result.record is not None:
        frame = windows_drawn(frame, result.record)
    return draw_masks(frame, labels)


def _score(score: Score, clip: Clip, found: list[dict[int, npt.NDArray[np.float32]]]) -> None:
    """Mean over tracked frames (the prompted first one excluded), per object, labels disjoint."""
    from surgery.video import labels_from_logits

    labels = [labels_from_logits(logits) for logits in found]
    for label in range(1, clip.visible.shape[1] + 1):
        pairs = [(labels[t] == label, clip.labels[t] == label) for t in range(1, len(labels))]
        score.j.append(statistics.fmean(region_j(guess, truth) for guess, truth in pairs))
        score.f.append(statistics.fmean(boundary_f(guess, truth) for guess, truth in pairs))
        for logits, (_, truth) in zip(found[1:], pairs, strict=True):
            there = bool(truth.any())
            right = bool(logits[label].max() > ABSENT) == there
            score.presence.append(right)
            if not there:
                score.absences.append(right)

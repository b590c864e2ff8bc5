"""Calibration from start to end: clips in, a fitted shortcut and a setting that keeps its promise out."""

from __future__ import annotations

import copy
import time
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
from torch import nn

from surgery.adapters import record_calibration
from surgery.adapters.record import CalibrationRecord
from surgery.calibration.clips import LAYOUTS, CalibrationClip, ClipSource, SkippedClip, gather_clips
from surgery.calibration.estimate import Estimate, Work
from surgery.calibration.fidelity import Reference, reference_of
from surgery.calibration.fit import FitSettings, feature_error, fit_shortcut
from surgery.calibration.prompts import automatic_prompts
from surgery.calibration.report import CalibrationReport
from surgery.calibration.search import SearchResult, predict, search, settings_of
from surgery.core.engine import reconfigure
from surgery.core.promise import CalibrationSettings
from surgery.describe import calibrated
from surgery.engine import apply, current_surgery, desparsify, disabled, require_surgery
from surgery.errors import CalibrationError, PromptError
from surgery.missing import require
from surgery.operations import CompileParts
from surgery.operations.window_routing.bound import WindowRouter, require_router
from surgery.progress import Bars, Counter, Step, progress_bar
from surgery.recipe import Recipe

MIN_CLIPS = 2
_MODULE = frozenset(vars(nn.Module()))


def calibrate(
    model: Any,
    clips: Iterable[ClipSource],
    recipe: str | Path | Recipe | None = None,
    *,
    held_out: Iterable[ClipSource] | None = None,
    fit: FitSettings | None = None,
    if_missed: Literal["raise", "nearest", "report"] = "raise",
    max_frames: int | None = None,
    runs: int = 8,
    seed: int = 0,
    checkpoint: str | Path | None = None,
    progress: bool = True,
    name: str = "",
) -> CalibrationReport:
    """Fit the shortcut and choose the thresholds of `model` on a few clips, without labels.

    One dense pass records what every candidate setting would have done; a few promising ones are run for real on clips
    that took no part in fitting, and the cheapest that keeps the recipe's promise is applied.

    Args:
        model: a SAM 2 video model of either host, stock or under surgery; left under surgery with the chosen setting.
        clips: at least two, see `gather_clips`; where nothing says what to track, `automatic_prompts` looks.
        recipe: whose `calibration` section holds the promise and the values to try. Default: the recipe the model is
            under, or "balanced".
        held_out: clips to choose and measure on; default: half of `clips`, drawn by `seed`, the rest is fitted on.
        fit: how the shortcut is fitted; default: the recipe's objective and steps.
        if_missed: when no setting keeps the promise: "raise", apply the most faithful one found ("nearest"), or leave
            the model as it was and only report.
        max_frames: use only so many frames of each clip.
        runs: settings run for real, at least 1.
        seed: of the clip split, the fit and the bootstrap; same seed, same result.
        checkpoint: file that makes the fit resumable, see `fit_shortcut`.
        progress: show on stderr how far each stage is, and early on how long all will take.
        name: of the model, for the report.

    Raises:
        CalibrationError: too few usable clips (the unusable are named), a loss that is not finite, or, with
            `if_missed="raise"`, a promise that no setting keeps (`error.report` holds what was found).
        and whatever `sparsify` raises. After any of these the model is as it was.
    """
    require("accelerate", *(["rich"] if progress else []))
    before = _Before(model)
    try:
        with progress_bar(progress) as bars:
            report = _calibrate(
                model, clips, recipe, held_out, fit, max_frames, max(1, runs), seed, checkpoint, bars, name
            )
    except BaseException:
        before.restore(model)
        raise
    report.applied = report.kept or if_missed == "nearest"
    if not report.applied:
        before.restore(model)
        if if_missed == "raise":
            raise PromiseError(report)
    return report


class PromiseError(CalibrationError):
    """No setting keeps the recipe's promise. report: what was found."""

    def __init__(self, report: CalibrationReport) -> None:
        found = report.record.against_dense
        super().__init__(
            f"no setting keeps the promise (mean drop {report.promise.max_drop:g}, worst clip "
            f"{report.promise.max_clip_drop:g}); the best found drops {found.drop:.4f}, on clip {found.worst_clip!r} "
            f"{found.worst_drop:.4f}, with {report.search.chosen.values or 'the values of the recipe'}. Ask for the "
            "nearest (if_missed='nearest'), loosen calibration.max_drop, or give more clips"
        )
        self.report = report


class _Before:
    """How a model was, and the way back."""

    def __init__(self, model: Any) -> None:
        surgery = current_surgery(model)
        self.recipe = surgery.recipe if surgery is not None else None
        self.adapter = surgery.adapter if surgery is not None else None
        self.learned = {}
        for bound in surgery.bound if surgery is not None else ():
            if bound.learned is not None:
                self.learned[type(bound)] = copy.deepcopy(bound.learned[2])

    def restore(self, model: Any) -> None:
        if self.recipe is None:
            desparsify(model)
            return
        apply(model, self.recipe)
        surgery = require_surgery(model)
        surgery.adapter = self.adapter
        for bound in surgery.bound:
            if bound.learned is not None:
                module, old = bound.learned[2], self.learned[type(bound)]
                module.load_state_dict(old.state_dict())
                # What calibration once measured of these weights hangs on the module.
                vars(module).update({name: value for name, value in vars(old).items() if name not in _MODULE})


def _calibrate(
    model: Any, sources: Iterable[ClipSource], recipe: str | Path | Recipe | None,
    held_out: Iterable[ClipSource] | None, fit: FitSettings | None, max_frames: int | None, runs: int, seed: int,
    checkpoint: str | Path | None, bars: Bars, name: str,
) -> CalibrationReport:  # fmt: skip
    surgery = current_surgery(model)
    chosen = Recipe.load(recipe) if recipe is not None else surgery.recipe if surgery is not None else None
    chosen = chosen if chosen is not None else Recipe.load("balanced")
    operation = chosen.find(CompileParts)
    known = surgery is not None and surgery.recipe == chosen
    # Every candidate would be compiled anew.
    chosen = chosen.without(CompileParts)
    promise = chosen.calibration or CalibrationSettings(max_drop=1.0, max_clip_drop=1.0)
    settings = settings_of(chosen)
    usable, skipped = gather_clips(sources, max_frames, bars)
    kept_apart: list[CalibrationClip] | None = None
    if held_out is not None:
        kept_apart, more = gather_clips(held_out, max_frames, bars)
        skipped += more
        twice = {clip.name for clip in usable} & {clip.name for clip in kept_apart}
        if twice:
            raise CalibrationError(f"clip {min(twice)!r} is given to fit on and to hold out; expected different clips")
    if surgery is not None and known:
        reconfigure(surgery, chosen)
    else:
        apply(model, chosen)
    clock, runs = _Clock(), min(runs, len(settings))
    with clock("prompts and dense masks"):
        usable = prompted(model, usable, skipped, bars)
        if kept_apart is None:
            usable, kept_apart = _split(usable, seed)
        else:
            kept_apart = prompted(model, kept_apart, skipped, bars)
        planned = _planned(model, fit, promise, seed)
        work = _work(usable, kept_apart, planned, runs)
        references = _references(model, kept_apart, skipped, bars, Estimate(work, bars.say))
    _require_enough(usable, references, skipped)
    result = _fitted(model, usable, references, planned, seed, checkpoint, bars, clock)
    surgery = require_surgery(model)
    with clock("records"):
        every = [*usable, *(reference.clip for reference in references)]
        predict(surgery, settings, every, Counter(bars, "records", sum(clip.tracked for clip in every)))
    with clock("runs"):
        frames = sum(reference.clip.tracked for reference in references)
        count = Counter(bars, f"real runs, at most {runs}", frames * runs)
        found = search(model, settings, references, promise, runs, count, seed)
        count.finish()
    applied = found.chosen.recipe if operation is None else found.chosen.recipe.with_operation(operation)
    applied = calibrated(applied, chosen.metadata)
    reconfigure(surgery, applied)
    record = _record(found, usable, promise, result, seed)
    if surgery.find(WindowRouter) is not None:
        record_calibration(model, record)
    return CalibrationReport(
        recipe=applied, promise=promise, kept=found.kept, applied=True, record=record, search=found,
        skipped=skipped, feature_error=result.errors, loss=result.loss, explained=result.explained,
        stages=result.stages, seconds=clock.seconds, model=name,
    )  # fmt: skip


class _Fit:
    """What is known of the fit."""

    def __init__(self) -> None:
        self.kind: Literal["identity", "closed form", "closed form and steps"] = "identity"
        self.steps = 0
        self.loss: list[tuple[int, float]] = []
        self.explained: float | None = None
        self.stages: list[float] = []
        self.errors: dict[str, float] = {}


@dataclass(frozen=True)
class _Plan:
    """How the shortcut will be fitted. settings: None when there is nothing to fit. learns: whether the shortcut itself
    has weights, beside those of the corrections."""

    settings: FitSettings | None = None
    learns: bool = False


def _planned(model: Any, fit: FitSettings | None, promise: CalibrationSettings, seed: int) -> _Plan:
    router = require_surgery(model).find(WindowRouter)
    if router is None or router.settings.windows == "all":
        return _Plan()
    learns = router.learns
    if not learns and router.shortcut.corrections is None:
        return _Plan()
    return _Plan(fit or FitSettings(objective=promise.objective, steps=promise.steps, seed=seed), learns)


def _work(clips: Sequence[CalibrationClip], held_out: Sequence[CalibrationClip], plan: _Plan, runs: int) -> Work:
    fitted, measured = (sum(clip.tracked for clip in each) for each in (clips, held_out))
    settings = plan.settings
    if settings is None:
        return Work(measured, fitted, 0, 0, runs)
    replayed = settings.steps * settings.accumulate * settings.segment if plan.learns else 0
    return Work(measured, fitted, 2 + (settings.steps > 0) if plan.learns else 0, replayed, runs)


def _fitted(
    model: Any, clips: Sequence[CalibrationClip], references: Sequence[Reference], plan: _Plan, seed: int,
    checkpoint: str | Path | None, step: Step, clock: _Clock,
) -> _Fit:  # fmt: skip
    """Fit the shortcut if there is one to fit, and measure its feature error on the held-out clips at each stage."""
    done, settings = _Fit(), plan.settings
    if settings is None:
        return done
    shortcut, learns = require_router(require_surgery(model)).shortcut, plan.learns
    held_out = [reference.clip for reference in references]

    def measured(label: str) -> None:
        if not learns:
            return
        with clock("feature error"):
            count = Counter(step, f"feature error, {label}", len(held_out))
            done.errors[label] = feature_error(model, held_out, segment=settings.segment, seed=seed, step=count)

    shortcut.reset_parameters()
    measured("identity")
    with clock("closed form"):
        first = fit_shortcut(model, clips, replace(settings, steps=0), step=step)
    done.explained, done.stages = first.explained, first.stages
    if first.explained is not None:
        done.kind = "closed form"
        measured("closed form")
    if settings.steps and learns:
        with clock("steps"):
            second = fit_shortcut(model, clips, settings, checkpoint=checkpoint, closed_form=False, step=step)
        done.kind, done.steps, done.loss = "closed form and steps", settings.steps, second.loss
        measured("closed form and steps")
    return done


def prompted(model: Any, clips: list[CalibrationClip], skipped: list[SkippedClip], step: Step) -> list[CalibrationClip]:
    """The clips in which there is something to track; of the others the reason goes to `skipped`."""
    bare = [clip for clip in clips if not clip.prompts]
    count = Counter(step, "looking for objects", len(bare))
    for clip in bare:
        try:
            with disabled(model):
                clip.prompts = automatic_prompts(model, clip.video)
        except PromptError as error:
            skipped.append(SkippedClip(clip.name, str(error)))
        count()
    return [clip for clip in clips if clip.prompts]


def _split(clips: list[CalibrationClip], seed: int) -> tuple[list[CalibrationClip], list[CalibrationClip]]:
    """Half to fit on, rounded up, half held out; each in the order given."""
    order = np.random.default_rng(seed).permutation(len(clips))
    apart = set(order[: len(clips) // 2].tolist())
    return [clip for n, clip in enumerate(clips) if n not in apart], [
        clip for n, clip in enumerate(clips) if n in apart
    ]


def _references(
    model: Any, clips: Sequence[CalibrationClip], skipped: list[SkippedClip], step: Step, estimate: Estimate
) -> list[Reference]:
    references = []
    count = Counter(step, "dense masks", sum(clip.tracked for clip in clips))

    def frame() -> None:
        count()
        estimate()

    for clip in clips:
        try:
            references.append(reference_of(model, clip, frame))
        except PromptError as error:
            skipped.append(SkippedClip(clip.name, str(error)))
    return references


def _require_enough(
    clips: Sequence[CalibrationClip], references: Sequence[Reference], skipped: list[SkippedClip]
) -> None:
    if clips and references and len(clips) + len(references) >= MIN_CLIPS:
        return
    reasons = "".join(f"\n  {clip}" for clip in skipped)
    raise CalibrationError(
        f"{len(clips)} usable clips to fit on and {len(references)} to measure on, expected at least one of each"
        + (f"; skipped {len(skipped)}:{reasons}\nWhat works: {LAYOUTS}" if skipped else "; give at least two clips")
    )


def _record(
    found: SearchResult,
    clips: Sequence[CalibrationClip],
    promise: CalibrationSettings,
    fit: _Fit,
    seed: int,
) -> CalibrationRecord:
    chosen = found.chosen
    assert chosen.against_dense is not None
    windows = [score.windows_kept for score in chosen.scores if score.windows_kept is not None]
    keys = [score.keys_kept for score in chosen.scores if score.keys_kept is not None]
    good = [setting for setting in found.settings if setting.keeps(promise)] or [chosen]
    ranges = {}
    for key, value in chosen.values.items():
        if isinstance(value, (int, float)) and not isinstance(value, bool):
            values = [float(setting.values[key]) for setting in good]
            ranges[key] = (min(values), max(values))
    return CalibrationRecord(
        fit=fit.kind,
        steps=fit.steps,
        fit_clips=tuple(clip.name for clip in clips) if fit.kind != "identity" else (),
        fit_frames=sum(clip.video.num_frames or 0 for clip in clips) if fit.kind != "identity" else 0,
        held_out_clips=tuple(score.name for score in chosen.scores),
        held_out_frames=sum(score.frames for score in chosen.scores),
        max_drop=promise.max_drop,
        max_clip_drop=promise.max_clip_drop,
        kept=found.kept,
        windows_kept=sum(windows) / len(windows) if windows else None,
        keys_kept=sum(keys) / len(keys) if keys else None,
        against_dense=chosen.against_dense,
        against_truth=chosen.against_truth,
        valid_range=ranges,
        seed=seed,
    )


class _Clock:
    """Wall time by phase."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}

    @contextmanager
    def __call__(self, phase: str) -> Iterator[None]:
        began = time.perf_counter()
        try:
            yield
        finally:
            self.seconds[phase] = self.seconds.get(phase, 0.0) + time.perf_counter() - began

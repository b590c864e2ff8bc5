"""Calibration from start to end: clips in, a fitted shortcut and a setting that keeps its promise out."""

from __future__ import annotations

import copy
import time
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal

import numpy as np
from torch import nn

from surgery.adapters import record_calibration
from surgery.adapters.record import CalibrationRecord
from surgery.calibration.clips import LAYOUTS, CalibrationClip, ClipSource, SkippedClip, gather_clips
from surgery.calibration.fidelity import Each, Reference, Tick, in_turn, reference_of
from surgery.calibration.fit import FitResult, fit_shortcut, fits
from surgery.calibration.prompts import automatic_prompts
from surgery.calibration.report import CalibrationReport
from surgery.calibration.search import SearchResult, Setting, predict, search, settings_of
from surgery.calibration.sensitivity import sensitivities, trials_of
from surgery.core.engine import reconfigure
from surgery.core.promise import CalibrationSettings
from surgery.describe import calibrated
from surgery.engine import apply, current_surgery, desparsify, disabled, require_surgery
from surgery.errors import CalibrationError, PromptError
from surgery.missing import require
from surgery.operations import CompileParts
from surgery.operations.window_routing.bound import WindowRouter
from surgery.progress import Counter, Step, progress_bar
from surgery.recipe import Recipe

_MODULE = frozenset(vars(nn.Module()))


def calibrate(
    model: Any,
    clips: Iterable[ClipSource],
    recipe: str | Path | Recipe | None = None,
    *,
    held_out: Iterable[ClipSource] | None = None,
    if_missed: Literal["raise", "nearest", "report"] = "raise",
    max_frames: int | None = None,
    runs: int = 8,
    seed: int = 0,
    progress: bool = True,
    name: str = "",
    each: Each[Any, Any] = in_turn,
) -> CalibrationReport:
    """Fit the shortcut and choose the thresholds of `model` on a few clips, without labels.

    One dense pass records what every candidate setting would have done; a few promising ones are run for real on clips
    that took no part in fitting, a few frames at a time from the dense model's own state, and the cheapest that keeps
    the recipe's promise is applied, unless whole clips refute it.

    Args:
        model: a SAM 2 video model of either host, stock or under surgery; left under surgery with the chosen setting.
        clips: at least two, see `gather_clips`; where nothing says what to track, `automatic_prompts` looks.
        recipe: whose `calibration` section holds the promise and the values to try. Default: the recipe the model is
            under, or "balanced".
        held_out: clips to choose and measure on; default: half of `clips`, drawn by `seed`, the rest is fitted on.
        if_missed: when no setting keeps the promise: "raise", apply the most faithful one found ("nearest"), or leave
            the model as it was and only report.
        max_frames: use only so many frames of each clip.
        runs: settings run for real, at least 1.
        seed: of the clip split and the bootstrap; same seed, same result.
        progress: show on stderr how far each stage is.
        name: of the model, for the report.
        each: runs the clips, see `surgery.jobs.clips_on`.

    Raises:
        CalibrationError: too few usable clips (the unusable are named), features that are not finite, or, with
            `if_missed="raise"`, a promise that no setting keeps (`error.report` holds what was found).
        and whatever `sparsify` raises. After any of these the model is as it was.
    """
    require("scipy")
    with as_it_was(model) as before, progress_bar(progress) as bars:
        given = Recipe.load(recipe if recipe is not None else before.recipe or "balanced")
        # Every candidate would be compiled anew.
        chosen = given.without(CompileParts)
        promise = chosen.calibration or CalibrationSettings(max_drop=1.0, max_clip_drop=1.0)
        settings_of(chosen)  # what is wrong with the search is known before any work
        usable, apart, skipped = _gathered(clips, held_out, max_frames, bars)
        if before.recipe == given:
            reconfigure(require_surgery(model), chosen)
        else:
            apply(model, chosen)
        surgery = require_surgery(model)
        seconds: dict[str, float] = {}
        with timed(seconds, "prompts and dense masks"):
            usable, apart = (prompted(model, some, skipped, bars) for some in (usable, apart))
            if held_out is None:
                usable, apart = _split(usable, seed)
            count = Counter(bars, "dense masks", 2 * sum(clip.tracked for clip in apart))
            seen = each(_reference, model, apart, count)
        skipped += [one for one in seen if isinstance(one, SkippedClip)]
        references = [one for one in seen if isinstance(one, Reference)]
        if not (usable and references):
            raise _too_few(len(usable), len(references), skipped)
        with timed(seconds, "closed form"):
            router = surgery.find(WindowRouter)
            fitted = router is not None and router.settings.windows != "all" and fits(router) != (None, None)
            result = fit_shortcut(model, usable, step=bars) if fitted else FitResult()
        held = [reference.clip for reference in references]
        drops: dict[str, float] = {}
        if trials := trials_of(model, chosen):
            with timed(seconds, "sensitivity"):
                count = Counter(bars, "one layer at a time", sum(map(len, trials.values())))
                chosen, drops = sensitivities(model, chosen, trials, held, count)
        settings = settings_of(chosen)
        with timed(seconds, "records"):
            every = [*usable, *held]
            predict(surgery, settings, every, Counter(bars, "records", sum(clip.tracked for clip in every)), drops)
        with timed(seconds, "runs"):
            runs = min(max(1, runs), len(settings))
            # Dense and sparse from its state; whole clips of what is chosen.
            count = Counter(bars, f"real runs, at most {runs}", sum(clip.tracked for clip in held) * (2 * runs + 1))
            found = search(model, settings, references, promise, runs, count, seed, each)
            count.finish()
        compiled = given.find(CompileParts)
        applied = found.chosen.recipe if compiled is None else found.chosen.recipe.with_operation(compiled)
        applied = calibrated(applied, chosen.metadata)
        reconfigure(surgery, applied)
        record = _record(found, usable if result.explained is not None else [], promise, seed)
        if router is not None:
            record_calibration(model, record)
        report = CalibrationReport(
            recipe=applied, promise=promise, kept=found.kept, applied=found.kept or if_missed == "nearest",
            record=record, search=found, skipped=skipped, explained=result.explained, sensitivity=drops,
            seconds=seconds, model=name,
        )  # fmt: skip
        if not report.applied:
            if if_missed == "raise":
                raise PromiseError(report)
            before.restore(model)
    return report


class PromiseError(CalibrationError):
    """No setting keeps the recipe's promise. report: what was found."""

    def __init__(self, report: CalibrationReport) -> None:
        found = report.record.from_state
        assert found is not None
        super().__init__(
            f"no setting keeps the promise (mean drop {report.promise.max_drop:g}, worst clip "
            f"{report.promise.max_clip_drop:g}); the best found drops {found.drop:.4f}, on clip {found.worst_clip!r} "
            f"{found.worst_drop:.4f}, with {report.search.chosen.values or 'the values of the recipe'}. Ask for the "
            "nearest (if_missed='nearest'), loosen calibration.max_drop, or give more clips"
        )
        self.report = report


class Before:
    """How a model was, and the way back."""

    def __init__(self, model: Any) -> None:
        self.recipe: Recipe | None = None
        surgery = current_surgery(model)
        if surgery is not None:
            self.recipe, self.adapter = surgery.recipe, surgery.adapter
            learned = {type(bound): bound.learned[2] for bound in surgery.bound if bound.learned is not None}
            self.learned = copy.deepcopy(learned)

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


@contextmanager
def as_it_was(model: Any) -> Iterator[Before]:
    """Put the model back as it was when the block fails."""
    before = Before(model)
    try:
        yield before
    except BaseException:
        before.restore(model)
        raise


def _gathered(
    clips: Iterable[ClipSource], held_out: Iterable[ClipSource] | None, max_frames: int | None, step: Step
) -> tuple[list[CalibrationClip], list[CalibrationClip], list[SkippedClip]]:
    """Clips to fit on, clips held out, and those of no use."""
    usable, skipped = gather_clips(clips, max_frames, step)
    if held_out is None:
        return usable, [], skipped
    apart, more = gather_clips(held_out, max_frames, step)
    twice = {clip.name for clip in usable} & {clip.name for clip in apart}
    if twice:
        raise CalibrationError(f"clip {min(twice)!r} is given to fit on and to hold out; expected different clips")
    return usable, apart, skipped + more


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
    order = np.random.default_rng(seed).permutation(len(clips)).tolist()
    half = len(clips) // 2
    return [clips[n] for n in sorted(order[half:])], [clips[n] for n in sorted(order[:half])]


def _reference(model: Any, clip: CalibrationClip, step: Tick) -> Reference | SkippedClip:
    try:
        return reference_of(model, clip, step)
    except PromptError as error:
        return SkippedClip(clip.name, str(error))


def _too_few(fitted: int, measured: int, skipped: list[SkippedClip]) -> CalibrationError:
    reasons = "".join(f"\n  {clip}" for clip in skipped)
    return CalibrationError(
        f"{fitted} usable clips to fit on and {measured} to measure on, expected at least one of each"
        + (f"; skipped {len(skipped)}:{reasons}\nWhat works: {LAYOUTS}" if skipped else "; give at least two clips")
    )


def valid_range(chosen: Setting, good: Sequence[Setting]) -> dict[str, tuple[float, float]]:
    """Least and largest value of every number that was searched, over `good`; of some settings it may be no number."""
    ranges = {}
    for key, value in chosen.values.items():
        if isinstance(value, (int, float)) and not isinstance(value, bool):
            values = [float(each) for setting in good if (each := setting.values[key]) is not None]
            ranges[key] = (min(values), max(values))
    return ranges


def _record(
    found: SearchResult, fitted: Sequence[CalibrationClip], promise: CalibrationSettings, seed: int
) -> CalibrationRecord:
    chosen = found.chosen
    assert chosen.against_dense is not None
    good = [setting for setting in found.settings if setting.keeps(promise)] or [chosen]
    return CalibrationRecord(
        fit="closed form" if fitted else "identity",
        steps=0,
        fit_clips=tuple(clip.name for clip in fitted),
        fit_frames=sum(clip.video.num_frames or 0 for clip in fitted),
        held_out_clips=tuple(score.name for score in chosen.whole),
        held_out_frames=sum(score.frames for score in chosen.whole),
        max_drop=promise.max_drop,
        max_clip_drop=promise.max_clip_drop,
        kept=found.kept,
        windows_kept=chosen.measured("windows_kept"),
        keys_kept=chosen.measured("keys_kept"),
        against_dense=chosen.against_dense,
        against_truth=chosen.against_truth,
        from_state=chosen.from_state,
        against_chance=chosen.against_chance,
        valid_range=valid_range(chosen, good),
        seed=seed,
    )


@contextmanager
def timed(seconds: dict[str, float], phase: str) -> Iterator[None]:
    """Put the wall time of the block into `seconds`."""
    began = time.perf_counter()
    yield
    seconds[phase] = time.perf_counter() - began

"""Choose the fastest setting that keeps a recipe's promise: score all candidates from records, run only a few."""

from __future__ import annotations

import itertools
import math
import statistics
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

from surgery.adapters.record import Fidelity
from surgery.bench.flops import FlopModel
from surgery.calibration.clips import CalibrationClip
from surgery.calibration.fidelity import ClipScore, Reference, score_clip, summarise
from surgery.calibration.observe import Candidate, Observer, observe
from surgery.core.parts import PARTS
from surgery.core.promise import CalibrationSettings
from surgery.engine import require_surgery
from surgery.errors import CalibrationError, RecipeError
from surgery.core.host import HostView
from surgery.operate import reconfigure
from surgery.operations import Precision, SparseMemoryRetrieval, SparseWindowRouting
from surgery.recipe import Recipe
from surgery.operations.memory_retrieval.saliency import kept_count

TIE = 1e-6
"""What memory encoder and mask decoder, which the FLOP model leaves out, weigh: they only break ties."""


@dataclass(eq=False)
class Setting:
    """One combination of the searched values.

    windows, keys: fractions predicted from the records. cost: predicted GFLOP of encoder and memory attention, as a
    share of the dense model's; halved: the part of it in half precision. risk_windows, risk_keys, risk_precision: what
    the records say is lost, each on its own scale. predicted_drop: from these risks, once real runs have said what they
    cost. scores: of a real run, empty when it was not run.
    """

    values: dict[str, Any]
    recipe: Recipe
    windows: float = 1.0
    keys: float = 1.0
    cost: float = 1.0
    halved: float = 0.0
    risk_windows: float = 0.0
    risk_keys: float = 0.0
    risk_precision: float = 0.0
    predicted_drop: float | None = None
    scores: list[ClipScore] = field(default_factory=list)
    against_dense: Fidelity | None = None
    against_truth: Fidelity | None = None

    @property
    def effort(self) -> float:
        """What settings are ranked by: their cost, a GFLOP in half precision counted as half a one."""
        return self.cost - self.halved / 2

    def keeps(self, promise: CalibrationSettings) -> bool:
        """Whether it was run and met the promise."""
        found = self.against_dense
        return found is not None and found.drop <= promise.max_drop and found.worst_drop <= promise.max_clip_drop


@dataclass
class SearchResult:
    """settings: every combination, least effort first. chosen: the one to use. kept: whether it meets the promise; if
    not, `chosen` is the most faithful one that was run.
    """

    settings: list[Setting]
    chosen: Setting
    kept: bool


def settings_of(recipe: Recipe) -> list[Setting]:
    """Every combination of `recipe.calibration.search`; the recipe itself when nothing is searched. Duplicates of one
    another, and combinations that do not validate together, are left out."""
    plan = recipe.calibration
    keys = list(plan.search) if plan is not None else []
    bare = recipe.model_copy(update={"calibration": None})
    found: list[Setting] = []
    seen: set[str] = set()
    for values in itertools.product(*(plan.search[key] for key in keys)) if plan is not None else [()]:
        chosen = dict(zip(keys, values, strict=True))
        try:
            candidate = bare.with_values(chosen).model_copy(update={"calibration": plan}) if chosen else recipe
        except RecipeError:
            continue  # every value is valid by itself (the recipe saw to that), but not with these others
        text = repr(candidate.operations)
        if text not in seen:
            seen.add(text)
            found.append(Setting(chosen, candidate))
    if not found:
        raise CalibrationError(f"recipe {recipe.metadata.name!r}: no combination of its calibration.search is valid")
    return found


def predict(
    view: HostView, settings: Sequence[Setting], clips: Iterable[CalibrationClip], step: Callable[[], None]
) -> None:
    """Fill in what one dense pass over the clips says about every setting. `step` is called after every frame."""
    routing, retrieval = view.binding.routing, view.binding.retrieval
    simulated: dict[str, Candidate] = {}
    pruned = [kept for setting in settings if (kept := setting.recipe.find(SparseMemoryRetrieval)) is not None]
    keeps = sorted({value for kept in pruned for value in (kept.keep, kept.keep_conditioning) if value < 1.0})
    if routing is not None and routing.windows == "object":
        for setting in settings:
            routed = setting.recipe.find(SparseWindowRouting)
            assert routed is not None
            simulated.setdefault(repr(routed), Candidate(routed))
    observer = Observer(view, list(simulated.values()), keeps, _precisions(settings))
    lengths = []
    if retrieval is not None and keeps:
        # Measured at any share below 1; the curve is taken from the whole saliency.
        view.binding.retrieval = retrieval.model_copy(update={"keep": 0.5, "keep_conditioning": 0.5})
    try:
        for clip in clips:
            lengths.append(clip.video.num_frames or 0)
            observe(view, observer, clip, step)
    finally:
        view.binding.retrieval = retrieval
    flops, bank = FlopModel(view), view.bank_size()
    for setting in settings:
        if simulated:
            candidate = simulated[repr(setting.recipe.find(SparseWindowRouting))]
            setting.windows = candidate.windows / max(1, candidate.frames)
            setting.risk_windows = candidate.risk / max(1, candidate.frames)
        kept = setting.recipe.find(SparseMemoryRetrieval)
        if kept is not None:
            setting.keys = statistics.fmean(keys_kept(kept, length, bank) for length in lengths)
            setting.risk_keys = _lost(observer, kept, bank)
        parts = flops.shares(setting.recipe, setting.windows, setting.keys)
        setting.cost = sum(parts.values())
        precision = setting.recipe.find(Precision)
        if precision is not None:
            half = half_parts(precision)
            setting.halved = sum(parts.get(name, TIE) for name in half)
            errors = [observer.errors.get((name, _bare(precision)), []) for name in half]
            setting.risk_precision = sum(statistics.fmean(each) for each in errors if each)
    settings_by_effort = sorted(settings, key=lambda setting: setting.effort)
    if isinstance(settings, list):
        settings[:] = settings_by_effort


def half_parts(precision: Precision) -> list[str]:
    """Parts that run in half precision."""
    return [name for name in PARTS if name not in precision.keep_fp32]


def _bare(precision: Precision) -> Precision:
    return precision.model_copy(update={"keep_fp32": ()})


def _precisions(settings: Sequence[Setting]) -> list[Precision]:
    """The precisions to measure: none when every setting has the same one, which then explains no difference."""
    found = [setting.recipe.find(Precision) for setting in settings]
    if all(each == found[0] for each in found):
        return []
    return list(dict.fromkeys(_bare(each) for each in found if each is not None))


def _lost(observer: Observer, retrieval: SparseMemoryRetrieval, bank: int) -> float:
    """Share of a full bank's attention, at its first read, that pruning drops; the newest frame is never pruned."""
    lost = 0.0
    for conditioning, keep, frames in ((False, retrieval.keep, bank - 2), (True, retrieval.keep_conditioning, 1)):
        held = observer.held.get((conditioning, keep))
        if keep < 1.0 and held:
            lost += frames * (1.0 - statistics.fmean(held))
    return lost / bank


def keys_kept(retrieval: SparseMemoryRetrieval, frames: int, bank: int, tokens: int = 4096) -> float:
    """Mean fraction of spatial keys read over a clip prompted on its first frame, one conditioning frame.

    bank: frames of a full memory bank. tokens: of a frame.
    """
    keep = kept_count(tokens, retrieval.keep) / tokens if retrieval.keep < 1.0 else 1.0
    total = []
    for index in range(1, max(2, frames)):
        tracked = min(index - 1, bank - 1)
        warm = not retrieval.warm_up or index - 2 >= bank - 2
        middle = max(0, tracked - 1)
        first = retrieval.keep_conditioning if warm and index > 1 else 1.0
        kept = first + min(1, tracked) + middle * (keep if warm else 1.0)
        total.append(kept / (1 + tracked))
    return statistics.fmean(total)


def search(
    model: Any, settings: list[Setting], references: Sequence[Reference], promise: CalibrationSettings, runs: int,
    step: Callable[[], None], seed: int = 0,
) -> SearchResult:  # fmt: skip
    """Run at most `runs` settings for real, guided by the records, and choose.

    Anchors come first, the setting with the fewest windows, the one with the fewest keys and the one that rounds most,
    where settings differ in these: they say how much J&F a unit of each risk costs. Then the Pareto front of effort
    against predicted drop is bisected for its cheapest member that meets the promise.
    """
    view = require_surgery(model)

    def run(setting: Setting) -> None:
        if setting.against_dense is None:
            reconfigure(view, setting.recipe)
            setting.scores = [score_clip(model, reference, step) for reference in references]
            setting.against_dense, setting.against_truth = summarise(setting.scores, seed)

    for anchor in _anchors(settings)[: max(1, runs - 1)]:
        run(anchor)
    tried = sum(setting.against_dense is not None for setting in settings)
    while tried < runs:
        _predict_drops(settings)
        front = _front(settings)
        place = _next(front, promise)
        if place is None:
            break
        if tried == runs - 1 and front[-1].against_dense is None and not any(item.keeps(promise) for item in settings):
            place = len(front) - 1  # the last chance belongs to the most faithful
        run(front[place])
        tried += 1
    _predict_drops(settings)
    done = [setting for setting in settings if setting.against_dense is not None]
    good = [setting for setting in done if setting.keeps(promise)]
    if good:
        return SearchResult(settings, min(good, key=lambda setting: setting.effort), True)
    return SearchResult(settings, min(done, key=lambda setting: setting.against_dense.drop), False)  # type: ignore[union-attr]


def _anchors(settings: Sequence[Setting]) -> list[Setting]:
    by_windows = min(settings, key=lambda setting: (setting.windows, setting.risk_keys))
    by_keys = min(settings, key=lambda setting: (setting.keys, setting.risk_windows))
    found = []
    if len({setting.windows for setting in settings}) > 1:
        found.append(by_windows)
    if len({setting.keys for setting in settings}) > 1 and by_keys not in found:
        found.append(by_keys)
    by_precision = max(
        settings, key=lambda setting: (setting.risk_precision, -setting.risk_windows - setting.risk_keys)
    )
    if len({setting.risk_precision for setting in settings}) > 1 and by_precision not in found:
        found.append(by_precision)
    return found or [settings[0]]


def _predict_drops(settings: Sequence[Setting]) -> None:
    """Predicted drop = a * risk_windows + b * risk_keys + c * risk_precision, coefficients >= 0 fitted to real runs."""
    done = [setting for setting in settings if setting.against_dense is not None]
    slopes = _non_negative(
        np.array([_risks(setting) for setting in done]),
        np.array([setting.against_dense.drop for setting in done]),  # type: ignore[union-attr]
    )
    for setting in settings:
        setting.predicted_drop = float(np.dot(slopes, _risks(setting)))


def _risks(setting: Setting) -> tuple[float, float, float]:
    return setting.risk_windows, setting.risk_keys, setting.risk_precision


def _non_negative(rows: npt.NDArray[np.float64], drops: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    """Least squares through the origin with coefficients >= 0: [n, k], [n] -> [k].

    Every set of predictors that the rows can tell apart is tried; of equally good ones the smaller, then the first.
    """
    best, least = np.zeros(rows.shape[1]), math.inf
    for count in range(1, rows.shape[1] + 1):
        for chosen in itertools.combinations(range(rows.shape[1]), count):
            columns = rows[:, chosen]
            scale = np.linalg.norm(columns, axis=0)
            if not scale.all() or np.linalg.matrix_rank(columns / scale, tol=1e-4) < count:
                continue
            slopes = np.linalg.lstsq(columns / scale, drops, rcond=None)[0] / scale
            error = float(np.square(drops - columns @ slopes).sum())
            if (slopes >= 0).all() and error < least * (1 - 1e-9) - 1e-18:
                best, least = np.zeros(rows.shape[1]), error
                best[list(chosen)] = slopes
    return best


def _front(settings: Sequence[Setting]) -> list[Setting]:
    """Settings that no other beats in both effort and predicted drop, cheapest first."""
    front: list[Setting] = []
    for setting in sorted(settings, key=lambda item: (item.effort, item.predicted_drop or 0.0)):
        if not front or (setting.predicted_drop or 0.0) < (front[-1].predicted_drop or 0.0):
            front.append(setting)
    return front


def _next(front: Sequence[Setting], promise: CalibrationSettings) -> int | None:
    """The member of the front to run next: half-way, in predicted terms, between what failed and what held."""
    held = [place for place, setting in enumerate(front) if setting.keeps(promise)]
    failed = [
        place for place, setting in enumerate(front) if setting.against_dense is not None and not setting.keeps(promise)
    ]
    top = min(held) if held else len(front)
    bottom = max((place for place in failed if place < top), default=-1)
    between = [place for place in range(bottom + 1, top) if front[place].against_dense is None]
    if not between:
        return None
    if not held:
        # The cheapest that should do; if none should, the most faithful: when that fails as well, nothing will do.
        hopeful = [place for place in between if (front[place].predicted_drop or 0.0) <= promise.max_drop]
        return hopeful[0] if hopeful else between[-1]
    return between[len(between) // 2]

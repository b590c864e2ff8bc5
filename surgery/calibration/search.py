"""Choose the fastest setting that keeps a recipe's promise: score all candidates from records, run only a few."""

from __future__ import annotations

import itertools
import statistics
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

from surgery.adapters.record import Fidelity
from surgery.api import require_view
from surgery.bench.flops import encoder_gflop, memory_attention_gflop
from surgery.calibration.clips import CalibrationClip
from surgery.calibration.fidelity import ClipScore, Reference, score_clip, summarise
from surgery.calibration.observe import Candidate, Observer, observe
from surgery.errors import CalibrationError, RecipeError
from surgery.hosts.base import HostView
from surgery.operate import retune
from surgery.recipe import CalibrationSettings, Recipe, SparseMemoryRetrieval
from surgery.retrieval.saliency import kept_count

BANK = 7


@dataclass(eq=False)
class Setting:
    """One combination of the searched values.

    windows, keys: fractions predicted from the records. cost: predicted GFLOP of encoder and memory attention, as a
    share of the dense model's. risk_windows, risk_keys: what the records say is lost, each on its own scale.
    predicted_drop: from both risks, once real runs have said what they cost. scores: of a real run, empty when it was
    not run.
    """

    values: dict[str, Any]
    recipe: Recipe
    windows: float = 1.0
    keys: float = 1.0
    cost: float = 1.0
    risk_windows: float = 0.0
    risk_keys: float = 0.0
    predicted_drop: float | None = None
    scores: list[ClipScore] = field(default_factory=list)
    against_dense: Fidelity | None = None
    against_truth: Fidelity | None = None

    def keeps(self, promise: CalibrationSettings) -> bool:
        """Whether it was run and met the promise."""
        found = self.against_dense
        return found is not None and found.drop <= promise.max_drop and found.worst_drop <= promise.max_clip_drop


@dataclass
class SearchResult:
    """settings: every combination, cheapest first. chosen: the one to use. kept: whether it meets the promise; if not,
    `chosen` is the most faithful one that was run.
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
    """Fill in what one dense pass over the clips says about every setting."""
    routing, retrieval = view.binding.routing, view.binding.retrieval
    simulated: dict[str, Candidate] = {}
    keeps = sorted(
        {value for setting in settings if setting.recipe.retrieval
         for value in (setting.recipe.retrieval.keep, setting.recipe.retrieval.keep_conditioning) if value < 1.0}
    )  # fmt: skip
    if routing is not None and routing.windows == "object":
        for setting in settings:
            assert setting.recipe.routing is not None
            simulated.setdefault(repr(setting.recipe.routing), Candidate(setting.recipe.routing))
    observer = Observer(view, list(simulated.values()), keeps)
    lengths = []
    if retrieval is not None and keeps:
        # Measured at any share below 1; the curve is taken from the whole saliency.
        view.binding.retrieval = retrieval.model_copy(update={"keep": 0.5, "keep_conditioning": 0.5})
    try:
        for clip in clips:
            lengths.append(clip.video.num_frames or 0)
            observe(view, observer, clip)
            step()
    finally:
        view.binding.retrieval = retrieval
    flops = _Flops(view)
    for setting in settings:
        if setting.recipe.routing is not None and simulated:
            candidate = simulated[repr(setting.recipe.routing)]
            setting.windows = candidate.windows / max(1, candidate.frames)
            setting.risk_windows = candidate.risk / max(1, candidate.frames)
        if setting.recipe.retrieval is not None:
            kept = setting.recipe.retrieval
            setting.keys = statistics.fmean(keys_kept(kept, length) for length in lengths)
            setting.risk_keys = _lost(observer, kept)
        setting.cost = flops.share(setting.windows, setting.keys)
    settings_by_cost = sorted(settings, key=lambda setting: setting.cost)
    if isinstance(settings, list):
        settings[:] = settings_by_cost


def _lost(observer: Observer, retrieval: SparseMemoryRetrieval) -> float:
    """Share of a full bank's attention, at its first read, that pruning drops; the newest frame is never pruned."""
    lost = 0.0
    for conditioning, keep, frames in ((False, retrieval.keep, BANK - 2), (True, retrieval.keep_conditioning, 1)):
        held = observer.held.get((conditioning, keep))
        if keep < 1.0 and held:
            lost += frames * (1.0 - statistics.fmean(held))
    return lost / BANK


def keys_kept(retrieval: SparseMemoryRetrieval, frames: int, tokens: int = 4096) -> float:
    """Mean fraction of spatial keys read over a clip prompted on its first frame, one conditioning frame."""
    keep = kept_count(tokens, retrieval.keep) / tokens if retrieval.keep < 1.0 else 1.0
    total = []
    for index in range(1, max(2, frames)):
        tracked = min(index - 1, BANK - 1)
        warm = not retrieval.warm_up or index - 2 >= BANK - 2
        middle = max(0, tracked - 1)
        first = retrieval.keep_conditioning if warm and index > 1 else 1.0
        kept = first + min(1, tracked) + middle * (keep if warm else 1.0)
        total.append(kept / (1 + tracked))
    return statistics.fmean(total)


class _Flops:
    """GFLOP of encoder and memory attention of one object, linear in windows and keys between two counted points."""

    def __init__(self, view: HostView) -> None:
        self.encoder = self.encoder_slope = 0.0
        if view.binding.grid is not None and view.binding.routing is not None:
            count = view.binding.grid.count
            few = encoder_gflop(view, range(1))
            self.encoder = encoder_gflop(view)
            self.encoder_slope = (
                (encoder_gflop(view, range(count - 1)) - few) / (count - 2) * count if count > 2 else 0.0
            )
            self.floor = few - self.encoder_slope / count
        else:
            self.encoder = self.floor = encoder_gflop(view)
        self.memory = memory_attention_gflop(view)
        self.memory_floor = memory_attention_gflop(view, frames=1)
        self.memory_slope = (self.memory - self.memory_floor) / (1 - 1 / BANK)

    def share(self, windows: float, keys: float) -> float:
        encoder = self.encoder if windows >= 1.0 else self.floor + windows * self.encoder_slope
        memory = self.memory - (1.0 - keys) * self.memory_slope
        return (encoder + memory) / (self.encoder + self.memory)


def search(
    model: Any, settings: list[Setting], references: Sequence[Reference], promise: CalibrationSettings, runs: int,
    step: Callable[[], None], seed: int = 0,
) -> SearchResult:  # fmt: skip
    """Run at most `runs` settings for real, guided by the records, and choose.

    Two anchors come first, the setting with the fewest windows and the one with the fewest keys among those predicted:
    they say how much J&F a unit of either risk costs. Then the Pareto front of cost against predicted drop is bisected
    for its cheapest member that meets the promise.
    """
    view = require_view(model)

    def run(setting: Setting) -> None:
        if setting.against_dense is None:
            retune(view, setting.recipe)
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
        return SearchResult(settings, min(good, key=lambda setting: setting.cost), True)
    return SearchResult(settings, min(done, key=lambda setting: setting.against_dense.drop), False)  # type: ignore[union-attr]


def _anchors(settings: Sequence[Setting]) -> list[Setting]:
    by_windows = min(settings, key=lambda setting: (setting.windows, setting.risk_keys))
    by_keys = min(settings, key=lambda setting: (setting.keys, setting.risk_windows))
    found = []
    if len({setting.windows for setting in settings}) > 1:
        found.append(by_windows)
    if len({setting.keys for setting in settings}) > 1 and by_keys not in found:
        found.append(by_keys)
    return found or [settings[0]]


def _predict_drops(settings: Sequence[Setting]) -> None:
    """Predicted drop = a * risk_windows + b * risk_keys, with a, b >= 0 fitted to the real runs."""
    done = [setting for setting in settings if setting.against_dense is not None]
    rows = [(setting.risk_windows, setting.risk_keys, setting.against_dense.drop) for setting in done]  # type: ignore[union-attr]
    slope_windows, slope_keys = _non_negative(rows)
    for setting in settings:
        setting.predicted_drop = slope_windows * setting.risk_windows + slope_keys * setting.risk_keys


def _non_negative(rows: Sequence[tuple[float, float, float]]) -> tuple[float, float]:
    """Least squares through the origin with coefficients >= 0, for two predictors."""
    a11, a22 = sum(x * x for x, _, _ in rows), sum(y * y for _, y, _ in rows)
    a12 = sum(x * y for x, y, _ in rows)
    b1, b2 = sum(x * d for x, _, d in rows), sum(y * d for _, y, d in rows)
    determinant = a11 * a22 - a12 * a12
    if determinant > 1e-9 * a11 * a22 and determinant > 0:
        one, two = (b1 * a22 - b2 * a12) / determinant, (b2 * a11 - b1 * a12) / determinant
        if one >= 0 and two >= 0:
            return one, two
    one, two = (b1 / a11 if a11 else 0.0), (b2 / a22 if a22 else 0.0)
    error_one = sum((d - one * x) ** 2 for x, _, d in rows)
    error_two = sum((d - two * y) ** 2 for _, y, d in rows)
    return (max(0.0, one), 0.0) if a11 and (error_one <= error_two or not a22) else (0.0, max(0.0, two))


def _front(settings: Sequence[Setting]) -> list[Setting]:
    """Settings that no other beats in both cost and predicted drop, cheapest first."""
    front: list[Setting] = []
    for setting in sorted(settings, key=lambda item: (item.cost, item.predicted_drop or 0.0)):
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

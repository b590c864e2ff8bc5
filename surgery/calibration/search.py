"""Choose the fastest setting that keeps a recipe's promise: score all candidates from records, run only a few."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from surgery.adapters.record import Fidelity
from surgery.calibration.clips import CalibrationClip
from surgery.calibration.fidelity import ClipScore, Each, Reference, drift_of, in_turn, score_clip, summarise
from surgery.core.cost import CostModel
from surgery.core.engine import reconfigure
from surgery.core.observer import Simulation, Together
from surgery.core.parts import PARTS
from surgery.core.promise import CalibrationSettings
from surgery.core.surgery import Surgery
from surgery.engine import require_surgery
from surgery.errors import CalibrationError, RecipeError
from surgery.recipe import Recipe
from surgery.tracking import track

TIE = 1e-6
"""What memory encoder and mask decoder, which the FLOP model leaves out, weigh: they only break ties."""


@dataclass(eq=False)
class Setting:
    """One combination of the searched values.

    kept: mean shares predicted from the records, by name. cost: predicted GFLOP of encoder and memory attention, as a
    share of the dense model's; effort: what settings are ranked by, see `Operation.weighed`. risks: what the records
    say is lost, by the same names, each on its own scale. predicted_drop: from these risks, once real runs have said
    what they cost. scores, from_state: of runs from the dense model's own state, which decide; empty when it was not
    run. whole: of whole clips, which were run of those that might be chosen; against_*: what these say.
    """

    values: dict[str, Any]
    recipe: Recipe
    kept: dict[str, float] = field(default_factory=dict)
    cost: float = 1.0
    effort: float = 1.0
    risks: dict[str, float] = field(default_factory=dict)
    predicted_drop: float = 0.0
    scores: list[ClipScore] = field(default_factory=list)
    from_state: Fidelity | None = None
    whole: list[ClipScore] = field(default_factory=list)
    against_dense: Fidelity | None = None
    against_chance: Fidelity | None = None
    against_truth: Fidelity | None = None

    def measured(self, share: str) -> float | None:
        """Mean of a field of `scores` over the clips that have it."""
        values = [value for score in self.scores if (value := getattr(score, share)) is not None]
        return sum(values) / len(values) if values else None

    def keeps(self, promise: CalibrationSettings) -> bool:
        """Whether it was run from the dense model's state and met the promise."""
        found = self.from_state
        return found is not None and found.drop <= promise.max_drop and found.worst_drop <= promise.max_clip_drop

    def refuted(self, promise: CalibrationSettings) -> bool:
        """Whether whole clips say that it loses more than promised: more than chance explains, with ground truth where
        there is some."""
        found = self.against_truth or self.against_chance
        assert found is not None
        return (found.drop if found.interval is None else found.interval[0]) > promise.max_drop


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
    search = plan.search if plan is not None else {}
    bare = recipe.model_copy(update={"calibration": None})
    found: dict[str, Setting] = {}
    for values in itertools.product(*search.values()):
        chosen = dict(zip(search, values, strict=True))
        try:
            candidate = bare.with_values(chosen).model_copy(update={"calibration": plan}) if chosen else recipe
        except RecipeError:
            continue  # every value is valid by itself (the recipe saw to that), but not with these others
        found.setdefault(repr(candidate.operations), Setting(chosen, candidate))
    if not found:
        raise CalibrationError(f"recipe {recipe.metadata.name!r}: no combination of its calibration.search is valid")
    return list(found.values())


def predict(
    surgery: Surgery, settings: list[Setting], clips: Iterable[CalibrationClip], step: Callable[[], None],
    drops: Mapping[str, float] | None = None,
) -> None:  # fmt: skip
    """Fill in what one dense pass over the clips says about every setting, and sort them, least effort first.

    surgery: under the recipe of one of the settings; it is left under another one. `step` is called after every frame.
    drops: see `sensitivities`.
    """
    simulations, first = _simulations(surgery, settings), settings[0].recipe.operations
    lengths = []
    together = Together(list(simulations.values()))
    for clip in clips:
        lengths.append(clip.video.num_frames or 0)
        together.start()
        with surgery.observed_by(together):
            for _ in track(surgery.host.model, clip.video, clip.prompts):
                step()
    varied = {type(each) for each in first if any(setting.recipe.find(type(each)) != each for setting in settings)}
    for setting in settings:
        for operation in setting.recipe.operations:
            risk = operation.risk(drops or {})
            if risk is not None and type(operation) in varied:
                setting.risks[operation.alias] = risk
            simulation = simulations.get(type(operation))
            if simulation is None:
                continue
            found = simulation.predict(operation, lengths)
            name = operation.share or operation.alias
            setting.risks[name] = found.risk
            if found.kept is not None:
                setting.kept[name] = found.kept
    _count(surgery, settings)
    if not any(setting.risks for setting in settings):
        for setting in settings:
            # Nobody predicts what is lost: then what a setting saves is taken for what it risks.
            setting.risks["saved"] = max(0.0, 1.0 - setting.cost)
    settings.sort(key=lambda setting: setting.effort)


def _simulations(surgery: Surgery, settings: Sequence[Setting]) -> dict[type, Simulation]:
    """By type of operation. None of an operation that is the same in every setting: it explains no difference, and what
    it keeps is not searched."""
    found = {}
    for kind in {type(operation) for setting in settings for operation in setting.recipe.operations}:
        candidates = [setting.recipe.find(kind) for setting in settings]
        known = list({repr(each): each for each in candidates if each is not None}.values())
        if len(known) == 1 and None not in candidates and known[0].share is None:
            continue
        simulation = kind.simulate(surgery, known)
        if simulation is not None:
            found[kind] = simulation
    return found


def _count(surgery: Surgery, settings: Sequence[Setting]) -> None:
    """What every setting costs. Settings whose shares cost the same are counted together, under the recipe of one of
    them: counting runs what the surgery is under. It is left under the last."""
    alike: dict[str, list[Setting]] = {}
    for setting in settings:
        key = repr([(operation.type, operation.structure()) for operation in setting.recipe.operations])
        alike.setdefault(key, []).append(setting)
    for group in alike.values():
        reconfigure(surgery, group[0].recipe)
        costs = CostModel(surgery)
        for setting in group:
            parts = costs.shares(setting.kept, setting.recipe.operations)
            setting.cost = sum(parts.values())
            for operation in setting.recipe.operations:
                parts = operation.weighed({**dict.fromkeys(PARTS, TIE), **parts})
            setting.effort = sum(parts.values())


def search(
    model: Any, settings: list[Setting], references: Sequence[Reference], promise: CalibrationSettings, runs: int,
    step: Callable[[], None], seed: int = 0, each: Each[Any, ClipScore] = in_turn,
) -> SearchResult:  # fmt: skip
    """Run at most `runs` settings for real, guided by the records, and choose.

    Anchors come first, the setting with the fewest windows, the one with the fewest keys and the one that rounds most,
    where settings differ in these: they say how much J&F a unit of each risk costs. Then the Pareto front of effort
    against predicted drop is bisected for its cheapest member that meets the promise. All this by runs from the dense
    model's own state, which do not drift. Whole clips are run of what would be chosen, and may refute it. `each` runs
    the clips.
    """
    surgery = require_surgery(model)
    clips = [reference.clip for reference in references]

    def run(setting: Setting) -> None:
        reconfigure(surgery, setting.recipe)
        setting.scores = each(drift_of, model, clips, step)
        setting.from_state = summarise(setting.scores, "dense state", seed)

    def run_whole(setting: Setting) -> None:
        reconfigure(surgery, setting.recipe)
        setting.whole = each(score_clip, model, references, step)
        setting.against_dense, setting.against_chance, setting.against_truth = (
            summarise(setting.whole, reference, seed) for reference in ("dense masks", "chance", "ground truth")
        )

    done = _anchors(settings)[: max(1, runs - 1)]
    for anchor in done:
        run(anchor)
    _predict_drops(settings)
    while len(done) < runs:
        front = _front(settings)
        place = _next(front, promise)
        if place is None:
            break
        if len(done) == runs - 1 and front[-1].from_state is None and not any(one.keeps(promise) for one in done):
            place = len(front) - 1  # the last chance belongs to the most faithful
        run(front[place])
        done.append(front[place])
        _predict_drops(settings)
    done.sort(key=settings.index)
    for setting in done:
        if setting.keeps(promise):
            run_whole(setting)
            if not setting.refuted(promise):
                return SearchResult(settings, setting, True)
    closest = min(done, key=lambda setting: setting.from_state.drop)  # type: ignore[union-attr]
    if closest.against_dense is None:
        run_whole(closest)
    return SearchResult(settings, closest, False)


def _anchors(settings: Sequence[Setting]) -> list[Setting]:
    """By operation that settings differ in: the one that keeps least of it, or risks most, and else risks least."""
    found = []
    for name in _names(settings):
        least = {each: each.kept.get(name, -each.risks.get(name, 0.0)) for each in settings}
        others = {each: sum(risk for other, risk in each.risks.items() if other != name) for each in settings}
        if len({*least.values()}) > 1:
            found.append(min(settings, key=lambda setting: (least[setting], others[setting])))
    return list(dict.fromkeys(found)) or [settings[0]]


def _names(settings: Sequence[Setting]) -> list[str]:
    return list(dict.fromkeys(name for setting in settings for name in setting.risks))


def _predict_drops(settings: Sequence[Setting]) -> None:
    """Predicted drop = a sum over operations of a coefficient >= 0, fitted to real runs, times the risk."""
    from scipy.optimize import nnls

    names = _names(settings)
    risks = {setting: np.array([setting.risks.get(name, 0.0) for name in names]) for setting in settings}
    drops = {setting: setting.from_state.drop for setting in settings if setting.from_state is not None}
    rows = np.array([risks[setting] for setting in drops])
    # Risks are on scales of their own.
    scale = np.maximum(np.linalg.norm(rows, axis=0), 1e-12)
    slopes = nnls(rows / scale, list(drops.values()))[0] / scale
    for setting in settings:
        setting.predicted_drop = float(np.dot(slopes, risks[setting]))


def _front(settings: Sequence[Setting]) -> list[Setting]:
    """Settings that no other beats in both effort and predicted drop, cheapest first."""
    front: list[Setting] = []
    for setting in sorted(settings, key=lambda item: (item.effort, item.predicted_drop)):
        if not front or setting.predicted_drop < front[-1].predicted_drop:
            front.append(setting)
    return front


def _next(front: Sequence[Setting], promise: CalibrationSettings) -> int | None:
    """The member of the front to run next: half-way, in predicted terms, between what failed and what held."""
    held = [place for place, setting in enumerate(front) if setting.keeps(promise)]
    top = min(held, default=len(front))
    # Below the cheapest that held, all that were run failed.
    bottom = max((place for place in range(top) if front[place].from_state is not None), default=-1)
    between = list(range(bottom + 1, top))
    if not between:
        return None
    if not held:
        # The cheapest that should do; if none should, the most faithful: when that fails as well, nothing will do.
        hopeful = [place for place in between if front[place].predicted_drop <= promise.max_drop]
        return hopeful[0] if hopeful else between[-1]
    return between[len(between) // 2]

"""What each single thing that an operation does loses alone, from the dense model's own state: operations that can tell
such things apart choose from it what calibration tries."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Sequence
from contextlib import closing
from itertools import islice
from typing import Any

from surgery.calibration.clips import CalibrationClip
from surgery.core.engine import reconfigure
from surgery.core.operation import Operation
from surgery.core.promise import CalibrationSettings
from surgery.engine import require_surgery
from surgery.evaluation.drift_free import Comparison, drift_free
from surgery.recipe import Recipe

FRAMES = 2
"""Compared in every clip: there may be hundreds of trials."""


def trials_of(model: Any, recipe: Recipe) -> dict[Operation, dict[str, Operation]]:
    """What operations of the recipe can do one at a time. None of a field that the recipe searches by itself."""
    searched = recipe.calibration.search if recipe.calibration is not None else {}
    found = {}
    for operation in recipe.operations:
        trials = operation.trials(require_surgery(model).host)
        fields = operation.searched(dict.fromkeys(trials, 0.0)) if trials else {}
        if any(f"{operation.alias}.{name}" not in searched for name in fields):
            found[operation] = trials
    return found


def sensitivities(
    model: Any, recipe: Recipe, trials: dict[Operation, dict[str, Operation]], clips: Sequence[CalibrationClip],
    step: Callable[[], None],
) -> tuple[Recipe, dict[str, float]]:  # fmt: skip
    """The recipe with what its operations want to try put into its search, and the drop of every trial (1 - J&F).

    clips: with prompts, to which nothing was fitted. step: called after every trial. The model is left under the recipe
    that is returned. Trials come most harmful first; those that no mask tells apart by what they do to the features.
    """
    surgery = require_surgery(model)
    drops: dict[str, float] = {}
    for operation, each in trials.items():
        found: dict[str, tuple[float, float]] = {}
        for name, trial in each.items():
            reconfigure(surgery, recipe.model_copy(update={"operations": (trial,), "calibration": None}))
            found[name] = _lost(model, clips)
            step()
        mine = {name: found[name][0] for name in sorted(found, key=lambda name: found[name], reverse=True)}
        plan = recipe.calibration or CalibrationSettings(max_drop=1.0, max_clip_drop=1.0)
        fields = {f"{operation.alias}.{name}": values for name, values in operation.searched(mine).items()}
        search = {**fields, **plan.search}
        recipe = Recipe.from_dict({**recipe.to_dict(), "calibration": {**plan.model_dump(), "search": search}})
        drops |= mine
    reconfigure(surgery, recipe)
    return recipe, drops


def _lost(model: Any, clips: Sequence[CalibrationClip]) -> tuple[float, float]:
    """1 - J&F after one frame from the dense model's state, and the error of features on objects; means."""
    found: list[Comparison] = []
    for clip in clips:
        prompts = [prompt for prompt in clip.prompts if prompt.frame == clip.start]
        with closing(drift_free(model, clip.video, prompts, (1,))) as run:
            found += islice(run, FRAMES)
    lost = 1.0 - statistics.fmean(each.masks for each in found)
    return lost, statistics.fmean(each.on_object or 0.0 for each in found)

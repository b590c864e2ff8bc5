"""The adapters that ship for the demo model: they load without a warning, and score what they say."""

from __future__ import annotations

import json
import warnings
from pathlib import Path

import numpy as np
import pytest
import torch

import surgery
import surgery.demo as demo
from surgery.adapters import BaseModelWarning
from surgery.adapters.shipped import demo_adapter, shipped_adapters
from surgery.calibration import CalibrationClip
from surgery.calibration.fidelity import reference_of, score_clip
from surgery.demo.clips import HELD_OUT, make_clip
from surgery.demo.show import calibrated, prompt_for
from surgery.describe import calibrated as calibrated_recipe
from surgery.evaluation.recall import average_recall
from surgery.operations import SparseWindowRouting
from surgery.pictures import bound_of, found_in
from surgery.recipe import Recipe
from surgery.video import open_video

torch.set_num_threads(1)
RECIPES = ("balanced", "fast", "faithful", "turbo")
RESULTS = Path(__file__).resolve().parents[2] / "benchmarks" / "results"


def test_one_ships_for_every_calibrated_recipe() -> None:
    assert set(shipped_adapters()) == {f"demo-{recipe}" for recipe in (*RECIPES, "everything")}
    assert demo_adapter("exact") is None


@pytest.mark.parametrize("recipe", RECIPES)
@pytest.mark.parametrize("host", ["sam2", "transformers"])
def test_they_load_in_both_hosts_as_made_for_these_weights(host: str, recipe: str) -> None:
    folder = demo_adapter(recipe)
    assert folder is not None
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        model = surgery.load_adapter(demo.load(host=host), folder)
    state = surgery.status(model)
    assert state.calibration is not None and state.calibration.kept
    assert state.recipe is not None
    assert state.recipe == calibrated_recipe(state.recipe, Recipe.load(recipe).metadata), "named and described as it is"
    made, today = state.recipe.calibration, Recipe.load(recipe).calibration
    assert made is not None and today is not None
    assert (made.max_drop, made.max_clip_drop) == (today.max_drop, today.max_clip_drop), "the promise of today"


@pytest.mark.parametrize("host", ["sam2", "transformers"])
def test_the_proposal_head_loads_in_both_hosts_and_finds_objects(host: str) -> None:
    folder = demo_adapter("everything")
    assert folder is not None
    with warnings.catch_warnings():
        warnings.simplefilter("error", BaseModelWarning)
        model = surgery.load_adapter(demo.load(host=host), folder)
    clip = make_clip(HELD_OUT + 600_000, 1, difficulty="easy")
    truth = np.stack([clip.labels[0] == each for each in clip.objects])
    assert average_recall(found_in(model, clip.frames[0]).masks.numpy(), truth) > 0.6
    assert bound_of(model).prompts <= 32


def test_the_stored_score_is_found_again() -> None:
    report = json.loads((RESULTS / "calibration-demo-fast" / "calibration.json").read_text())
    stored = next(clip for clip in report["clips"] if clip["role"] == "held-out")
    level, seed = stored["name"].split("-")
    clip = make_clip(int(seed), 24, difficulty=level)  # type: ignore[arg-type]
    prompts = tuple(prompt_for("mask", clip.labels[0] == label, label) for label in range(1, clip.visible.shape[1] + 1))
    folder = demo_adapter("fast")
    assert folder is not None
    model = surgery.load_adapter(demo.load(host="sam2"), folder)
    reference = reference_of(model, CalibrationClip(clip.name, open_video(clip.frames), prompts, list(clip.labels)))
    score = score_clip(model, reference)
    # Kernels differ between machines, and a mask edge that flips moves J&F by this much.
    assert score.drop == pytest.approx(stored["drop"], abs=0.01)
    assert score.truth_drop == pytest.approx(stored["truth_drop"], abs=0.01)


def test_a_recipe_without_an_adapter_stays_itself() -> None:
    assert calibrated("exact") == (Recipe.load("exact"), None)
    recipe, folder = calibrated("balanced", ["routing.dilation=9"])
    assert folder is not None
    assert recipe.find(SparseWindowRouting) is not None and recipe.find(SparseWindowRouting).object.dilation == 9

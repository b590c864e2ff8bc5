"""Descriptions made from settings: they say what is set, whatever a recipe was called before."""

from __future__ import annotations

import pytest

from surgery.describe import calibrated, described
from surgery.recipe import Recipe, list_recipes


@pytest.mark.parametrize(
    ("recipe", "overrides", "text"),
    [
        ("balanced", ["routing.budget=0.65", "retrieval.keep=1.0", "retrieval.keep_conditioning=1.0"],
         "65 % of the windows, the object's first; all memory read."),
        ("balanced", ["routing.fill=false", "routing.object.max_wait=null", "retrieval.keep_conditioning=1.0"],
         "At most 26 % of the windows, those that changed most; memory of older frames pruned to 10 %, "
         "whole while the mask is unsure."),
        ("balanced", ["routing.budget=1.0", "retrieval.keep=1.0", "retrieval.unsure=null"],
         "All windows; memory of prompted frames pruned to 30 %."),
        ("published-large", ["routing.rolling=2", "retrieval.keep=1"],
         "Windows near the object and 2 of the others in turn; all memory read."),
        ("exact", [], "All windows; all memory read."),
        ("memory-only", [], "Memory of older frames pruned to 5 %."),
    ],
)  # fmt: skip
def test_the_settings_in_words(recipe: str, overrides: list[str], text: str) -> None:
    assert described(Recipe.load(recipe, overrides)) == text


def test_every_operation_has_its_words() -> None:
    data = Recipe.load("turbo").to_dict()
    data["operations"] += [
        {"type": "precision", "dtype": "fp16", "keep_fp32": ["encoder", "memory_encoder", "mask_decoder"]},
        {"type": "trim_caches"}, {"type": "compile"},
    ]  # fmt: skip
    text = described(Recipe.from_dict(data))
    for part in (
        "tiles",
        "first block",
        "30 % of the tokens",
        "fp16 in memory attention;",
        "caches trimmed",
        "compiled",
    ):
        assert part in text


def test_a_calibrated_recipe_is_named_so_once_and_runs_the_same() -> None:
    for name in list_recipes():
        recipe = Recipe.load(name)
        once = calibrated(recipe, recipe.metadata)
        assert once.metadata.name == f"{name}-calibrated" and name in once.metadata.description
        assert (once.operations, once.calibration) == (recipe.operations, recipe.calibration)
        assert calibrated(once, once.metadata) == once
        assert Recipe.parse(once.to_yaml()) == once
    long = recipe.metadata.model_copy(update={"name": "n" * 80})
    assert len(calibrated(recipe, long).metadata.name) == 80

"""Recipes spelt as before fields of window routing were in groups mean the same.

`recipes/` and `grouped/` are never rewritten: the recipes as they were shipped without groups, when `temporal` was not
yet `skipped.temporal`, and with them, before inner global blocks saw every token.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

import surgery
from surgery import Recipe, RecipeError
from surgery.calibration.search import settings_of
from surgery.operations import (
    ShortcutSettings,
    SkippedSettings,
    SparseMemoryRetrieval,
    SparseWindowRouting,
    StageSettings,
)
from surgery.plain_yaml import read_yaml

ROOT = Path(__file__).resolve().parents[2]
OLD = {path.stem: path for path in sorted((Path(__file__).parent / "recipes").glob("*.yaml"))}
NEW = {path.stem: path for path in (Path(__file__).parent / "grouped").glob("*.yaml")}
SHIPPED = [*(ROOT / "recipes").glob("*.yaml"), *(ROOT / "benchmarks" / "recipes").glob("*.yaml")]
ADAPTERS = sorted([*ROOT.glob("adapters/*/recipe.yaml"), *Path(__file__).parent.glob("adapters/*/recipe.yaml")])
VALUES: dict[str, Any] = {
    "saliency_mass": 0.6, "score_gate": 1.5, "dilation": 7, "motion": 2.0, "candidates": "best", "temporal": True,
    "padding": "published", "shortcut": {"type": "ffn"}, "span": "tiles", "early": 0.5, "stage4": "routed",
}  # fmt: skip
"""A value that is not the default, for every field that moved."""


def routing(recipe: Recipe) -> SparseWindowRouting:
    found = recipe.find(SparseWindowRouting)
    assert found is not None
    return found


def entry(path: Path) -> dict[str, Any]:
    """The routing operation as the file spells it."""
    operations = read_yaml(path.read_text(encoding="utf-8"))["operations"]
    return next((each for each in operations if each["type"] == "sparse_window_routing"), {})


def at(settings: Any, place: str) -> Any:
    for name in place.split("."):
        settings = getattr(settings, name)
    return settings


def test_every_shipped_recipe_has_its_old_spelling() -> None:
    later = {"cpu", "streaming"}
    routed = {path.stem for path in SHIPPED if entry(path) or path.stem in OLD}
    assert routed - later == set(OLD) == set(NEW)
    assert {*VALUES, "correction"} == set(SparseWindowRouting.moved)


@pytest.mark.parametrize("name", OLD)
def test_a_recipe_in_its_old_spelling_is_the_same(name: str) -> None:
    old, new = Recipe.load(OLD[name]), Recipe.load(NEW[name])
    assert old == new and hash(old.operations) == hash(new.operations)
    assert old.to_yaml() == new.to_yaml() and json.dumps(old.to_dict()) == json.dumps(new.to_dict())
    assert Recipe.parse(old.to_yaml()) == old
    assert [each.structure() for each in old.operations] == [each.structure() for each in new.operations]
    assert not set(entry(NEW[name])) & set(VALUES), "shipped recipes have the groups"
    assert not set(entry(OLD[name])) & {"object", "skipped", "stages"}, "and these files have none"
    if old.calibration is not None:
        assert [each.values for each in settings_of(old)] == [each.values for each in settings_of(new)]


@pytest.mark.parametrize("path", filter(entry, ADAPTERS), ids=lambda path: path.parent.name)
def test_the_recipe_of_an_adapter_means_what_it_says(path: Path) -> None:
    held = routing(Recipe.load(path)).model_dump()
    for name, value in entry(path).items():
        group, _, field = SparseWindowRouting.moved.get(name, name).rpartition(".")
        found = held[group][field] if group else held[name]
        assert found == value or (name == "refresh" and value.items() <= found.items()), name


@pytest.mark.parametrize("name", VALUES)
def test_a_field_is_read_at_its_old_place(name: str) -> None:
    place, value = SparseWindowRouting.moved[name], VALUES[name]
    company = {"temporal": True, "span": "tiles"} if name in ("span", "early", "stage4") else {}
    made = SparseWindowRouting(**{**company, name: value})
    assert made != SparseWindowRouting(**{**company, name: at(SparseWindowRouting(), place)})
    group, field = place.split(".")
    assert made.model_dump()[group][field] == value
    assert SparseWindowRouting.model_validate(made.model_dump()) == made
    leaf, value = ("shortcut.type", "ffn") if name == "shortcut" else (name, value)
    text = str(value).lower() if isinstance(value, bool) else value
    others = [f"routing.{key}={str(each).lower()}" for key, each in company.items() if key != name]
    assert routing(Recipe.load("exact", [*others, "routing.shortcut.type=bottleneck", f"routing.{leaf}={text}"])) == (
        routing(Recipe.load("exact", ["routing.skipped.shortcut.type=bottleneck", *others]).with_values(
            {f"routing.{place}{leaf.removeprefix(name)}": value}
        ))
    )  # fmt: skip


def test_a_correction_of_reused_stages_is_read_and_forgotten() -> None:
    made = SparseWindowRouting(temporal=True, span="tiles")
    assert made == SparseWindowRouting(temporal=True, span="tiles", correction="patch")
    assert made == SparseWindowRouting(skipped={"temporal": True}, stages={"span": "tiles", "correction": "patch"})


def test_both_spellings_may_be_mixed_but_not_for_one_field() -> None:
    made = SparseWindowRouting(temporal=True, skipped={"padding": "exact"}, shortcut=ShortcutSettings(type="ffn"))
    shortcut = ShortcutSettings(type="ffn")
    assert made == SparseWindowRouting(skipped=SkippedSettings(temporal=True, shortcut=shortcut))
    for more, clash in (
        ({"skipped": {"temporal": True}}, "skipped.temporal"),
        ({"skipped": SkippedSettings()}, "skipped"),
        ({"skipped": None}, "skipped"),
    ):
        told = f"temporal is now skipped.temporal, and {clash} is given as well; give one"
        with pytest.raises(ValidationError) as caught:
            SparseWindowRouting(temporal=True, **more)
        assert caught.value.error_count() == 1 and told in str(caught.value)


def changed(name: str, **fields: Any) -> Recipe:
    """An old recipe with other fields of window routing."""
    data = read_yaml(OLD[name].read_text(encoding="utf-8"))
    data["operations"][0].update(fields)
    return Recipe.from_dict(data, "mine.yaml")


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"temporal": 1}, "operations.sparse_window_routing.temporal: Input should be a valid boolean, got 1"),
        ({"dilation": 4}, "operations.sparse_window_routing.dilation: expected an odd kernel size"),
        ({"shortcut": {"typ": "ffn"}}, "sparse_window_routing.shortcut.typ: unknown key (did you mean 'type'?)"),
        ({"shortcut": {"type": "fn"}}, "sparse_window_routing.shortcut.type: Input should be"),
        ({"early": 0.5}, "operations.sparse_window_routing: early: 0.5 needs span: tiles"),
        ({"padding": "published"}, "operations.sparse_window_routing: padding: published needs temporal: false"),
        ({"stages": {"early": 0.5}}, "operations.sparse_window_routing.stages: early: 0.5 needs span: tiles"),
        ({"stages": {"early": 2}, "span": "tiles"}, "sparse_window_routing.stages.early: Input should be less"),
        ({"skipped": {"temporal": True}}, "sparse_window_routing: temporal is now skipped.temporal, and skipped.temp"),
    ],
)
def test_what_is_wrong_is_told_of_the_place_it_was_written_at(fields: dict[str, Any], words: str) -> None:
    with pytest.raises(RecipeError) as caught:
        changed("balanced", **fields)
    assert words in str(caught.value)


def test_of_two_overrides_of_a_field_the_last_counts() -> None:
    recipe = Recipe.load("balanced")
    old, new = "routing.score_gate=3", "routing.object.score_gate=4"
    assert routing(recipe.with_overrides([old, new])).object.score_gate == 4
    assert routing(recipe.with_overrides([new, old])).object.score_gate == 3
    assert recipe.with_values({"routing.score_gate": 3.0}) == recipe.with_overrides([old])
    with pytest.raises(RecipeError, match=r"routing\.temporal: Input should be a valid boolean"):
        recipe.with_overrides(["routing.temporal=1", "routing.object.motion=1.0"])


def test_searched_keys_are_read_at_their_old_places() -> None:
    data = Recipe.load("turbo").to_dict()

    def searching(search: dict[str, Any]) -> Recipe:
        return Recipe.from_dict({**data, "calibration": {"search": search}})

    old = searching({"routing.early": [0.45, 0.7], "sparse_window_routing.dilation": [5]})
    new = searching({"routing.stages.early": [0.45, 0.7], "routing.object.dilation": [5]})
    assert old == new and list(new.calibration.search) == ["routing.stages.early", "routing.object.dilation"]  # type: ignore[union-attr]
    assert {routing(each.recipe).stages.early for each in settings_of(old)} == {0.45, 0.7}
    with pytest.raises(RecipeError, match=r"'routing.early' and 'routing.stages.early' are the same field"):
        searching({"routing.early": [0.45], "routing.stages.early": [0.7]})
    with pytest.raises(RecipeError, match=r"calibration.search.*sparse_window_routing\.dilation: expected an odd"):
        searching({"routing.dilation": [4]})


def test_the_names_that_were_public_still_are() -> None:
    made = surgery.operations.SparseWindowRouting(span="tiles", temporal=True)
    assert made.stages == StageSettings(span="tiles") and made.skipped.temporal


@pytest.mark.parametrize(
    ("spelt", "read"), [({"rebalance": True}, "object"), ({"rebalance": False}, "mean"), ({}, "mean")]
)
def test_rebalanced_memory_is_read_as_memory_by_what_the_object_asks_for(spelt: dict[str, Any], read: str) -> None:
    assert SparseMemoryRetrieval.model_validate(spelt).saliency == read

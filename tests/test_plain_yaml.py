"""YAML reads as people mean it: no number or date that only YAML 1.1 sees."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import yaml

from surgery import RecipeError
from surgery.plain_yaml import read_yaml, write_yaml
from surgery.recipe import Recipe

ROOT = Path(__file__).resolve().parent.parent
NUMBERS = {
    "0": 0, "-3": -3, "+4": 4, "0x1F": 31, "0b11": 3, "1_000": 1000, "0.5": 0.5, ".5": 0.5, "5.": 5.0, "00.5": 0.5,
    "1e3": 1000.0, "5e-2": 0.05, "-.5E+1": -5.0, "-.inf": -math.inf, "true": True, "no": False, "~": None,
}  # fmt: skip
TEXTS = ["010", "-010", "08", "0_1", "1:30", "190:20:30", "1:30.5", "-1:30", "2026-01-31", "2026-01-31 10:00:00", "0o7"]


@pytest.mark.parametrize(("text", "value"), NUMBERS.items())
def test_numbers(text: str, value: Any) -> None:
    found = read_yaml(text)
    assert found == value and type(found) is type(value)


@pytest.mark.parametrize("text", TEXTS)
def test_what_only_looks_like_a_number_is_text(text: str) -> None:
    assert read_yaml(text) == text
    for flow in (False, True):
        written = write_yaml([text], flow)
        # Quoted, so that other readers of YAML agree.
        assert read_yaml(written) == [text] and yaml.safe_load(written) == [text]


@pytest.mark.parametrize("text", ["010", "1:30"])
def test_a_field_that_wants_a_number_refuses_it(text: str) -> None:
    recipe = Recipe.load("balanced")
    for field in ("refresh.every", "budget"):
        with pytest.raises(RecipeError, match=rf"{field}: Input should be a valid .*, got '{text}'"):
            recipe.with_overrides([f"routing.{field}={text}"])
    data = recipe.to_yaml().replace("rolling: ", f"rolling: {text} # ", 1)
    with pytest.raises(RecipeError, match=rf"rolling: Input should be a valid integer, got '{text}'"):
        Recipe.parse(data)


def test_every_recipe_written_so_far_reads_as_it_did() -> None:
    folders = (ROOT / "recipes", ROOT / "adapters", ROOT / "tests" / "compat")
    found = [path for folder in folders for path in folder.rglob("*.yaml")]
    assert len(found) > 10
    for path in found:
        text = path.read_text(encoding="utf-8")
        assert read_yaml(text) == yaml.safe_load(text), path

"""What the exact savings and what the method is worth, in miniature: the arms, their rows and the file."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from benchmarks.savings import ALONE, WHOLE, WITHOUT, arms_of, main
from surgery.operations import ExactSavings
from surgery.recipe import Recipe

SHORT = ["--model", "demo", "--frames", "2", "--warm", "7", "--module-frames", "1"]


def test_the_arms_differ_in_the_savings_alone() -> None:
    recipe = Recipe.load("turbo")
    arms = arms_of(recipe)
    assert [arm.approximate for arm in arms.values()] == [False, True, True]
    assert arms[ALONE].operations == (ExactSavings(),)
    assert arms[WITHOUT].find(ExactSavings) == ExactSavings(savings=())
    assert arms[WITHOUT].without(ExactSavings) == recipe == arms[WHOLE]
    assert arms_of(arms[WITHOUT])[WITHOUT].operations == arms[WITHOUT].operations, "named in the recipe already"


@pytest.mark.parametrize(("host", "recipe"), [("sam2", "memory-only"), ("transformers", "balanced")])
def test_every_arm_is_a_row(
    host: str, recipe: str, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MALLOC_TOP_PAD_", "0")
    out = tmp_path / "savings.json"
    assert main([*SHORT, "--host", host, "--recipe", recipe, "--objects", "2", "--out", str(out)]) == 0
    document = json.loads(out.read_text())
    rows = {row["name"]: row for row in document["rows"]}
    assert list(rows) == [ALONE, WITHOUT, WHOLE]
    assert document["allocator"] == {"MALLOC_TOP_PAD_": "0"} and "--objects 2" in document["command"]
    assert rows[ALONE]["windows"] is None is rows[ALONE]["keys"]
    for row in (rows[WITHOUT], rows[WHOLE]):
        assert row["windows_share"] == (0.25 if recipe == "balanced" else None)
        assert 0 < row["keys"]["share"] < 1
    # The second object's first self-attention is left out, in the recipe and by itself.
    assert rows[ALONE]["predicted"] > 1.001 and rows[WHOLE]["predicted"] > 1.001 * rows[WITHOUT]["predicted"]
    parts = {name: {part["name"] for part in row["modules"]} for name, row in rows.items()}
    assert "exact savings" in parts[ALONE] & parts[WHOLE] - parts[WITHOUT]
    added = document["savings_of_recipe"]
    assert added["interval"][0] <= added["whole_frame_speedup"] <= added["interval"][1]
    assert f"{added['whole_frame_speedup']:.3f}x" in capsys.readouterr().out


def test_what_cannot_be_done_is_said(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([*SHORT, "--recipe", "balance", "--out", str(tmp_path / "x.json")]) == 2
    assert "did you mean 'balanced'" in capsys.readouterr().err
    assert not list(tmp_path.iterdir())

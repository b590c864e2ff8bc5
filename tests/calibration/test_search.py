"""The search itself, on made-up settings: what is run, in what order, and what is chosen."""

from __future__ import annotations

from typing import Any, cast

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import surgery.demo as demo
from surgery import sparsify
from surgery.adapters.record import Fidelity
from surgery.calibration import search as room
from surgery.calibration.fidelity import ClipScore
from surgery.calibration.search import Setting
from surgery.calibration.whole import valid_range
from surgery.core.promise import CalibrationSettings
from surgery.engine import require_surgery
from surgery.operations import SparseMemoryRetrieval, SparseWindowRouting
from surgery.operations.memory_retrieval.simulate import keys_kept
from surgery.recipe import Recipe

RECIPE = Recipe.load("balanced")
NAMES = ("windows", "keys")


def run_search(
    monkeypatch: pytest.MonkeyPatch,
    drops: list[float],
    costs: list[float],
    risks: list[float],
    promise: float,
    runs: int,
    refuted: tuple[int, ...] = (),
) -> tuple[Any, list[int]]:
    """`search` over settings whose true drops are given; returns the result and which were run."""
    made = [
        Setting({"n": n}, RECIPE, dict.fromkeys(NAMES, cost), cost, cost, dict.fromkeys(NAMES, risk))
        for n, (cost, risk) in enumerate(zip(costs, risks, strict=True))
    ]
    order: list[int] = []

    class View:
        recipe = RECIPE

    monkeypatch.setattr(room, "require_surgery", lambda model: View())

    def summarise(scores: list[ClipScore], reference: Any, seed: int) -> Fidelity | None:
        whole = next((item for item in made if item.whole is scores), None)
        setting = whole or next(item for item in made if item.scores is scores)
        number = setting.values["n"]
        if whole is None:
            order.append(number)
        if reference == "ground truth":
            return None
        # Masks over whole clips drift: their drop is larger, and chance explains the rest.
        drop = min(1.0, 2 * drops[number]) if reference == "dense masks" else drops[number]
        if number in refuted and reference == "chance":
            drop = 1.0
        return Fidelity(reference=reference, drop=drop, interval=(drop, drop), worst_drop=drop, worst_clip="a")

    monkeypatch.setattr(room, "reconfigure", lambda view, recipe: None)
    monkeypatch.setattr(room, "summarise", summarise)
    found = room.search(
        object(), made, [], CalibrationSettings(max_drop=promise, max_clip_drop=1.0), runs, lambda: None
    )
    return found, order


def test_what_whole_clips_refute_gives_way_to_the_next(monkeypatch: pytest.MonkeyPatch) -> None:
    drops = [0.03, 0.02, 0.01]
    result, order = run_search(monkeypatch, drops, [0.2, 0.5, 0.9], drops, 0.04, 3, refuted=(0,))
    assert sorted(order) == [0, 1, 2] or order == [0]
    assert result.kept == (len(order) > 1)
    result, order = run_search(monkeypatch, drops, [0.2, 0.5, 0.9], drops, 0.015, 3)
    assert result.kept and result.chosen.values == {"n": 2}
    assert result.chosen.against_dense.drop == pytest.approx(0.02), "above the promise, as chance explains"
    assert [item.against_dense is not None for item in result.settings] == [False, False, True]


@settings(max_examples=60, deadline=None)
@given(st.integers(3, 40), st.floats(0.02, 0.9), st.integers(3, 12), st.data())
def test_a_monotone_front_is_bisected_to_its_cheapest_good_member(
    count: int, promise: float, runs: int, data: st.DataObject
) -> None:
    drops = sorted(
        data.draw(st.lists(st.floats(0.001, 1.0), min_size=count, max_size=count, unique=True)), reverse=True
    )
    costs = [(n + 1) / count for n in range(count)]
    with pytest.MonkeyPatch.context() as patch:
        found, order = run_search(patch, drops, costs, drops, promise, runs)
    assert len(order) == len(set(order)) <= runs
    good = [n for n in order if drops[n] <= promise]
    assert found.kept == bool(good)
    chosen = found.chosen.values["n"]
    assert chosen == (min(good) if good else min(order, key=lambda n: drops[n]))
    if runs >= 12:
        best = [n for n in range(count) if drops[n] <= promise]
        assert found.kept == bool(best), "with risks in the order of the drops, a good setting is not missed"


def test_when_nothing_should_do_the_most_faithful_is_tried_before_giving_up(monkeypatch: pytest.MonkeyPatch) -> None:
    drops = [0.9, 0.8, 0.7, 0.6, 0.5]
    found, order = run_search(monkeypatch, drops, [0.2, 0.4, 0.6, 0.8, 1.0], drops, 0.01, 4)
    assert not found.kept
    assert order[1] == 4
    assert found.chosen.values["n"] == 4


def test_the_last_run_goes_to_the_most_faithful(monkeypatch: pytest.MonkeyPatch) -> None:
    """Risks that say nothing about drops: the dense end of the front is reached all the same, and keeps any promise."""
    drops = [0.9] * 29 + [0.0]
    risks = [0.011 - 0.0001 * n for n in range(29)] + [0.0]
    found, order = run_search(monkeypatch, drops, [(n + 1) / 30 for n in range(30)], risks, 0.02, 4)
    assert found.kept
    assert 29 in order


@pytest.mark.parametrize("name", ["balanced", "faithful", "fast"])
def test_every_calibrated_recipe_can_fall_back_to_the_dense_model(name: str) -> None:
    from surgery.calibration.search import settings_of

    found = settings_of(Recipe.load(name))
    assert any(
        windows.budget == 1.0 and windows.fill and keys.keep == keys.keep_conditioning == 1.0
        for windows, keys in (
            (setting.recipe.find(SparseWindowRouting), setting.recipe.find(SparseMemoryRetrieval)) for setting in found
        )
    )


def test_what_a_setting_costs_does_not_depend_on_those_before_it() -> None:
    """`early` decides what a window costs, and the search varies it for every budget anew."""
    plan = {"routing.budget": [0.25, 0.5], "routing.stages.early": [0.45, 0.9]}
    recipe = Recipe.from_dict({**Recipe.load("turbo").to_dict(), "calibration": {"search": plan}})
    surgery = require_surgery(sparsify(demo.load("sam2"), recipe))
    found, again = room.settings_of(recipe), room.settings_of(recipe)
    room._count(surgery, found)
    for setting in again:
        room._count(surgery, [setting])
    assert [setting.cost for setting in found] == [setting.cost for setting in again]
    assert len({setting.cost for setting in found}) == 4


@pytest.mark.parametrize(
    ("retrieval", "frames", "expected"),
    [
        # Full bank of 7: one conditioning frame, five pruned, the newest.
        (SparseMemoryRetrieval(keep=204 / 4096), 2000, (2 + 5 * 204 / 4096) / 7),
        (SparseMemoryRetrieval(keep=1.0), 50, 1.0),
        (SparseMemoryRetrieval(keep=0.25, warm_up=False, keep_conditioning=0.5), 3, (1.0 + 1.5 / 2) / 2),
        (SparseMemoryRetrieval(keep=0.25), 7, 1.0),
    ],
)
def test_predicted_keys(retrieval: SparseMemoryRetrieval, frames: int, expected: float) -> None:
    assert keys_kept(retrieval, frames, 7, 4096) == pytest.approx(expected, abs=3e-3 if frames == 2000 else 1e-9)


def test_the_valid_range_leaves_out_settings_without_a_number() -> None:
    """`retrieval.unsure: [0.7, null]`: where null is as good as a number, the number is the range."""
    every = [Setting({"keep": keep, "unsure": unsure, "fill": True}, cast(Any, None))
             for keep, unsure in ((0.1, 0.7), (0.5, None), (0.2, 0.9))]  # fmt: skip
    assert valid_range(every[0], every) == {"keep": (0.1, 0.5), "unsure": (0.7, 0.9)}
    assert valid_range(every[1], every) == {"keep": (0.1, 0.5)}

"""Calibration from clips to adapter on the embedded model, in both hosts, on a few short clips."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import surgery
import surgery.demo as demo
from surgery import describe
from surgery.adapters import load_adapter, read_adapter, save_adapter
from surgery.calibration import CalibrationClip, PromiseError, calibrate, fit_shortcut
from surgery.calibration.clips import gather_clips
from surgery.calibration.linear import ResidualRegression
from surgery.calibration.search import settings_of
from surgery.demo.clips import HELD_OUT, make_clip
from surgery.demo.show import prompt_for
from surgery.engine import require_surgery
from surgery.errors import CalibrationError, ModelStateError, RecipeError
from surgery.operations import CompileParts, SparseWindowRouting
from surgery.operations.window_routing.bound import require_router
from surgery.recipe import Recipe
from surgery.tracking import track
from surgery.video import open_video

torch.set_num_threads(1)
HOSTS = ("sam2", "transformers")


def clip_of(number: int, frames: int = 8, prompted: bool = True, kind: str = "box") -> CalibrationClip:
    clip = make_clip(HELD_OUT + 300_000 + number, frames, difficulty="easy", objects=1)
    prompts = (prompt_for(kind, clip.labels[0] == 1, 1),) if prompted else ()
    return CalibrationClip(clip.name, open_video(clip.frames), prompts, list(clip.labels) if prompted else None)


def recipe(**calibration: Any) -> Recipe:
    # Fitted and held-out clips are not equally unsure, and there are one or two of each.
    data = Recipe.load("balanced").with_values({"routing.object.unsure": None, "retrieval.unsure": None}).to_dict()
    data["calibration"] = {
        "max_drop": 0.5, "max_clip_drop": 0.9,
        "search": {"routing.budget": [0.25, 0.5], "retrieval.keep": [0.1, 0.3]}, **calibration,
    }  # fmt: skip
    return Recipe.from_dict(data)


def masks(model: Any, clip: CalibrationClip) -> np.ndarray:
    return np.stack([result.logits[1] for result in track(model, clip.video, clip.prompts)])


@pytest.fixture(scope="module")
def both() -> dict[str, tuple[Any, Any]]:
    found = {}
    for host in HOSTS:
        model = demo.load(host=host)  # type: ignore[arg-type]
        clips = [clip_of(number) for number in range(4)]
        found[host] = model, calibrate(model, clips, recipe(), runs=3, progress=False, name="demo")
    return found


@pytest.fixture(params=HOSTS)
def calibrated(request: pytest.FixtureRequest, both: dict[str, tuple[Any, Any]]) -> tuple[str, Any, Any]:
    return request.param, *both[request.param]


def test_both_hosts_choose_the_same_setting(both: dict[str, tuple[Any, Any]]) -> None:
    one, two = (both[host][1] for host in HOSTS)
    assert one.search.chosen.values == two.search.chosen.values
    for mine, theirs in zip(one.search.settings, two.search.settings, strict=True):
        assert mine.values == theirs.values
        assert mine.kept == pytest.approx(theirs.kept, abs=0.02)
    assert one.explained == pytest.approx(two.explained, rel=1e-4)
    assert one.record.against_dense.drop == pytest.approx(two.record.against_dense.drop, abs=0.01)


def test_the_model_runs_what_the_report_says(calibrated: tuple[str, Any, Any], tmp_path: Path) -> None:
    _, model, report = calibrated
    state = surgery.status(model)
    assert state.recipe == report.recipe
    assert report.kept and report.applied
    assert report.recipe.find(SparseWindowRouting) is not None
    assert report.recipe.find(SparseWindowRouting).budget == report.search.chosen.values["routing.budget"]
    assert report.recipe == describe.calibrated(report.recipe, recipe().metadata)
    assert report.recipe.metadata.name == "balanced-calibrated"
    assert report.recipe.metadata.description.startswith(describe.described(report.recipe))
    assert report.recipe.metadata.description in report.as_markdown()
    record = report.record
    assert record.fit == "closed form" and 0 < report.explained < 1
    assert len(record.fit_clips) == len(record.held_out_clips) == 2
    assert not set(record.fit_clips) & set(record.held_out_clips)
    assert record.against_truth is not None
    assert record.against_dense.interval[0] <= record.against_dense.drop <= record.against_dense.interval[1]
    assert state.calibration == record
    assert "untrained" not in str(state)
    assert f"{record.against_dense.drop:.4f}" in str(state)
    run = [setting for setting in report.search.settings if setting.from_state is not None]
    assert 1 <= len(run) <= 3
    assert report.search.chosen in run
    files = report.save(tmp_path / "report")
    assert {path.name for path in files} == {"calibration.json", "calibration.md"}
    data = json.loads((tmp_path / "report" / "calibration.json").read_text())
    assert sum(row["chosen"] for row in data["candidates"]) == 1
    assert len(data["candidates"]) == 4


def test_an_adapter_carries_the_record_and_gives_the_same_masks(
    calibrated: tuple[str, Any, Any], tmp_path: Path
) -> None:
    host, model, report = calibrated
    save_adapter(model, tmp_path / "adapter")
    assert read_adapter(tmp_path / "adapter").config.calibration == report.record
    clip = clip_of(9)
    expected = masks(model, clip)
    fresh = load_adapter(demo.load(host=host), tmp_path / "adapter")
    assert surgery.status(fresh).calibration == report.record
    np.testing.assert_array_equal(masks(fresh, clip), expected)


def test_predicted_windows_are_those_computed(calibrated: tuple[str, Any, Any]) -> None:
    """The simulation steps the real router's rules, so on a clip where sparse and dense agree it predicts the count."""
    _, _, report = calibrated
    for setting in report.search.settings:
        if setting.scores:
            measured = np.mean([score.windows_kept for score in setting.scores])
            assert setting.kept["windows"] == pytest.approx(measured, abs=0.08)
            keys = np.mean([score.keys_kept for score in setting.scores])
            assert setting.kept["keys"] == pytest.approx(keys, abs=0.02)


def test_both_hosts_find_the_same_closed_form() -> None:
    weights = []
    for host in HOSTS:
        model = surgery.sparsify(demo.load(host=host), recipe())
        clips, _ = gather_clips([clip_of(number, 6) for number in range(2)])
        fit_shortcut(model, clips)
        shortcut = require_router(require_surgery(model)).shortcut
        x = torch.randn(64, shortcut.channels, generator=torch.Generator().manual_seed(0))
        with torch.no_grad():
            weights.append(shortcut(x) - shortcut(x.flip(0)))
    # The map is unique; the directions of its factors are not, so the map is compared.
    assert (weights[0] - weights[1]).abs().max() <= 1e-4 * weights[0].abs().max()


def test_a_shortcut_without_a_closed_form_is_refused() -> None:
    for kind in ("identity", "attention"):
        model = surgery.sparsify(demo.load(host="sam2"), recipe().with_values({"routing.skipped.shortcut.type": kind}))
        with pytest.raises(ModelStateError, match="nothing to fit"):
            fit_shortcut(model, [clip_of(0)])


def test_recipes_that_name_gradient_steps_still_load() -> None:
    data = recipe().to_dict()
    data["calibration"] |= {"objective": "masks", "steps": 60}
    assert Recipe.from_dict(data) == recipe()


def test_a_missed_promise_says_so_and_leaves_the_model_as_it_was() -> None:
    clips = [clip_of(number, 6) for number in range(2)]
    strict = recipe(max_drop=1e-6, max_clip_drop=1e-6)
    model = demo.load(host="sam2")
    keys = list(model.state_dict())
    with pytest.raises(PromiseError, match="no setting keeps the promise") as caught:
        calibrate(model, clips, strict, runs=2, progress=False)
    assert list(model.state_dict()) == keys
    assert not surgery.status(model).sparse
    assert not caught.value.report.kept
    report = calibrate(model, clips, strict, runs=2, progress=False, if_missed="nearest")
    assert report.applied and not report.kept
    assert surgery.status(model).recipe == report.recipe
    found = [setting.from_state.drop for setting in report.search.settings if setting.from_state is not None]
    assert report.record.from_state.drop == min(found)


def test_too_few_clips_and_a_broken_teacher_leave_the_model_as_it_was(monkeypatch: pytest.MonkeyPatch) -> None:
    model = surgery.sparsify(demo.load(host="sam2"), "fast")
    shortcut = require_router(require_surgery(model)).shortcut
    before = {name: value.clone() for name, value in shortcut.state_dict().items()}
    with pytest.raises(CalibrationError, match="expected at least one of each"):
        calibrate(model, [clip_of(0, 5)], recipe(), progress=False)
    add = ResidualRegression.add
    monkeypatch.setattr(ResidualRegression, "add", lambda self, one, other: add(self, one, other * torch.nan))
    with pytest.raises(CalibrationError, match="not finite"):
        calibrate(model, [clip_of(0, 5), clip_of(1, 5)], recipe(), progress=False)
    assert surgery.status(model).recipe == Recipe.load("fast")
    for name, value in require_router(require_surgery(model)).shortcut.state_dict().items():
        assert torch.equal(value, before[name])
    assert require_surgery(model).observer is None


def test_clips_without_prompts_are_looked_at_for_objects_and_one_held_out_gives_no_interval(tmp_path: Path) -> None:
    model = demo.load(host="sam2")
    blank = CalibrationClip("blank", open_video(np.full((5, 256, 256, 3), 90, np.uint8)))
    clips = [clip_of(0, 5, prompted=False), clip_of(2, 5, prompted=False), blank]
    report = calibrate(
        model, clips, recipe(), runs=1, progress=False, if_missed="nearest",
    )  # fmt: skip
    assert [clip.name for clip in report.skipped] == ["blank"]
    assert len(report.record.held_out_clips) == 1 and report.record.against_dense.interval is None
    run = [row for row in report.as_dict()["candidates"] if row["run"]]
    assert [row["interval"] for row in run] == [None] * len(run)
    for text in (report.as_markdown(), str(surgery.status(model))):
        assert "no interval" in text and "None" not in text
    surgery.save_adapter(model, tmp_path / "one")
    assert read_adapter(tmp_path / "one").config.calibration == report.record
    card = (tmp_path / "one" / "README.md").read_text()
    assert "one clip gives no interval" in card and "on 1 other clip (" in card
    assert {path.suffix for path in report.save(tmp_path / "report")} == {".json", ".md"}
    assert "no object found" in report.skipped[0].reason
    assert report.record.against_truth is None


def test_sparsify_takes_clips(monkeypatch: pytest.MonkeyPatch) -> None:
    model = demo.load(host="sam2")
    fast = recipe(search={"routing.budget": [0.5]})
    clips, compiled = [clip_of(0, 5), clip_of(1, 5)], CompileParts(backend="eager")
    torch._dynamo.utils.counters.clear()
    assert surgery.sparsify(model, fast, clips=clips, progress=False, compile=compiled) is model
    state = surgery.status(model)
    assert state.calibration is not None and state.calibration.fit == "closed form"
    assert state.recipe is not None and state.recipe.find(CompileParts) == compiled
    assert not torch._dynamo.utils.counters["stats"]["unique_graphs"], "candidates run uncompiled"
    with pytest.raises(CalibrationError, match="adapter and clips are both given"):
        surgery.sparsify(model, fast, clips=[clip_of(0, 5)], adapter="somewhere")


def test_memory_only_recipes_calibrate_without_a_shortcut() -> None:
    model = demo.load(host="sam2")
    data = Recipe.load("memory-only").to_dict()
    data["calibration"] = {"max_drop": 0.5, "max_clip_drop": 0.9, "search": {"retrieval.keep": [0.1, 0.5]}}
    report = calibrate(model, [clip_of(0), clip_of(1)], Recipe.from_dict(data), runs=2, progress=False)
    assert report.record.fit == "identity"
    assert report.record.windows_kept is None
    risks = [each.risks["keys"] for each in sorted(report.search.settings, key=lambda item: item.kept["keys"])]
    assert risks[0] > risks[1] > 0
    with pytest.raises(ModelStateError, match="no shortcut to fit"):
        fit_shortcut(model, [clip_of(0)])


def test_every_combination_is_a_candidate_once() -> None:
    found = settings_of(recipe(search={"routing.budget": [0.5, 1.0], "routing.fill": [True, False]}))
    assert [setting.values for setting in found] == [
        {"routing.budget": budget, "routing.fill": fill} for budget in (0.5, 1.0) for fill in (True, False)
    ]
    assert len(settings_of(recipe(search={"routing.budget": [0.5, 0.50]}))) == 1
    with pytest.raises(RecipeError, match="did you mean 'budget'"):
        recipe(search={"routing.buget": [0.5]})

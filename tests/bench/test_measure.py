"""What a case measures: its structure, its counts, and that it leaves the model alone. Never how many seconds."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

import surgery
from surgery.bench import BenchmarkError, Settings, benchmark, frame_count
from surgery.bench.clip import LoopingClip
from surgery.bench.clock import Clock
from surgery.bench.modules import fixed_windows, module_names, probed
from surgery.bench.pair import plain, twins
from surgery.bench.probe import REST, Probe, TimeMeter
from surgery.core.cost import gflop, stock_gflop
from surgery.core.driver import follow
from surgery.engine import current_surgery, require_surgery
from surgery.hosts import view_of
from surgery.operations.window_routing.bound import require_router
from surgery.operations.window_routing.policy import by_evidence
from surgery.recipe import Recipe
from tests.hosts.drive import make

SHORT = {"frames": 3, "warm": 9, "module_frames": 1}
BRIEF = Settings(frames=2, warm=0, module_frames=1)
HOSTS = ("sam2", "transformers")
TILES = Path(__file__).resolve().parents[2] / "benchmarks" / "recipes" / "tiles-queries.yaml"


def small(host: str) -> Any:
    return make(host, localised=False).model


@pytest.mark.parametrize("host", HOSTS)
def test_a_case_holds_every_figure_it_should(host: str) -> None:
    model, steps = small(host), []
    settings = Settings(windows=0.25, objects=2, **SHORT)
    row = benchmark(model, "balanced", settings=settings, step=lambda: steps.append(1)).row
    assert len(steps) == frame_count(settings)
    assert (row["host"], row["objects"], row["windows_share"], row["recipe"]) == (host, 2, 0.25, "balanced")
    assert row["windows"] == {"computed": 4.0, "of": 16, "share": 0.25, "forced": True}
    assert 0 < row["keys"]["read"] < row["keys"]["of"] == 7 * 256
    low, high = row["interval"]
    assert low <= row["whole_frame_speedup"] <= high
    assert row["whole_frame_speedup"] == pytest.approx(row["dense"]["median"] / row["sparse"]["median"])
    assert row["measured_over_predicted"] == pytest.approx(row["whole_frame_speedup"] / row["predicted"])
    for which, series in zip(("dense", "sparse"), row["latency"], strict=True):
        side = row[which]
        assert series["name"] == which and len(series["ms"]) == side["frames"] == 3
        assert 0 < side["median"] <= side["p95"] <= side["p99"] <= max(series["ms"]) + 1e-3
        assert side["first"] > 0
    assert row["compile_s"] is None
    assert row["peak_memory_mb"] > 0 and "resident" in row["memory_kind"]
    names = [part["name"] for part in row["modules"]]
    cut = require_surgery(surgery.sparsify(small(host), "balanced"))
    assert set(names) <= set(module_names(cut.host, cut))
    for wanted in (
        "encoder: stage 3",
        "memory attention: layer 3",
        "mask decoder",
        "sparse window routing",
        "shortcut",
        REST,
    ):
        assert wanted in names


@pytest.mark.parametrize("host", HOSTS)
def test_counted_gflop_are_those_of_the_flop_model(host: str) -> None:
    row = benchmark(small(host), "balanced", settings=Settings(windows=0.25, **SHORT)).row
    cut = require_surgery(surgery.sparsify(small(host), "balanced"))
    for side, expected in (
        ("dense", stock_gflop(cut.host, "encoder")), ("sparse", gflop(cut, "encoder", {"windows": 0.25})),
    ):  # fmt: skip
        parts = [part for part in row["modules"] if part["name"].startswith(("encoder", "shortcut"))]
        counted = sum(part[f"{side}_gflop"] for part in parts)
        assert counted == pytest.approx(expected, rel=0.01)
    assert row["predicted"] > 1
    by_name = {part["name"]: part for part in row["modules"]}
    # Transformers' encoder also computes a product it never reads; under surgery it does not.
    assert by_name["encoder: stage 1"]["sparse_gflop"] == pytest.approx(
        by_name["encoder: stage 1"]["dense_gflop"], rel=0.005
    )
    assert (by_name["encoder: stage 1"]["sparse_gflop"] < by_name["encoder: stage 1"]["dense_gflop"]) == (
        host == "transformers"
    )
    assert by_name["encoder: stage 3"]["dense_gflop"] > by_name["encoder: stage 3"]["sparse_gflop"]
    assert by_name["sparse window routing"]["dense_ms"] == 0 < by_name["sparse window routing"]["sparse_ms"]


@pytest.mark.parametrize("host", HOSTS)
def test_the_model_is_left_as_it_was(host: str) -> None:
    model = small(host)
    before = {name: id(tensor) for name, tensor in model.named_parameters()}
    benchmark(model, "balanced", settings=BRIEF)
    assert {name: id(tensor) for name, tensor in model.named_parameters()} == before
    assert current_surgery(model) is None
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.modules())
    surgery.sparsify(model, "memory-only")
    row = benchmark(model, settings=BRIEF).row
    assert row["recipe"] == "memory-only" and row["windows"] is None
    assert require_surgery(model).recipe.metadata.name == "memory-only"  # type: ignore[union-attr]


@pytest.mark.parametrize("host", HOSTS)
def test_a_feed_gives_masks_of_every_object_frame_by_frame(host: str) -> None:
    clip = LoopingClip(256, 3, 2, torch.device("cpu"))
    with torch.inference_mode():
        shapes = [tuple(masks.shape) for masks in follow(view_of(small(host)), clip, clip.masks)]
    assert shapes == [(2, 1, 256, 256)] * 3


def test_all_windows_and_keys_cost_as_many_flops_as_stock() -> None:
    row = benchmark(small("sam2"), "exact", settings=Settings(**SHORT)).row
    assert row["predicted"] == pytest.approx(1, abs=1e-6)


@pytest.mark.parametrize("host", HOSTS)
def test_bf16_without_modules(host: str) -> None:
    settings = Settings(precision="bf16", frames=2, warm=0, module_frames=0)
    steps: list[int] = []
    timings = benchmark(small(host), "balanced", settings=settings, step=lambda: steps.append(1))
    assert len(steps) == frame_count(settings)
    assert timings.row["precision"] == "bf16" and timings.row["modules"] == [] and timings.predicted is None
    assert str(timings).endswith("]")


def test_weights_can_be_converted_for_transformers_only() -> None:
    model = small("transformers")
    settings = Settings(precision="bf16", cast="weights", frames=2, warm=1, module_frames=0)
    assert benchmark(model, "balanced", settings=settings).row["precision"] == "bf16"
    assert {parameter.dtype for parameter in model.parameters()} == {torch.float32}
    with pytest.raises(BenchmarkError, match="transformers host"):
        benchmark(small("sam2"), "balanced", settings=settings)
    with pytest.raises(BenchmarkError, match="bf16"):
        benchmark(small("sam2"), "balanced", settings=Settings(precision="fp16"))


def test_fixed_windows_still_pay_for_the_router(monkeypatch: pytest.MonkeyPatch) -> None:
    from surgery.operations.window_routing import policy

    cut = require_surgery(surgery.sparsify(small("sam2"), "balanced"))
    router, asked = require_router(cut), []

    def rules(*given: Any) -> Any:
        asked.append(given)
        return None, "scene cut"

    monkeypatch.setattr(policy, "by_rules", rules)
    clip = LoopingClip(256, 4, 1, torch.device("cpu"))
    with fixed_windows(cut, 0.25) as windows, torch.inference_mode():
        run = follow(cut.host, clip, clip.masks)
        found = [(next(run), cut.stats and cut.stats.last)[1] for _ in range(4)]
    assert [record.windows for record in found if record is not None and record.frame] == [windows] * 3
    assert len(asked) == 3 and router.policy is by_evidence


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"precision": "bf61"}, "did you mean 'bf16'"),
        ({"windows": 0.0}, "greater than 0"),
        ({"windows": 1.5}, "less than or equal to 1"),
        ({"objects": 0}, "greater than or equal to 1"),
        ({"frames": 1}, "greater than or equal to 2"),
        ({"cast": "weights"}, "precision fp32"),
        ({"compile": "al"}, "did you mean 'all'"),
    ],
)
def test_bad_settings_are_refused(wrong: dict[str, Any], message: str) -> None:
    with pytest.raises(BenchmarkError, match=message):
        Settings(**wrong)


def test_windows_cannot_be_forced_on_a_recipe_that_routes_none() -> None:
    with pytest.raises(BenchmarkError, match="memory-only"):
        benchmark(small("sam2"), "memory-only", settings=Settings(windows=0.5))


def test_spans_leave_nothing_behind() -> None:
    cut = require_surgery(surgery.sparsify(make("sam2").model, Recipe.load(TILES)))
    before = cut.root_runs("encode")
    with probed(cut.host, cut, Probe(TimeMeter(Clock(torch.device("cpu"))))):
        assert cut.root_runs("encode") != before
    assert cut.root_runs("encode") == before
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in cut.host.model.modules())


def test_operations_are_counted_in_eager_code() -> None:
    model = make("sam2").model
    compiled = torch.compile(model.memory_encoder.forward)
    model.memory_encoder.forward = compiled
    pair = twins(model, "balanced", None, Settings())
    pair.dense.model.memory_encoder.forward = compiled
    with plain(pair):
        assert "forward" not in vars(pair.dense.model.memory_encoder)
        assert pair.sparse.plain
    assert pair.dense.model.memory_encoder.forward is compiled and not pair.sparse.plain

"""The FLOP count against hand counts and against the numbers in the specification."""

from __future__ import annotations

import pytest
import torch

import surgery
from surgery.bench.flops import FlopModel, encoder_gflop, memory_attention_gflop
from surgery.engine import require_view
from surgery.loading import load_model
from surgery.recipe import Recipe
from tests.hosts.drive import PADDED, UNPADDED, make, video


@pytest.mark.parametrize("windows", [UNPADDED, PADDED], ids=["unpadded", "padded"])
def test_both_hosts_count_alike_and_less_is_less(windows: tuple[int, ...]) -> None:
    counts = []
    for host in ("sam2", "transformers"):
        model = surgery.sparsify(make(host, windows).model, "balanced")
        view = require_view(model)
        grid = view.binding.grid
        assert grid is not None
        encoder = [encoder_gflop(view, range(count)) for count in (1, grid.count // 2, grid.count)]
        assert encoder == sorted(encoder)
        assert encoder[0] < encoder_gflop(view)
        assert view.binding.route is None
        counts.append(memory_attention_gflop(view, keep=0.05))
        assert counts[-1] < memory_attention_gflop(view)
        assert view.binding.plan is None
    assert counts[0] == pytest.approx(counts[1], rel=1e-6)


@pytest.mark.parametrize("host", ["sam2", "transformers"])
def test_counting_leaves_the_model_as_it_was(host: str) -> None:
    """Stock sam2 caches position codes on the module: a fake one would turn every later frame into nothing."""
    driver, twin = make(host), make(host)
    for each in (driver, twin):
        surgery.sparsify(each.model, "balanced")
        for module in each.model.modules():
            if hasattr(module, "cache"):
                module.cache.clear()
    view = require_view(driver.model)
    encoder_gflop(view)
    encoder_gflop(view, [1, 2])
    memory_attention_gflop(view, keep=0.05)
    ours, expected = driver.track(video(9)), twin.track(video(9))
    assert all(torch.equal(a, b) for a, b in zip(ours, expected, strict=True))


def test_base_plus_matches_the_published_counts() -> None:
    """Encoder 645 GFLOP, 303 with 2 of 25 windows; memory attention 605.6 to 274.0, unmeasured."""
    model = surgery.sparsify(load_model("random:base-plus"), "published-large")
    view = require_view(model)
    assert encoder_gflop(view) == pytest.approx(645.1, abs=0.2)
    assert memory_attention_gflop(view) == pytest.approx(605.6, abs=0.2)
    assert encoder_gflop(view, [6, 7]) == pytest.approx(303, abs=2)
    measured = memory_attention_gflop(view, keep=0.05)
    # One 4096 x 4096 x 256 product per layer for the saliency, and its keys' projection.
    assert measured - 4 * (8.59 + 0.13) == pytest.approx(274.0, abs=1.0)


@pytest.mark.parametrize("host", ["sam2", "transformers"])
def test_the_model_of_a_frame_prices_every_operation(host: str) -> None:
    driver = make(host)
    turbo = Recipe.load("turbo").model_copy(update={"calibration": None})
    flops = FlopModel(require_view(surgery.sparsify(driver.model, turbo)))

    def cost(overrides: list[str], windows: float = 0.25, keys: float = 0.4, queries: float | None = None) -> float:
        return sum(flops.shares(turbo.with_overrides(overrides), windows, keys, queries).values())

    mine = cost([])
    assert 0 < mine < 1
    assert cost([], windows=0.5) > mine
    assert cost([], keys=0.8) > mine
    assert cost(["routing.early=0.9"]) > mine
    assert cost(["routing.stage4=dense"]) > mine
    assert cost(["queries.budget=0.6"]) > mine
    assert cost([], queries=0.9) > mine
    assert cost([], windows=1.0, keys=1.0) == pytest.approx(1.0)
    view = require_view(driver.model)
    assert view.binding.grid is not None
    counted = encoder_gflop(view, range(view.binding.grid.count // 4)) / (flops.encoder + flops.memory)
    share = view.binding.grid.count // 4 / view.binding.grid.count
    assert flops.shares(turbo, share, 0.4)["encoder"] == pytest.approx(counted, rel=0.1)

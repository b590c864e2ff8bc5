"""Counts of operations, against hand counts and against the numbers in the specification."""

from __future__ import annotations

from typing import Any

import pytest
import torch

import surgery
from surgery.core.cost import CostModel, count, gflop, stock_gflop
from surgery.core.engine import reconfigure
from surgery.engine import require_surgery
from surgery.hosts import view_of
from surgery.loading import load_model
from surgery.operations import SparseMemoryRetrieval, SparseQueryRouting, SparseWindowRouting
from surgery.operations.window_routing.bound import require_router
from surgery.recipe import Recipe
from tests.hosts.drive import BUSIEST, HOSTS, PADDED, UNPADDED, make, video


@pytest.mark.parametrize("windows", [UNPADDED, PADDED], ids=["unpadded", "padded"])
def test_both_hosts_count_alike_and_less_is_less(windows: tuple[int, ...]) -> None:
    counts = []
    for host in ("sam2", "transformers"):
        cut = require_surgery(surgery.sparsify(make(host, windows).model, "balanced"))
        count = require_router(cut).grid.count
        encoder = [gflop(cut, "encoder", {"windows": n / count}) for n in (1, count // 2, count - 1, count)]
        assert encoder == sorted(encoder)
        assert encoder[-1] == stock_gflop(cut.host, "encoder")
        memory = gflop(cut, "memory_attention", {"keys": 0.3})
        assert memory < stock_gflop(cut.host, "memory_attention")
        assert gflop(cut, "memory_attention", {"keys": 1.0}) == stock_gflop(cut.host, "memory_attention")
        assert cut.context is None and not cut.plain
        counts.append((*encoder, memory))
    assert counts[0] == pytest.approx(counts[1], rel=1e-6)


@pytest.mark.parametrize("host", HOSTS)
def test_counting_leaves_the_model_as_it_was(host: str) -> None:
    """Stock sam2 caches position codes on the module, transformers in its methods: a fake one would turn every later
    frame into nothing."""
    driver, twin = make(host), make(host)
    for each in (driver, twin):
        surgery.sparsify(each.model, BUSIEST[host])
        for module in each.model.modules():
            if hasattr(module, "cache"):
                module.cache.clear()
    CostModel(require_surgery(driver.model)).parts({"windows": 0.3, "keys": 0.4})
    ours, expected = driver.track(video(9)), twin.track(video(9))
    assert all(torch.equal(a, b) for a, b in zip(ours, expected, strict=True))


def test_base_plus_matches_the_published_counts() -> None:
    """Encoder 645 GFLOP, 303 with 2 of 25 windows; memory attention 605.6 to 274.0, unmeasured."""
    cut = require_surgery(surgery.sparsify(load_model("random:base-plus"), "published-large"))
    assert stock_gflop(cut.host, "encoder") == pytest.approx(645.1, abs=0.2)
    assert stock_gflop(cut.host, "memory_attention") == pytest.approx(605.6, abs=0.2)
    assert gflop(cut, "encoder", {"windows": 2 / 25}) == pytest.approx(303, abs=2)
    measured = gflop(cut, "memory_attention")
    # One 4096 x 4096 x 256 product per layer for the saliency, and its keys' projection.
    assert measured - 4 * (8.59 + 0.13) == pytest.approx(274.0, abs=1.0)


@pytest.mark.parametrize("host", ["sam2", "transformers"])
def test_the_model_of_a_frame_prices_every_operation(host: str) -> None:
    turbo = Recipe.load("turbo").model_copy(update={"calibration": None})
    cut = require_surgery(surgery.sparsify(make(host).model, turbo))

    def cost(overrides: list[str], **kept: float) -> float:
        recipe = turbo.with_overrides(overrides)
        reconfigure(cut, recipe)
        return sum(CostModel(cut).shares({"windows": 0.25, "keys": 0.4} | kept).values())

    mine = cost([])
    assert 0 < mine < 1
    assert cost([], windows=0.5) > mine
    assert cost([], keys=0.8) > mine
    assert cost(["routing.early=0.9"]) > mine
    assert cost(["routing.stage4=dense"]) > mine
    assert cost(["queries.budget=0.6"]) > mine
    assert cost([], queries=0.9) > mine
    assert cost([], windows=1.0, keys=1.0) == pytest.approx(1.0)


def test_between_two_counts_a_share_costs_what_lies_between() -> None:
    cut = require_surgery(surgery.sparsify(make("sam2").model, "balanced"))
    model, count = CostModel(cut), require_router(cut).grid.count
    few, more = (gflop(cut, "encoder", {"windows": n / count}) for n in (3, 4))
    assert model.parts({"windows": 3 / count})["encoder"] == pytest.approx(few)
    assert model.parts({"windows": 3.25 / count})["encoder"] == pytest.approx(0.75 * few + 0.25 * more)
    assert model.parts({})["encoder"] == pytest.approx(gflop(cut, "encoder", {"windows": 4 / 16}), rel=0.02)


def test_a_whole_frame_of_sam3() -> None:
    """GFLOP at full size, decoder and memory encoder included: with 3 of 9 windows and 5 % of the keys, one object;
    with 5 % of the keys and 30 % of the queries and every window, ten objects."""
    model = load_model("random:sam3", device="cpu", weights=False).requires_grad_(False)
    routing = {"budget": 0.33, "skipped": {"temporal": True}}
    retrieval, queries = SparseMemoryRetrieval(keep=0.05), SparseQueryRouting(budget=0.3, rolling=0)

    def recipe(kind: str) -> Recipe:
        operations = [SparseWindowRouting(**routing, stages={"globals": kind}), retrieval, queries]
        return Recipe(metadata={"name": "counted", "description": "Counted."}, operations=operations)

    cut = require_surgery(surgery.sparsify(model, recipe("packed")))
    encoder, memory = (stock_gflop(cut.host, part) for part in ("encoder", "memory_attention"))
    assert (encoder, memory) == (pytest.approx(5613, abs=1), pytest.approx(951, abs=1))
    rest = _decoder_and_memory_encoder(model)
    assert rest == pytest.approx(20, abs=1)
    keys = gflop(cut, "memory_attention", {"queries": 1.0})
    packed = gflop(cut, "encoder", {"windows": 3 / 9})
    assert encoder / packed == pytest.approx(2.63, abs=0.01)
    assert (encoder + memory + rest) / (packed + keys + rest) >= 2.5
    both = gflop(cut, "memory_attention", {"queries": 0.3})
    assert (encoder + 10 * (memory + rest)) / (encoder + 10 * (both + rest)) >= 2.0
    counted = {}
    for kind in ("cached", "dense"):
        reconfigure(cut, recipe(kind))
        counted[kind] = encoder / gflop(cut, "encoder", {"windows": 3 / 9})
    assert counted == {"cached": pytest.approx(2.54, abs=0.01), "dense": pytest.approx(2.02, abs=0.01)}


def _decoder_and_memory_encoder(model: Any) -> float:
    """GFLOP of one object outside memory attention."""

    def run() -> None:
        maps = [torch.empty(1, width, side, side) for width, side in ((32, 288), (64, 144), (256, 72))]
        model._single_frame_forward(image_embeddings=maps, multimask_output=True)
        features, masks = torch.empty(72 * 72, 1, 256), torch.empty(1, 1, 1152, 1152)
        model._encode_new_memory(features, masks, torch.empty(1, 1), False)

    return count(view_of(model), model, run)

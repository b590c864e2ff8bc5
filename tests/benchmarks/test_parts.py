"""What the tables on the demo model compare: choices at random, operations one after another, stage 4 whole or not."""

from __future__ import annotations

import random
from types import SimpleNamespace
from typing import Any

import pytest
import torch

import surgery.operations.memory_retrieval.bound as retrieval
from benchmarks import stage4
from benchmarks.curve import beyond
from benchmarks.parts import at_random, random_windows
from surgery import sparsify
from surgery.core.windows import WindowGrid
from surgery.demo import load
from surgery.engine import require_surgery
from surgery.operations import SparseQueryRouting
from surgery.operations.window_routing.bound import require_router
from surgery.recipe import Recipe


def test_random_windows_are_as_many_as_the_rules_choose(monkeypatch: pytest.MonkeyPatch) -> None:
    chosen = iter([([2, 3, 5], None), (None, "scene cut"), ([1, 2, 8], None)])
    monkeypatch.setattr("benchmarks.parts.by_evidence", lambda *_: next(chosen))
    policy: Any = random_windows(random.Random(0))
    first, cut, second = (policy(SimpleNamespace(grid=WindowGrid(16, 16, 4))) for _ in range(3))
    assert cut == (None, "scene cut")
    assert first != second
    for windows, reason in (first, second):
        assert windows == sorted(set(windows)) and len(windows) == 3 and windows[-1] < 16 and reason is None


def test_a_model_takes_random_windows() -> None:
    router = require_router(require_surgery(sparsify(load("sam2"), "balanced")))
    before = router.policy
    with at_random("random windows", router.surgery.host.model):
        assert router.policy is not before


def test_random_keys_are_as_many_and_only_inside() -> None:
    stock, saliency = retrieval.top_tokens, torch.arange(100.0)
    with at_random("random keys", None):
        drawn = retrieval.top_tokens(saliency, 0.1)
    assert retrieval.top_tokens is stock
    assert drawn.shape == stock(saliency, 0.1).shape and not torch.equal(drawn, stock(saliency, 0.1))
    assert torch.equal(drawn, drawn.unique()), "in order, none twice"


def test_operations_are_added_until_it_is_turbo() -> None:
    rows = list(beyond().values())
    assert [row.find(SparseQueryRouting) is not None for row in rows] == [False] * 7 + [True]
    turbo = Recipe.load("turbo")
    assert {type(each) for each in rows[-1].operations} == {type(each) for each in turbo.operations}


def test_stage_4_costs_less_where_it_is_routed_and_the_control_forgets() -> None:
    for span in ("stage3", "tiles"):
        models = stage4.cut(load("sam2"), span)
        windows = stage4.middle(models["dense"], 0.25)
        assert windows == [5, 6, 9, 10]
        cost = {choice: stage4.gflop(model, windows) for choice, model in models.items()}
        assert cost["routed"] < cost["dense"]
        assert stage4.gflop(models["dense"], windows[:1]) < cost["dense"]
        assert all(require_surgery(model).context is None for model in models.values())
    grid = require_router(require_surgery(models["routed"])).stage4
    assert grid is not None
    blank = stage4.Blank(grid.grid, grid.channels)
    device = torch.device("cpu")
    last = grid.blank(device, torch.float32)
    last.reused += 1
    forgotten = blank.route(windows, device, last).last
    assert forgotten is not None and not forgotten.reused.any()
    assert grid.route(windows, device, last).last is last

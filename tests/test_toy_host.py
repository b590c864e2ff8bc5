"""A host from outside: what works on the two that ship works on it, and no file of the package knows it."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import Tensor

import surgery
import surgery.hosts as registry
from surgery.core.cost import CostModel
from surgery.engine import require_surgery
from surgery.recipe import Recipe
from tests.test_extension import recipe
from tests.toy_host import SIDE, ToyHost, ToyModel, ToySession


@pytest.fixture(autouse=True)
def _registered(monkeypatch: pytest.MonkeyPatch) -> None:
    import surgery.core.operation as room
    from tests.test_extension import RestingMemory, ThinBlocks

    monkeypatch.setattr(registry, "_HOSTS", list(registry._HOSTS))
    registry.register(ToyHost)
    monkeypatch.setattr(room, "_KINDS", dict(room._KINDS))
    room.register(RestingMemory)
    room.register(ThinBlocks)


def toy() -> ToyModel:
    torch.manual_seed(3)
    return ToyModel().eval()


def clip(frames: int = 7, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    found = torch.randn(1, 3, SIDE, SIDE, generator=generator).repeat(frames, 1, 1, 1)
    for frame in range(frames):
        found[frame, :, 20:30, 4 * frame : 4 * frame + 12] += 2.0
    return found


@torch.inference_mode()
def track(model: Any, session: ToySession | None = None, objects: int = 2) -> list[Tensor]:
    session = session if session is not None else ToySession(clip())
    prompts = [model.prompt(session, obj_id, 4 + 4 * obj_id, 2) for obj_id in range(objects)]
    return [*prompts, *(mask for masks in model.track(session) for mask in masks.values())]


def same(one: list[Tensor], other: list[Tensor]) -> bool:
    return all(torch.equal(a, b) for a, b in zip(one, other, strict=True))


def routing(budget: float) -> Recipe:
    text = f"""
schema: 1
metadata: {{name: toy, description: Some windows.}}
operations:
  - {{type: sparse_window_routing, temporal: true, budget: {budget}, fill: true,
     refresh: {{start: false, lost: never}}}}
  - {{type: sparse_query_routing, budget: 0.5}}
"""
    return Recipe.parse(text)


def test_exact_is_bit_equal_and_undone() -> None:
    model, stock = toy(), toy()
    before = {name: type(module) for name, module in model.named_modules()}
    surgery.sparsify(model, "exact")
    assert same(track(model), track(stock))
    surgery.desparsify(model)
    assert {name: type(module) for name, module in model.named_modules()} == before
    assert same(track(model), track(stock))


def test_windows_and_queries_are_routed() -> None:
    model = toy()
    surgery.sparsify(model, routing(0.25))
    found = track(model)
    status = surgery.status(model)
    assert status.host == "toy" and status.windows == 16
    assert status.windows_kept is not None and status.windows_kept < 0.5
    assert status.queries_kept is not None and status.queries_kept < 0.8
    assert not same(found, track(toy()))
    surgery.sparsify(model, routing(1.0).without(type(routing(1.0).operations[1])))
    assert same(track(model), track(toy())), "all windows, filled: the dense model"


def test_memory_is_pruned() -> None:
    model = toy()
    surgery.sparsify(model, "memory-only")
    assert len(track(model)) == len(track(toy()))


@pytest.mark.parametrize("name", ["resting", "both"])
def test_operations_from_outside_run_on_a_host_from_outside(name: str) -> None:
    model, own = toy(), recipe(name)
    own = own.with_values({"thin.blocks": [1]}) if name == "both" else own
    surgery.sparsify(model, own)
    found = track(model)
    assert not same(found, track(toy()))
    sessions = [ToySession(clip()), ToySession(clip(seed=5))]
    runs, masks = [], [[], []]  # type: ignore[var-annotated]
    with torch.inference_mode():
        for slot, session in enumerate(sessions):
            masks[slot] += [model.prompt(session, obj_id, 4 + 4 * obj_id, 2) for obj_id in range(2)]
            runs.append(model.track(session))
        for _ in range(6):
            for slot, run in enumerate(runs):
                masks[slot] += next(run).values()
    assert same(masks[0], found), "two videos in turn"
    twin = copy.deepcopy(model)
    assert same(track(twin), found)
    parts = CostModel(require_surgery(model)).parts({})
    assert parts["memory_attention"] < CostModel(require_surgery(model)).stock["memory_attention"]
    surgery.desparsify(model)
    assert same(track(model), track(toy()))

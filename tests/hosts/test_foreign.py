"""Modules that carry the surgery of another model, or a copy of it. Both hosts."""

from __future__ import annotations

import copy
import pickle
from typing import Any

import pytest
import torch
from torch import nn

import surgery
from surgery import ModelStateError
from surgery.core.patching import is_patched
from surgery.hosts import view_of
from tests.hosts.drive import BUSIEST, HOSTS, Driver, make, video
from tests.hosts.routes import router_of
from tests.hosts.sessions import same


@pytest.fixture(params=HOSTS)
def driver(request: pytest.FixtureRequest) -> Driver:
    return make(request.param)


def encoder_name(model: Any) -> str:
    return "image_encoder" if hasattr(model, "image_encoder") else "vision_encoder"


def test_a_shared_encoder_is_refused_and_keeps_its_shortcut(driver: Driver) -> None:
    other = make(driver.host)
    setattr(other.model, encoder_name(other.model), getattr(driver.model, encoder_name(driver.model)))
    surgery.sparsify(driver.model, "balanced")
    entry = _home(driver.model)[router_of(driver.model).span.entry]
    shortcut = entry.shortcut
    expected = driver.track(video(5))
    with pytest.raises(ModelStateError, match="another model"):
        surgery.sparsify(other.model, "balanced")
    assert not surgery.status(other.model).sparse
    assert entry.shortcut is router_of(driver.model).shortcut is shortcut
    surgery.desparsify(other.model)  # not its own to undo
    assert same(driver.track(video(5)), expected)
    surgery.desparsify(driver.model)
    surgery.sparsify(other.model, "balanced")


def test_a_part_of_another_sparse_model_is_refused_on_the_next_frame(driver: Driver) -> None:
    other = make(driver.host)
    surgery.sparsify(driver.model, "balanced")
    surgery.sparsify(other.model, "balanced")
    expected, own = other.track(video(5)), driver.model.memory_attention
    driver.model.memory_attention = other.model.memory_attention
    with pytest.raises(ModelStateError, match="memory_attention"):
        driver.track(video(5))
    surgery.desparsify(driver.model)
    assert is_patched(other.model.memory_attention)
    assert not is_patched(own)
    assert same(other.track(video(5)), expected)


@pytest.mark.parametrize("place", [0, 1, 3])
def test_a_block_replaced_by_its_copy_is_refused_and_undone(driver: Driver, place: int) -> None:
    """0 is the entry, which holds the shortcut."""
    model = driver.model
    names, stock = list(model.state_dict()), driver.track(video(5))
    surgery.sparsify(model, "balanced")
    index, home = router_of(driver.model).span.entry + place, _home(model)
    home[index] = copy.deepcopy(home[index])
    for call in (lambda: driver.track(video(5)), lambda: surgery.sparsify(model, BUSIEST[driver.host])):
        with pytest.raises(ModelStateError, match=rf"(blocks|layers)\.{index}"):
            call()
    assert surgery.status(model).recipe.metadata.name == "balanced"
    assert is_patched(view_of(model).blocks()[index])
    surgery.desparsify(model)
    assert not any(is_patched(module) for module in model.modules())
    assert list(model.state_dict()) == names
    assert same(driver.track(video(5)), stock)


def test_a_stock_block_in_a_sparse_model_is_refused(driver: Driver) -> None:
    fresh = _home(make(driver.host).model)[4]
    surgery.sparsify(driver.model, "balanced")
    _home(driver.model)[4] = fresh
    with pytest.raises(ModelStateError, match=r"(blocks|layers)\.4"):
        driver.track(video(5))


def test_a_copied_part_in_a_stock_model_is_refused_and_undone(driver: Driver) -> None:
    other = make(driver.host)
    stock = other.track(video(5))
    surgery.sparsify(driver.model, "balanced")
    _home(other.model)[4] = copy.deepcopy(_home(driver.model)[4])
    with pytest.raises(ModelStateError, match=r"(blocks|layers)\.4"):
        surgery.sparsify(other.model, "balanced")
    surgery.desparsify(other.model)
    assert not any(is_patched(module) for module in other.model.modules())
    assert same(other.track(video(5)), stock)


@pytest.mark.parametrize("copier", [copy.deepcopy, lambda it: pickle.loads(pickle.dumps(it))], ids=["copy", "pickle"])
def test_a_copied_part_brings_no_model_along_and_runs_as_stock(driver: Driver, copier: Any) -> None:
    other = make(driver.host)
    stock = other.track(video(5), 2)
    surgery.sparsify(driver.model, BUSIEST[driver.host])
    own = driver.model.memory_attention
    weights = sum(tensor.nbytes for tensor in own.state_dict().values())
    assert len(pickle.dumps(own)) < 1.5 * weights
    other.model.memory_attention, twin = copier(own), copier(_home(driver.model)[4])
    _home(other.model)[4] = twin
    assert same(other.track(video(5), 2), stock)
    assert not surgery.status(twin).sparse
    assert not is_patched(surgery.desparsify(twin))


class Wrapper(nn.Module):
    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        return self.inner(*args, **kwargs)

    def __getattr__(self, name: str) -> Any:
        own = super().__getattr__
        return own(name) if name == "inner" else getattr(own("inner"), name)


def test_a_part_inside_a_wrapper_is_still_there(driver: Driver) -> None:
    """As torch.compile, checkpointing and parallel wrappers leave it."""
    surgery.sparsify(driver.model, "balanced")
    expected = driver.track(video(5), 2)
    driver.model.memory_attention = Wrapper(driver.model.memory_attention)
    assert same(driver.track(video(5), 2), expected)


def test_a_copy_of_a_sparse_model_is_its_own(driver: Driver) -> None:
    surgery.sparsify(driver.model, "balanced")
    expected = driver.track(video(5))
    twin = copy.deepcopy(driver.model)
    surgery.desparsify(driver.model)
    assert same(type(driver)(twin).track(video(5)), expected)
    assert not surgery.status(surgery.desparsify(twin)).sparse
    assert not any(is_patched(module) for module in twin.modules())
    assert torch.equal(next(twin.parameters()), next(driver.model.parameters()))


def _home(model: Any) -> nn.ModuleList:
    encoder = getattr(model, encoder_name(model))
    trunk = encoder.trunk if hasattr(encoder, "trunk") else encoder.backbone
    return trunk.blocks if hasattr(trunk, "blocks") else trunk.layers

"""Whose a model is: hosts answer for exactly their own, what is close to one is told what it lacks, others can join."""

from __future__ import annotations

from typing import Any

import pytest
from torch import nn

import surgery.hosts as registry
from surgery import UnsupportedModelError
from surgery.core.host import HostView
from surgery.demo import model as demo
from surgery.hosts import hosts, register, view_of


class SubclassOfNothing(nn.Module):
    pass


@pytest.fixture
def known(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(registry, "_HOSTS", list(registry._HOSTS))


def toy(owner: type[nn.Module]) -> type[HostView]:
    class ToyView(HostView):
        name, models = "toy", f"toy {owner.__name__}"

        @classmethod
        def matches(cls, model: object) -> bool:
            return isinstance(model, owner)

    ToyView.__abstractmethods__ = frozenset()
    return ToyView


@pytest.mark.parametrize("host", ["sam2", "transformers"])
def test_a_model_is_of_one_host_and_its_subclasses_too(host: Any) -> None:
    model = demo.build(host)
    assert [each.name for each in hosts() if each.matches(model)] == [host]
    model.__class__ = type("Mine", (type(model),), {})
    assert [each.name for each in hosts() if each.matches(model)] == [host]
    assert view_of(model).name == host


def test_nothing_is_asked_of_what_is_like_no_model() -> None:
    for thing in (None, "demo", nn.Linear(2, 2), SubclassOfNothing()):
        assert not any(each.matches(thing) or each.near_miss(thing) for each in hosts())


@pytest.mark.usefixtures("known")
def test_a_host_from_outside_joins_by_one_call() -> None:
    with pytest.raises(UnsupportedModelError, match="SubclassOfNothing is not a SAM 2 video model; expected"):
        view_of(SubclassOfNothing())
    register(toy(SubclassOfNothing))
    assert view_of(SubclassOfNothing()).name == "toy"
    with pytest.raises(UnsupportedModelError, match="or toy SubclassOfNothing"):
        view_of(nn.Linear(2, 2))


@pytest.mark.usefixtures("known")
def test_two_hosts_of_one_library(monkeypatch: pytest.MonkeyPatch) -> None:
    """What is a near miss of the first is a model of the second."""
    from transformers import Sam2Config, Sam2Model

    model = Sam2Model(Sam2Config(vision_config=demo.build("transformers").config.vision_config))
    with pytest.raises(UnsupportedModelError, match="Sam2Model is for pictures"):
        view_of(model)
    register(toy(Sam2Model))
    assert view_of(model).name == "toy"


@pytest.mark.parametrize("host", ["sam2", "transformers"])
def test_sizes_are_read_off_the_model(host: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """256 px: 16 x 16 tokens, masks of 64 px, seven memories of 64 channels."""
    view = view_of(demo.build(host))
    sizes = (view.image_size(), view.frame_tokens(), view.mask_side(), view.bank_size(), view.memory_channels())
    assert sizes == (256, 256, 64, 7, 64)
    monkeypatch.setattr(demo, "IMAGE_SIZE", 320)
    view = view_of(demo.build(host))
    assert (view.frame_tokens(), view.mask_side()) == (400, 80)

"""Swapping a module's class in place: one class per pair, the host's name, copies, and a clean way back."""

from __future__ import annotations

import copy
import io
import pickle
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from surgery.core.patching import Patched, host_class, is_patched, own_forward, patch, patched_class, unpatch


class Host(nn.Linear):
    """A host block."""

    def __init__(self) -> None:
        super().__init__(3, 3)
        self.note = [1]


class OtherHost(nn.Linear):
    """Another host block."""


class Doubled(Patched):
    _surgery: Any

    def forward(self, tokens: Tensor) -> Tensor:
        return self._surgery["factor"] * super().forward(tokens)  # type: ignore[misc]


class Silent(Patched):
    """Changes nothing."""


GIVEN = torch.arange(6.0).reshape(2, 3)


def test_the_same_pair_gives_the_same_class_and_another_pair_another() -> None:
    first, second = Host(), Host()
    patch(first, Doubled, {"factor": 2})
    patch(second, Doubled, {"factor": 3})
    assert type(first) is type(second) is patched_class(Doubled, Host)
    assert len({patched_class(mixin, host) for mixin in (Doubled, Silent) for host in (Host, OtherHost)}) == 4
    with torch.no_grad():
        second.load_state_dict(first.state_dict())
        assert torch.allclose(second(GIVEN), first(GIVEN) * 1.5), "the payload is the instance's own"


def test_the_module_keeps_its_identity() -> None:
    module = Host()
    expected, keys, parameters = module(GIVEN), list(module.state_dict()), list(module.parameters())
    patch(module, Doubled, {"factor": 2})
    kind = type(module)
    assert isinstance(module, Host)
    assert isinstance(module, nn.Linear)
    assert (kind.__name__, kind.__qualname__, kind.__module__) == ("Host", "Host", Host.__module__)
    assert kind.__doc__ == Host.__doc__
    assert host_class(module) is Host
    assert host_class(OtherHost(1, 1)) is OtherHost
    assert list(module.state_dict()) == keys
    assert all(a is b for a, b in zip(module.parameters(), parameters, strict=True))
    assert torch.equal(module(GIVEN), 2 * expected)


def test_other_instances_of_the_class_are_not_affected() -> None:
    module, bystander = Host(), Host()
    expected = bystander(GIVEN)
    patch(module, Doubled, {"factor": 2})
    assert type(bystander) is Host
    assert not is_patched(bystander)
    assert torch.equal(bystander(GIVEN), expected)


def test_unpatch_gives_the_module_back_as_it_was() -> None:
    module = Host()
    attributes, expected = dict(vars(module)), module(GIVEN)
    patch(module, Doubled, {"factor": 2})
    assert is_patched(module)
    unpatch(module)
    assert type(module) is Host
    assert not is_patched(module)
    assert dict(vars(module)) == attributes
    assert torch.equal(module(GIVEN), expected)


def test_unpatch_of_a_stock_module_and_twice_is_harmless() -> None:
    module = Host()
    attributes = dict(vars(module))
    for _ in range(2):
        unpatch(module)
        assert type(module) is Host
        assert dict(vars(module)) == attributes
    patch(module, Silent, None)
    unpatch(module)
    unpatch(module)
    assert type(module) is Host


def test_an_instance_forward_that_repeats_the_class_is_told_from_a_patch() -> None:
    """Early transformers 5.x leave one behind; it must not survive the class it repeats."""
    module, other = Host(), Host()
    assert not own_forward(module)
    module.forward = module.forward
    assert own_forward(module)
    module.forward = other.forward
    assert not own_forward(module)
    module.forward = lambda tokens: tokens
    assert not own_forward(module)
    del module.forward

    expected = module(GIVEN)
    patch(module, Doubled, {"factor": 2})
    module.forward = module.forward
    unpatch(module)
    assert "forward" not in vars(module)
    assert torch.equal(module(GIVEN), expected)


def pickled(module: nn.Module, protocol: int = pickle.DEFAULT_PROTOCOL) -> Any:
    return pickle.loads(pickle.dumps(module, protocol))


def torch_saved(module: nn.Module) -> Any:
    buffer = io.BytesIO()
    torch.save(module, buffer)
    buffer.seek(0)
    return torch.load(buffer, weights_only=False)


COPIERS = [copy.deepcopy, pickled, lambda module: pickled(module, 2), torch_saved]


@pytest.mark.parametrize("copier", COPIERS, ids=["deepcopy", "pickle", "pickle-2", "torch.save"])
def test_a_copy_is_patched_alike_and_shares_nothing(copier: Any) -> None:
    tree = nn.Sequential(Host(), Host())
    patch(tree[0], Doubled, {"factor": 2})
    expected = tree(GIVEN)
    twin = copier(tree)
    assert type(twin[0]) is type(tree[0])
    assert type(twin[1]) is Host
    assert torch.equal(twin(GIVEN), expected)
    assert twin[0].weight is not tree[0].weight
    assert twin[0].note == [1]
    assert twin[0].note is not tree[0].note
    assert twin[0]._surgery is not tree[0]._surgery
    unpatch(tree[0])
    assert torch.equal(twin(GIVEN), expected)
    unpatch(twin[0])
    assert torch.equal(twin(GIVEN), tree(GIVEN))


@pytest.mark.parametrize("copier", COPIERS, ids=["deepcopy", "pickle", "pickle-2", "torch.save"])
def test_a_copy_of_a_module_that_was_compiled_in_place_is_not_compiled(copier: Any) -> None:
    """As torch has it: a copied compiled call would run the module it was made of."""
    module = Host()
    patch(module, Doubled, {"factor": 2})
    module.compile(backend="eager")
    expected = module(GIVEN)
    twin = copier(module)
    with torch.no_grad():
        module.weight.zero_()
    assert torch.equal(twin(GIVEN), expected)
    assert not torch.equal(module(GIVEN), expected)


def test_a_shallow_copy_is_patched_and_its_class_is_its_own() -> None:
    module = Host()
    patch(module, Doubled, {"factor": 2})
    twin = copy.copy(module)
    assert type(twin) is type(module)
    assert twin.weight is module.weight
    unpatch(twin)
    assert is_patched(module)
    assert torch.equal(module(GIVEN), 2 * twin(GIVEN))


def test_hooks_and_dtype_changes_work_through_the_patch() -> None:
    module, seen = Host(), []
    module.register_forward_hook(lambda *_: seen.append(1))
    patch(module, Doubled, {"factor": 2})
    module.to(torch.float64)
    assert module(GIVEN.double()).dtype == torch.float64
    assert seen == [1]


def test_a_patch_that_the_host_cannot_bear_leaves_nothing_behind() -> None:
    """`__class__` assignment fails for another object layout; the payload must not stay."""

    class Layout(Silent):
        __slots__ = ("more",)

    module = Host()
    attributes = set(vars(module))
    with pytest.raises(TypeError):
        patch(module, Layout, None)
    assert type(module) is Host
    assert set(vars(module)) == attributes

"""Tensors made once: the same one for the same sizes, good under gradients, and never a fake one."""

from __future__ import annotations

import torch
from torch._subclasses.fake_tensor import FakeTensorMode

from surgery.core import constants
from surgery.core.constants import constant, steps

CPU = torch.device("cpu")


def test_the_same_sizes_are_the_same_tensor() -> None:
    with torch.inference_mode():
        first = steps(7, CPU)
    assert first.tolist() == list(range(7))
    assert steps(7, CPU) is first
    assert steps(8, CPU) is not first and steps(7, CPU, torch.float32).dtype == torch.float32
    weight = torch.ones(7, requires_grad=True)
    (weight * first).sum().backward()
    assert weight.grad is not None and torch.equal(weight.grad, first.float())


def test_a_fake_tensor_is_not_kept() -> None:
    with FakeTensorMode():
        assert type(steps(23, CPU)) is not torch.Tensor
    assert type(steps(23, CPU)) is torch.Tensor


def test_what_is_kept_is_bounded() -> None:
    for number in range(constants.MOST + 5):
        constant(("bounded", number), CPU, lambda: torch.zeros(1))
    assert len(constants._MADE) <= constants.MOST

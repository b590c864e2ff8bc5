"""Weights at addresses that are multiples of 8 bytes only, as in memory-mapped files: a CPU may take other kernels."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

OFFSET = 8
"""Bytes past a boundary of 64, where PyTorch allocates on a CPU."""


def shifted(data: Tensor) -> Tensor:
    """The same values in storage of their own, `OFFSET` bytes past a boundary."""
    skip = OFFSET // data.element_size()
    room = torch.empty(data.numel() + skip, dtype=data.dtype, device="cpu")
    return room[skip:].view(data.shape).copy_(data.detach())


def unalign(patch: pytest.MonkeyPatch) -> None:
    """From here on every parameter that is made, copied or unpickled on the CPU lies unaligned."""
    original = nn.Parameter.__new__

    def new(cls: Any, data: Any = None, requires_grad: bool = True) -> Any:
        plain = type(data) in (Tensor, nn.Parameter) and data.device.type == "cpu" and data.element_size() <= OFFSET
        return original(cls, shifted(data) if plain else data, requires_grad)

    patch.setattr(nn.Parameter, "__new__", staticmethod(new))

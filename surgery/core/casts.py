"""Tensors in nested containers, as hosts give them to their parts and get them back: found, and cast."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor

from surgery.core import values
from surgery.core.values import rebuilt

HALVES = frozenset((torch.bfloat16, torch.float16))


def cast(value: Any, wanted: Callable[[torch.dtype], torch.dtype]) -> Any:
    """`value` with its fp32 and half-precision tensors in the dtype wanted for theirs; containers are rebuilt."""

    def change(tensor: Tensor) -> Tensor:
        return tensor.to(wanted(tensor.dtype)) if tensor.dtype in HALVES or tensor.dtype == torch.float32 else tensor

    return rebuilt(value, change)


def tensors(value: Any) -> Iterator[Tensor]:
    """Every floating-point tensor in nested containers, in order."""
    return (each for each in values.tensors(value) if each.is_floating_point())


def name_of(dtype: torch.dtype) -> str:
    """`torch.bfloat16` -> "bfloat16"."""
    return str(dtype).removeprefix("torch.")

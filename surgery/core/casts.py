"""Tensors in nested containers, as hosts give them to their parts and get them back: found, and cast."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor

HALVES = frozenset((torch.bfloat16, torch.float16))


def cast(value: Any, wanted: Callable[[torch.dtype], torch.dtype]) -> Any:
    """`value` with its fp32 and half-precision tensors in the dtype wanted for theirs; containers are rebuilt."""
    if isinstance(value, Tensor):
        return value.to(wanted(value.dtype)) if value.dtype in HALVES or value.dtype == torch.float32 else value
    if isinstance(value, dict):
        changed = {key: cast(each, wanted) for key, each in value.items()}
        # A host's own output class (`ModelOutput`) is a dict that is made from its fields.
        return changed if type(value) is dict else type(value)(**changed)
    if isinstance(value, (list, tuple)):
        items = [cast(each, wanted) for each in value]
        return type(value)(*items) if hasattr(value, "_fields") else type(value)(items)
    return value


def tensors(value: Any) -> Iterator[Tensor]:
    """Every floating-point tensor in nested containers, in order."""
    if isinstance(value, Tensor):
        if value.is_floating_point():
            yield value
    elif isinstance(value, dict):
        for each in value.values():
            yield from tensors(each)
    elif isinstance(value, (list, tuple)):
        for each in value:
            yield from tensors(each)


def name_of(dtype: torch.dtype) -> str:
    """`torch.bfloat16` -> "bfloat16"."""
    return str(dtype).removeprefix("torch.")

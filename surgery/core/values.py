"""The tensors inside of what is given to a part: containers, outputs of hosts, and records of operations."""

from __future__ import annotations

import copy
from collections.abc import Callable, Hashable, Iterator
from dataclasses import fields, is_dataclass
from types import MappingProxyType
from typing import Any

import torch
from torch import Tensor

HALVES = frozenset((torch.bfloat16, torch.float16))
APART = MappingProxyType({"apart": True})
"""Metadata of a record's field that a part does not read: it may differ from call to call."""

Path = tuple[Any, ...]


def _fields(value: Any) -> list[str]:
    return [each.name for each in fields(value) if not each.metadata.get("apart")]


def leaves(value: Any, path: Path = ()) -> Iterator[tuple[Path, Any]]:
    """Everything in nested containers and dataclasses that is none itself, and where it lies."""
    if isinstance(value, dict):
        for key, each in value.items():
            yield from leaves(each, (*path, key))
    elif isinstance(value, (list, tuple)):
        for place, each in enumerate(value):
            yield from leaves(each, (*path, place))
    elif is_dataclass(value) and not isinstance(value, type):
        for name in _fields(value):
            yield from leaves(getattr(value, name), (*path, name))
    else:
        yield path, value


def tensors(value: Any) -> Iterator[Tensor]:
    """Every tensor in it, in order."""
    yield from (each for _, each in leaves(value) if isinstance(each, Tensor))


def floats(value: Any) -> Iterator[Tensor]:
    """Those of floating-point numbers."""
    return (each for each in tensors(value) if each.is_floating_point())


def rebuilt(value: Any, change: Callable[[Tensor], Tensor]) -> Any:
    """The same with other tensors; containers and dataclasses are new ones."""
    if isinstance(value, Tensor):
        return change(value)
    if isinstance(value, dict):
        changed = {key: rebuilt(each, change) for key, each in value.items()}
        # A host's own output class (`ModelOutput`) is a dict that is made from its fields.
        return changed if type(value) is dict else type(value)(**changed)
    if isinstance(value, (list, tuple)):
        items = [rebuilt(each, change) for each in value]
        return type(value)(*items) if hasattr(value, "_fields") else type(value)(items)
    if is_dataclass(value) and not isinstance(value, type):
        twin = copy.copy(value)
        for name in _fields(value):
            object.__setattr__(twin, name, rebuilt(getattr(value, name), change))
        return twin
    return value


def cast(value: Any, wanted: Callable[[torch.dtype], torch.dtype]) -> Any:
    """`value` with its fp32 and half-precision tensors in the dtype wanted for theirs; containers are rebuilt."""

    def change(tensor: Tensor) -> Tensor:
        return tensor.to(wanted(tensor.dtype)) if tensor.dtype in HALVES or tensor.dtype == torch.float32 else tensor

    return rebuilt(value, change)


def name_of(dtype: torch.dtype) -> str:
    """`torch.bfloat16` -> "bfloat16"."""
    return str(dtype).removeprefix("torch.")


def signature(value: Any) -> Hashable:
    """What a recorded call of a part holds good for: shapes, strides, types, devices, and all that is no tensor."""

    def told(leaf: Any) -> Hashable:
        if isinstance(leaf, Tensor):
            return leaf.shape, leaf.stride(), leaf.dtype, leaf.device
        try:
            hash(leaf)
        except TypeError:
            return id(leaf)
        return type(leaf), leaf

    return tuple((path, told(leaf)) for path, leaf in leaves(value))


def at(value: Any, path: Path) -> Any:
    """What lies at `path`."""
    for step in path:
        value = value[step] if isinstance(value, (dict, list, tuple)) else getattr(value, step)
    return value


def put(value: Any, path: Path, what: Any) -> None:
    """Set what lies at `path`; at the end of a list it is added."""
    home, last = at(value, path[:-1]), path[-1]
    if isinstance(home, list) and last == len(home):
        home.append(what)
    elif isinstance(home, (dict, list)):
        home[last] = what
    else:
        setattr(home, last, what)

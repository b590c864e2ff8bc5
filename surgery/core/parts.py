"""The large parts of a model, by the names that recipes use."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Any, Final, Literal, TypeVar, get_args

from pydantic import BeforeValidator

from surgery.errors import nearest

T = TypeVar("T", bound=str)
Part = Literal["encoder", "memory_attention", "memory_encoder", "mask_decoder"]
ENCODER: Final = "encoder"
ATTENTION: Final = "memory_attention"
MEMORY: Final = "memory_encoder"
DECODER: Final = "mask_decoder"
PARTS: tuple[Part, ...] = get_args(Part)
"""The parts of a model that `precision` and `compile` act on."""

LINEAR_PARTS: tuple[Part, ...] = (ENCODER, ATTENTION)
"""Those whose linear layers are a seam."""


def some_of(known: Sequence[T], what: str, value: Any) -> tuple[T, ...]:
    """A list of those that are known, checked and in their order. what: one of them is called. Raises ValueError."""
    words = ", ".join(known)
    if not isinstance(value, (list, tuple)):
        raise ValueError(f"expected a list of {what}s, got {value!r:.80}; known: {words}")
    for each in value:
        if each not in known:
            raise ValueError(f"unknown {what} {each!r:.80}{nearest(str(each), known)}; known: {words}")
    return tuple(each for each in known if each in value)


def each_part_once(value: Any) -> tuple[Part, ...]:
    """A list of parts, checked and in the order of `PARTS`. Raises ValueError."""
    found = some_of(PARTS, "part", value)
    if len(found) != len(value):
        raise ValueError(f"expected each part once, got {', '.join(value)}")
    return found


def some_parts(value: Any) -> tuple[Part, ...]:
    """The same of at least one part. Raises ValueError."""
    found = each_part_once(value)
    if not found:
        raise ValueError(f"expected a non-empty list out of {', '.join(PARTS)}; got {value!r:.80}")
    return found


Parts = Annotated[tuple[Part, ...], BeforeValidator(each_part_once)]
SomeParts = Annotated[tuple[Part, ...], BeforeValidator(some_parts)]

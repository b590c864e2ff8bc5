"""The large parts of a model, by the names that recipes use."""

from __future__ import annotations

from typing import Any, Final, Literal, get_args

from surgery.errors import nearest

Part = Literal["encoder", "memory_attention", "memory_encoder", "mask_decoder"]
ENCODER: Final = "encoder"
ATTENTION: Final = "memory_attention"
MEMORY: Final = "memory_encoder"
DECODER: Final = "mask_decoder"
PARTS: tuple[Part, ...] = get_args(Part)
"""The parts of a model that `precision` and `compile` act on."""

LINEAR_PARTS: tuple[Part, ...] = (ENCODER, ATTENTION)
"""Those whose linear layers are a seam."""


def each_part_once(value: Any) -> tuple[Part, ...]:
    """A list of parts, checked and in the order of `PARTS`. Raises ValueError."""
    if not isinstance(value, (list, tuple)):
        raise ValueError(f"expected a list of parts, got {value!r:.80}; known: {', '.join(PARTS)}")
    for part in value:
        if part not in PARTS:
            raise ValueError(f"unknown part {part!r:.80}{nearest(str(part), PARTS)}; known: {', '.join(PARTS)}")
    if len(set(value)) != len(value):
        raise ValueError(f"expected each part once, got {', '.join(value)}")
    return tuple(part for part in PARTS if part in value)


def some_parts(value: Any) -> tuple[Part, ...]:
    """The same of at least one part. Raises ValueError."""
    found = each_part_once(value)
    if not found:
        raise ValueError(f"expected a non-empty list out of {', '.join(PARTS)}; got {value!r:.80}")
    return found

"""Host-neutral parameter names of an encoder block: the stock `sam2` ones."""

from __future__ import annotations

_RENAMES = (
    ("layer_norm1.", "norm1."),
    ("layer_norm2.", "norm2."),
    ("mlp.proj_in.", "mlp.layers.0."),
    ("mlp.proj_out.", "mlp.layers.1."),
)


def transformers_block_key(name: str) -> str:
    """`layer_norm1.weight` -> `norm1.weight` and so on; names both hosts share pass through."""
    for ours, neutral in _RENAMES:
        if name.startswith(ours):
            return neutral + name.removeprefix(ours)
    return name

"""`adapter_model.safetensors`: the added tensors under neutral names in fp32, thresholds as 0-d fp64 tensors.

fp32 loses nothing and still fits: C^2 + 3.5 C parameters are 0.81 MB for base+ (C = 448), 1.34 MB for large (C = 576).
Corrections of reused stages (tile routing) add 1.15 MB and 1.91 MB.
"""

from __future__ import annotations

import json
import math
import struct
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load as decode_safetensors
from safetensors.torch import save as encode_safetensors
from torch import Tensor

from surgery.adapters.config import THRESHOLDS, AdapterConfig, read_bounded, thresholds_of
from surgery.core.host import finite
from surgery.errors import AdapterError
from surgery.operations import SparseWindowRouting
from surgery.operations.window_routing.correction import Corrections
from surgery.operations.window_routing.shortcut import SHORTCUTS

MAX_WEIGHTS = 64_000_000
_MAX_HEADER = 100_000
_WEIGHT_TYPES = {"F32": torch.float32, "BF16": torch.bfloat16, "F16": torch.float16}
_THRESHOLD_TYPES = {"F64": torch.float64, "F32": torch.float32}


def encode_tensors(entry: int, state: dict[str, Tensor], thresholds: dict[str, float]) -> bytes:
    """The file's bytes; the same for equal tensors."""
    prefix = _prefix(entry)
    tensors = {prefix + name: value.detach().to("cpu", torch.float32).contiguous() for name, value in state.items()}
    tensors |= {f"thresholds.{name}": torch.tensor(value, dtype=torch.float64) for name, value in thresholds.items()}
    return encode_safetensors(dict(sorted(tensors.items())), metadata={"format": "pt"})


def read_tensors(path: Path, config: AdapterConfig, routing: SparseWindowRouting) -> dict[str, Tensor]:
    """The shortcut's state dict, fp32: exactly the expected names, shapes and types, all finite.

    The header is checked before a tensor is decoded, so memory is bounded by the file's size (`MAX_WEIGHTS`).

    Raises:
        AdapterError: missing, malformed, other tensors than expected, or thresholds that differ between the files.
    """
    content = read_bounded(path, MAX_WEIGHTS, "a shortcut, which is about 1 MB")
    prefix = _prefix(config.entry_block)
    wanted: dict[str, tuple[int, ...]] = {f"thresholds.{name}": () for name in THRESHOLDS}
    wanted |= {prefix + name: tuple(value.shape) for name, value in _shapes(config).items()}
    _check_header(path, _header(path, content), wanted)
    try:
        found = decode_safetensors(content)
    except (SafetensorError, ValueError, KeyError, TypeError, RuntimeError, OverflowError) as error:
        raise AdapterError(f"{path}: not a readable safetensors file: {error}") from error
    for name, value in found.items():
        if not finite(value):
            raise AdapterError(f"{path}: {name} has values that are not finite")
    recipe_values = thresholds_of(routing)
    for name in THRESHOLDS:
        stored = (float(found.pop(f"thresholds.{name}")), config.thresholds[name], recipe_values[name])
        if any(not math.isclose(value, stored[2], rel_tol=1e-6) for value in stored):
            raise AdapterError(f"{path.parent}: {name} differs between weights, configuration and recipe: {stored}")
    return {name.removeprefix(prefix): value.to(torch.float32) for name, value in sorted(found.items())}


def _prefix(entry: int) -> str:
    return f"image_encoder.trunk.blocks.{entry}.shortcut."


def _shapes(config: AdapterConfig) -> dict[str, Tensor]:
    widths = [(side, channels) for side, channels in config.stages] if config.stages is not None else None
    with torch.device("meta"):
        shortcut = SHORTCUTS[config.shortcut](config.channels)
        if widths is not None:
            shortcut.corrections = Corrections(widths)
        return shortcut.state_dict()


def _header(path: Path, content: bytes) -> dict[str, Any]:
    length = struct.unpack("<Q", content[:8])[0] if len(content) >= 8 else None
    if length is None or length > len(content) - 8:
        raise AdapterError(f"{path}: not a readable safetensors file: its header ends after the file")
    if length > _MAX_HEADER:
        raise AdapterError(f"{path}: a header of {length} bytes; a shortcut's has about 1000")
    try:
        header = json.loads(content[8 : 8 + length].decode("utf-8"))
    except (ValueError, RecursionError) as error:
        raise AdapterError(f"{path}: not a readable safetensors file: its header is not JSON: {error}") from error
    if not isinstance(header, dict) or not all(isinstance(entry, dict) for entry in header.values()):
        raise AdapterError(f"{path}: not a readable safetensors file: its header is not a table of tensors")
    header.pop("__metadata__", None)
    return header


def _check_header(path: Path, header: dict[str, Any], wanted: dict[str, tuple[int, ...]]) -> None:
    if set(header) != set(wanted):
        extra, missing = (sorted(map(repr, names)) for names in (set(header) - set(wanted), set(wanted) - set(header)))
        raise AdapterError(f"{path}: tensors missing: {_some(missing)}; not expected: {_some(extra)}")
    for name, shape in wanted.items():
        entry = header[name]
        types = _WEIGHT_TYPES if shape else _THRESHOLD_TYPES
        if entry.get("shape") != list(shape) or entry.get("dtype") not in list(types):
            expected = next(iter(types.values()))
            raise AdapterError(
                f"{path}: {name} is {entry.get('dtype')!r:.40} {entry.get('shape')!r:.80}, expected {expected} {shape}"
            )


def _some(names: list[str]) -> str:
    if not names:
        return "none"
    text = ", ".join(f"{name:.120}" for name in names[:8])
    return f"[{text}]" + (f" and {len(names) - 8} more" if len(names) > 8 else "")


__all__ = ["MAX_WEIGHTS", "encode_tensors", "read_tensors"]

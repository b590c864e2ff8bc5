"""`adapter_model.safetensors`: the added tensors under neutral names in fp32, thresholds as 0-d fp64 tensors.

fp32 loses nothing and still fits: C^2 + 3.5 C parameters are 0.81 MB for base+ (C = 448), 1.34 MB for large (C = 576).
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save as encode_safetensors
from torch import Tensor, nn

from surgery.adapters.config import AdapterConfig, Thresholds, require_small, thresholds_of
from surgery.core.host import finite
from surgery.errors import AdapterError, WeightsError
from surgery.operations import SparseWindowRouting
from surgery.operations.window_routing.shortcut import SHORTCUTS

_MAX_WEIGHTS = 64_000_000


def shapes_of(tensors: Mapping[str, Tensor]) -> dict[str, tuple[int, ...]]:
    """Of every tensor, by name."""
    return {name: tuple(value.shape) for name, value in tensors.items()}


def encode(tensors: Mapping[str, Tensor]) -> bytes:
    """The file's bytes; the same for equal tensors."""
    return encode_safetensors(dict(sorted(tensors.items())), metadata={"format": "pt"})


def encode_tensors(entry: int, state: dict[str, Tensor], thresholds: Thresholds) -> bytes:
    """The same for a shortcut: its state dict and the thresholds."""
    prefix = _prefix(entry)
    tensors = {prefix + name: value.detach().to("cpu", torch.float32).contiguous() for name, value in state.items()}
    tensors |= {f"thresholds.{name}": torch.tensor(value, dtype=torch.float64) for name, value in thresholds.items()}
    return encode(tensors)


def read_tensors(path: Path, config: AdapterConfig, routing: SparseWindowRouting) -> dict[str, Tensor]:
    """The shortcut's state dict, fp32: exactly the expected names, shapes and types, all finite.

    Names, shapes and types are checked before a tensor is decoded.

    Raises:
        AdapterError: missing, malformed, other tensors than expected, or thresholds that differ between the files.
    """
    prefix = _prefix(config.entry_block)
    wanted: dict[str, tuple[int, ...]] = {f"thresholds.{name}": () for name in config.thresholds}
    wanted |= {prefix + name: shape for name, shape in _shapes(config).items()}
    found = read_exactly(path, wanted, _MAX_WEIGHTS, "a shortcut, which is about 1 MB")
    configured, chosen = dict[str, Any](config.thresholds), dict[str, Any](thresholds_of(routing))
    for name, value in chosen.items():
        stored = (float(found.pop(f"thresholds.{name}")), configured[name], value)
        if not all(math.isclose(each, value, rel_tol=1e-6) for each in stored):
            raise AdapterError(f"{path.parent}: {name} differs between weights, configuration and recipe: {stored}")
    return {name.removeprefix(prefix): value.to(torch.float32) for name, value in sorted(found.items())}


def read_exactly(path: Path, wanted: Mapping[str, tuple[int, ...]], most: int, what: str) -> dict[str, Tensor]:
    """Tensors of a file by name: exactly those of `wanted` (shapes by name), all finite; 0-d ones may be fp64.

    most: bytes of the file. what: it should hold, for messages. Raises AdapterError, see `read_tensors`.
    """
    require_small(path, most, what)
    try:
        with safe_open(path, framework="pt") as file:
            names = set(file.keys())
            if names != set(wanted):
                raise AdapterError(
                    f"{path}: tensors missing: {_some(set(wanted) - names)}; not expected: {_some(names - set(wanted))}"
                )
            for name, shape in wanted.items():
                _check(path, name, shape, file.get_slice(name))
            found = {name: file.get_tensor(name) for name in wanted}
    except (SafetensorError, ValueError, KeyError, TypeError, RuntimeError, OverflowError, OSError) as error:
        raise AdapterError(f"{path}: not a readable safetensors file: {error}") from error
    for name, value in found.items():
        if not finite(value):
            raise AdapterError(f"{path}: {name} has values that are not finite")
    return found


def weights_of(module: nn.Module) -> dict[str, Tensor]:
    """The state dict of a module as an adapter holds it: fp32, on the CPU."""
    return {name: value.detach().to("cpu", torch.float32) for name, value in module.state_dict().items()}


def trained(module: nn.Module, what: str) -> dict[str, Tensor]:
    """The same of a module that was trained. Raises WeightsError: `what` has values that are not finite."""
    tensors = weights_of(module)
    for name, value in tensors.items():
        if not finite(value):
            raise WeightsError(
                f"{what}: {name} has values that are not finite; an adapter with them could not be loaded"
            )
    return tensors


def _prefix(entry: int) -> str:
    return f"image_encoder.trunk.blocks.{entry}.shortcut."


def _shapes(config: AdapterConfig) -> dict[str, tuple[int, ...]]:
    with torch.device("meta"):
        shortcut = SHORTCUTS[config.shortcut](config.channels)
        if config.runs > 1:
            shortcut.parts = nn.ModuleList(SHORTCUTS[config.shortcut](config.channels) for _ in range(config.runs))
        return shapes_of(shortcut.state_dict())


def _check(path: Path, name: str, shape: tuple[int, ...], entry: Any) -> None:
    if entry.get_shape() != list(shape) or entry.get_dtype() not in (
        ["F32", "BF16", "F16"] if shape else ["F64", "F32"]
    ):
        expected = torch.float32 if shape else torch.float64
        raise AdapterError(f"{path}: {name} is {entry.get_dtype()} {entry.get_shape()}, expected {expected} {shape}")


def _some(names: set[str]) -> str:
    text = ", ".join(f"{name!r:.120}" for name in sorted(names)[:8])
    return (f"[{text}]" if names else "none") + (f" and {len(names) - 8} more" if len(names) > 8 else "")

"""Loads the golden fixtures made with the published code (see shared/parity/README.md)."""

from __future__ import annotations

import importlib.util
import json
from typing import Any

import numpy as np
import torch
from safetensors.numpy import load_file

from tests.conftest import shared

WEIGHTS_SEED, INPUT_SEED = 2602, 77


def weights_module() -> Any:
    path = shared("parity", "weights.py")
    spec = importlib.util.spec_from_file_location("parity_weights", path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def manifest(name: str) -> dict[str, Any]:
    return json.loads(shared("parity", "manifest.json").read_text())[name]


def arrays(name: str) -> dict[str, np.ndarray]:
    return load_file(shared("parity", f"{name}.safetensors"))


def tensors(name: str) -> dict[str, torch.Tensor]:
    return {key: torch.from_numpy(value) for key, value in arrays(name).items()}


def seeded_input(name: str, shape: tuple[int, ...], kind: str, digest: str | None = None) -> torch.Tensor:
    module = weights_module()
    array = module.seeded_array(name, shape, INPUT_SEED, kind)
    assert digest is None or module.digest(array) == digest, f"numpy makes another {name} here than in the manifest"
    return torch.from_numpy(array)


def stock_predictor(size: str) -> Any:
    """A stock predictor of `size` ("b+", "l") with the fixtures' weights."""
    from sam2.build_sam import build_sam2_video_predictor

    model = build_sam2_video_predictor(
        f"configs/sam2.1/sam2.1_hiera_{size}.yaml", None, device="cpu", apply_postprocessing=False
    )
    return weights_module().fill_(model, WEIGHTS_SEED).eval()


def relative(mine: torch.Tensor, reference: torch.Tensor) -> float:
    """The manifest's error: max |a - b| / max |b|."""
    return ((mine - reference).abs().max() / reference.abs().max()).item()

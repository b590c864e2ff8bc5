"""A miniature SAM 3 tracker: a ViT of windowed and global layers before the tracker of the embedded SAM 2 miniature.

It is of the repository and of no package: weights in `benchmarks/weights`, made by `benchmarks.training.distil`.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from surgery.demo.model import read_weights
from surgery.errors import ModelLoadError
from surgery.hosts.transformers_sam3.loader import Sam3, Sam3TrackerLoader

LOADER = Sam3TrackerLoader()
WEIGHTS = Path(__file__).parent / "weights" / "sam3-miniature.safetensors"
"""fp16; the encoder by its own names, the rest by those of stock `sam2`."""

SIZE = Sam3(
    width=192,
    heads=6,
    mlp=256,
    layers=9,
    global_layers=(2, 5, 8),
    window=4,
    side=192,
    patch=16,
    trained=64,
    hidden=128,
    memory_layers=3,
    memory_mlp=256,
    decoder_mlp=2048,
)
"""12 x 12 tokens in 3 x 3 windows; layers 2 and 5 are global within the span that is routed, 8 is its end."""


def build(seed: int = 0) -> Any:
    """Return the miniature with random weights, fp32, on the CPU, in eval mode."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return LOADER.build(SIZE).eval()


def load(weights: Path = WEIGHTS) -> Any:
    """Return the miniature with trained weights; a file that does not fit is a ModelLoadError."""
    model = build()
    try:
        model.load_state_dict(LOADER.from_neutral(read_weights(weights)))
    except RuntimeError as error:
        raise ModelLoadError(f"{weights} does not hold weights of the SAM 3 miniature: {error}") from error
    return model

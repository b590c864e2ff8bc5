"""The demo model: SAM 2.1 at a ninth of the size of Hiera-T, built in any host that can.

The switches are those of the released SAM 2.1 configurations; only widths, depths and the image size are smaller.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from surgery.errors import ModelLoadError

if TYPE_CHECKING:
    import torch

IMAGE_SIZE = 256
"""Side of the model's input in pixels: a stage-3 grid of 16 x 16 tokens, so 4 x 4 windows of 4 x 4."""
BLOCKS = (1, 2, 11, 1)
WINDOWS = (8, 4, 4, 2)
GLOBALS = (8, 13)
WEIGHTS = Path(__file__).with_name("weights.safetensors")
"""Where the shipped weights lie: fp16 safetensors with stock `sam2` key names."""


def build(host: str | None = None, vos: bool = False, seed: int = 0) -> Any:
    """Return the demo model with random weights, fp32, on the CPU, in eval mode.

    Args:
        host: its name; None the first that is installed, `"sam2"` before `"transformers"`.
        vos: give the predictor that compiles itself whole, which only stock sam2 has.
        seed: of the random weights. The hosts draw them differently.

    Raises:
        ModelLoadError: the host is unknown, or `vos` is asked of one that has no such predictor.
        MissingLibraryError: the host library is not installed.
    """
    import torch

    from surgery.hosts import loader_of
    from surgery.hosts.sam21 import Sam21

    size = Sam21("", 24, 1, BLOCKS, GLOBALS, WINDOWS, side=IMAGE_SIZE, hidden=128, layers=3, mlp=256)
    loader = loader_of(host, vos)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return loader.build(size, vos).eval()


def load(host: str | None = None, vos: bool = False, weights: str | Path | None = None) -> Any:
    """Return the demo model with its trained weights; other arguments as in `build`.

    With point and box prompts both hosts give the same masks. A mask prompt they store differently: stock sam2 takes
    the pointer of the single-mask token and a memory of the mask at a quarter of its size, transformers takes the best
    candidate's pointer and the whole mask; the demo model is trained on both.

    Args:
        weights: a safetensors file with stock key names; None takes the shipped one.

    Raises:
        ModelLoadError: as in `build`, or the weights file is missing or does not fit the architecture.
        MissingLibraryError: the host library is not installed.
    """
    from surgery.hosts import loader_of

    path = Path(weights) if weights is not None else WEIGHTS
    state = read_weights(path)
    model = build(host, vos)
    try:
        model.load_state_dict(loader_of(host, vos).from_neutral(state))
    except RuntimeError as error:
        raise ModelLoadError(f"{path} does not hold weights of the demo model: {error}") from error
    return model


def read_weights(path: str | Path) -> dict[str, torch.Tensor]:
    """Return the tensors of a weights file as fp32, by stock key name; a missing file is a ModelLoadError."""
    from safetensors.torch import load_file

    if not Path(path).is_file():
        raise ModelLoadError(f"there are no demo weights at {path}: expected a safetensors file with stock key names")
    return {key: value.float() for key, value in load_file(path).items()}

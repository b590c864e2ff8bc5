"""A picture as models take it: a square of normalised values."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
import torch
from PIL import Image
from torch import Tensor


def normalised(
    frame: npt.NDArray[np.uint8], size: int, how: Image.Resampling, mean: Sequence[float], std: Sequence[float]
) -> Tensor:
    """RGB uint8 [H, W, 3] -> fp32 [3, size, size], resized by PIL as `how` says, less `mean`, over `std`."""
    resized = np.asarray(Image.fromarray(frame).resize((size, size), how), dtype=np.float32) / 255.0
    found = (resized - np.array(mean, dtype=np.float32)) / np.array(std, dtype=np.float32)
    return torch.from_numpy(found.transpose(2, 0, 1).copy())

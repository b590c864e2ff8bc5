"""Window ids against 256 golden sets of the published selection."""

from __future__ import annotations

import numpy as np
import torch

from surgery.core.windows import WindowGrid
from surgery.operations.window_routing.router import mask_windows, salient_windows
from tests.parity.fixtures import arrays


def test_window_ids_are_exact() -> None:
    data = arrays("window_selection")
    cases = [name for name in data if name.startswith("out")]
    assert len(cases) == 256
    for name in cases:
        number, window, dilated, theta = name[3:].split(".")
        key = f"in{number}"
        masks = torch.from_numpy(np.unpackbits(data[f"{key}.masks"], axis=-1)).bool().reshape(-1, 3, 256, 256)
        scores = torch.from_numpy(data[f"{key}.scores"]).flatten()
        saliency = torch.from_numpy(data[f"{key}.saliency"]).flatten(-2)
        grid = WindowGrid(64, 64, int(window[1:]))
        taken = mask_windows(list(masks.any(1)), grid, 5 if dilated == "dil1" else 1)
        if not taken.any() or bool((scores < 5).any()):
            taken = taken | salient_windows(saliency, grid, int(theta[5:]) / 10)
        assert taken.nonzero().flatten().tolist() == data[name].tolist(), name

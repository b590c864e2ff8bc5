"""torch.compile of the encoder: right, and a bounded number of graphs while window counts change."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch._dynamo.testing import CompileCounter

import surgery
from surgery.api import require_view
from tests.hosts.drive import PADDED, UNPADDED, make, video
from tests.hosts.test_hosts import close


def encoder(model: Any) -> Any:
    return model.image_encoder.trunk if hasattr(model, "image_encoder") else model.vision_encoder.backbone


@pytest.mark.parametrize("host", ["sam2", "transformers"])
@pytest.mark.parametrize("windows", [UNPADDED, PADDED], ids=["unpadded", "padded"])
@pytest.mark.parametrize("recipe", ["balanced", "published-base-plus"])
def test_compiled_encoder_matches_and_does_not_recompile(host: str, windows: tuple[int, ...], recipe: str) -> None:
    frames = video(11)
    eager, compiled = make(host, windows), make(host, windows)
    for driver in (eager, compiled):
        surgery.sparsify(driver.model, recipe)
    torch._dynamo.reset()
    counter = CompileCounter()
    encoder(compiled.model).compile(backend=counter)
    count = require_view(eager.model).binding.grid.count
    schedule = [[1], [0, 1], [2, 5, 7], [0, 3, 4, 8], [1, 2, 3, 4, 5], [3], [0, 8], list(range(count - 1)), [2, 4, 6]]
    sessions = [driver.session(frames) for driver in (eager, compiled)]
    for driver, session in zip((eager, compiled), sessions, strict=True):
        driver.click(session, 0, {1: (40, 110)})
    runs = [driver.propagate(session) for driver, session in zip((eager, compiled), sessions, strict=True)]
    graphs = []
    for number in range(11):
        forced = schedule[number - 2] if number >= 2 else None
        for driver in (eager, compiled):
            require_view(driver.model).binding.forced = forced
        masks = [next(run)[1][1] for run in runs]
        close([masks[0]], [masks[1]], 5e-5)
        graphs.append(counter.frame_count)
    assert graphs[-1] <= 6, graphs
    assert graphs[-1] == graphs[5], f"graphs grew while only window counts changed: {graphs}"

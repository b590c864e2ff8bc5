"""torch.compile of the encoder: right, and a bounded number of graphs while window counts change."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from torch._dynamo.testing import CompileCounter

import surgery
from surgery.hosts import view_of
from tests.hosts.drive import HOSTS, PADDED, UNPADDED, Driver, make, video
from tests.hosts.routes import encoder, force, router_of
from tests.hosts.sessions import close


def graphs_compiled(
    eager: Driver, compiled: Driver, frames: Tensor, schedule: list[list[int]], counter: CompileCounter
) -> list[int]:
    """Track with both, windows forced as scheduled from the third frame on; assert equal masks on every frame.

    Returns the graphs compiled by the end of each of the frames.
    """
    runs = []
    for driver in (eager, compiled):
        session = driver.session(frames)
        driver.click(session, 0, {1: (40, 110)})
        runs.append(driver.propagate(session))
    graphs = []
    for number in range(len(schedule) + 2):
        forced = schedule[number - 2] if number >= 2 else None
        for driver in (eager, compiled):
            force(driver.model, forced)
        masks = [next(run)[1][1] for run in runs]
        close([masks[0]], [masks[1]], 5e-5)
        graphs.append(counter.frame_count)
    return graphs


@pytest.mark.parametrize("host", HOSTS)
@pytest.mark.parametrize("windows", [UNPADDED, PADDED], ids=["unpadded", "padded"])
@pytest.mark.parametrize("recipe", ["balanced", "published-base-plus"])
def test_compiled_encoder_matches_and_does_not_recompile(host: str, windows: tuple[int, ...], recipe: str) -> None:
    frames = video(14)
    eager, compiled = make(host, windows), make(host, windows)
    for driver in (eager, compiled):
        surgery.sparsify(driver.model, recipe)
    torch._dynamo.reset()
    counter = CompileCounter()
    encoder(compiled.model).compile(backend=counter)
    count = router_of(eager.model).grid.count
    # One window or several, computed or left: each kind, then other counts.
    left = [[*range(count - 1)], [*range(1, count)]]
    schedule = [[1], [0, 1], *left, [2, 5, 7], [0, 3, 4, 8], [1, 2, 3, 4, 5], [3], [0, 8], [2, 4, 6], *left]
    graphs = graphs_compiled(eager, compiled, frames, schedule, counter)
    assert graphs[-1] <= 7, graphs
    assert graphs[-1] == graphs[7], f"graphs grew while only window counts changed: {graphs}"


@pytest.mark.parametrize("host", HOSTS)
def test_a_compiled_mask_decoder_does_not_recompile_from_frame_to_frame(host: str) -> None:
    """Evidence is recorded outside of it; what its attentions read is noted in a list of one length."""
    driver, plain = make(host), make(host)
    for each in (driver, plain):
        surgery.sparsify(each.model, "balanced")
    torch._dynamo.reset()
    counter = CompileCounter()
    decoder = view_of(driver.model).mask_decoder()
    decoder.compile(backend=counter)
    masks = driver.track(video(4))
    graphs = counter.frame_count
    assert graphs > 0
    close(masks + driver.track(video(9)), plain.track(video(4)) + plain.track(video(9)), 5e-5)
    assert counter.frame_count == graphs

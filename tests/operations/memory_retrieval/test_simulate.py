"""What retrieval settings are predicted to read."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from surgery.operations.memory_retrieval import SparseMemoryRetrieval
from surgery.operations.memory_retrieval.bound import DoubtSeen
from surgery.operations.memory_retrieval.simulate import RetrievalSimulation, keys_kept, share_of

HOST: Any = SimpleNamespace(bank_size=lambda: 7, frame_tokens=lambda: 100)


def settings(unsure: float | None) -> SparseMemoryRetrieval:
    return SparseMemoryRetrieval(keep=0.1, keep_conditioning=0.4, warm_up=False, unsure=unsure)


@pytest.mark.parametrize(("unsure", "doubts"), [(None, 1.0), (0.7, 0.7), (0.7, 0.0)])
def test_sure_masks_read_what_the_shares_say(unsure: float | None, doubts: float) -> None:
    simulation = RetrievalSimulation(HOST, [settings(unsure)])
    for read in range(1, 10):
        simulation.noted(DoubtSeen(doubts, read))
    assert simulation.predict(settings(unsure), [10]).kept == pytest.approx(keys_kept(settings(unsure), 10, 7, 100))


def test_unsure_masks_read_everything_on_their_frames() -> None:
    simulation = RetrievalSimulation(HOST, [settings(0.7)])
    for read in range(1, 10):
        simulation.noted(DoubtSeen(0.9 if read > 5 else 0.1, read))
    expected = [1.0 if read > 5 else share_of(settings(0.7), read, 7, 100) for read in range(1, 10)]
    assert simulation.predict(settings(0.7), [10]).kept == pytest.approx(sum(expected) / 9)
    every = RetrievalSimulation(HOST, [settings(0.7)])
    for read in range(1, 10):
        every.noted(DoubtSeen(0.9, read))
    found = every.predict(settings(0.7), [10])
    assert found.kept == pytest.approx(1.0) and found.risk == 0.0

"""What retrieval settings would have kept and lost, from the saliency that dense passes measured."""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from surgery.core.host import HostView
from surgery.core.observer import Prediction, Simulation
from surgery.operations.memory_retrieval.bound import DoubtSeen, SaliencySeen
from surgery.operations.memory_retrieval.saliency import kept_count

if TYPE_CHECKING:
    from surgery.operations.memory_retrieval import SparseMemoryRetrieval


class RetrievalSimulation(Simulation):
    """Sums up how much attention the best tokens of a memory frame hold. shares: of the tokens, to measure that for."""

    def __init__(self, host: HostView, settings: Sequence[SparseMemoryRetrieval]) -> None:
        self._host = host
        self.doubts: list[DoubtSeen] = []
        shares = {share for each in settings for share in (each.keep, each.keep_conditioning) if share < 1.0}
        self.held: dict[tuple[bool, float], list[float]] = {
            (conditioning, share): [] for conditioning in (False, True) for share in sorted(shares)
        }

    def noted(self, what: Any) -> None:
        """See `Observer.noted`."""
        if isinstance(what, DoubtSeen):
            self.doubts.append(what)
        if not isinstance(what, SaliencySeen):
            return
        cumulative = what.saliency.sort(descending=True).values.cumsum(-1)
        for (conditioning, share), held in self.held.items():
            if conditioning == what.conditioning:
                held.append(float(cumulative[kept_count(len(what.saliency), share) - 1]))

    def predict(self, settings: SparseMemoryRetrieval, lengths: Sequence[int]) -> Prediction:
        """See `Simulation.predict`: what pruning drops of a full bank's attention at its first read is at risk."""
        bank, lost = self._host.bank_size(), 0.0
        # The newest frame is never pruned.
        for conditioning, share, frames in ((False, settings.keep, bank - 2), (True, settings.keep_conditioning, 1)):
            held = self.held.get((conditioning, share))
            if share < 1.0 and held:
                lost += frames * (1.0 - statistics.fmean(held))
        kept = statistics.fmean(keys_kept(settings, length, bank, self._host.frame_tokens()) for length in lengths)
        limit = settings.unsure if settings.unsure is not None else math.inf
        unsure = [seen for seen in self.doubts if not seen.doubt <= limit]
        calls, tokens = max(1, len(self.doubts)), self._host.frame_tokens()
        restored = sum(1.0 - share_of(settings, seen.frames, bank, tokens) for seen in unsure) / calls
        return Prediction(min(1.0, kept + restored), (1.0 - len(unsure) / calls) * lost / bank)


def keys_kept(settings: SparseMemoryRetrieval, frames: int, bank: int, tokens: int) -> float:
    """Mean fraction of spatial keys read over a clip prompted on its first frame, one conditioning frame.

    frames: of the clip. bank: frames of a full memory bank. tokens: of a frame.
    """
    reads = [share_of(settings, index, bank, tokens) for index in range(1, max(2, frames))]
    return statistics.fmean(reads)


def share_of(settings: SparseMemoryRetrieval, read: int, bank: int, tokens: int) -> float:
    """The same of the `read`-th read after the prompt, from 1: one conditioning frame, as many tracked ones as fit."""
    keep = kept_count(tokens, settings.keep) / tokens if settings.keep < 1.0 else 1.0
    tracked = min(read - 1, bank - 1)
    warm = not settings.warm_up or read - 2 >= bank - 2
    first = settings.keep_conditioning if warm and read > 1 else 1.0
    return (first + min(1, tracked) + max(0, tracked - 1) * (keep if warm else 1.0)) / (1 + tracked)

"""Sparse Memory Retrieval: which tokens of older memory frames are read."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import nn

from surgery.core.host import HostView
from surgery.core.operation import Bound
from surgery.core.surgery import Surgery
from surgery.operations.memory_retrieval.bound import BoundRetrieval
from surgery.operations.memory_retrieval.settings import RetrievalSettings
from surgery.operations.memory_retrieval.simulate import RetrievalSimulation

__all__ = ["SparseMemoryRetrieval"]


class SparseMemoryRetrieval(RetrievalSettings):
    """Sparse Memory Retrieval: older memory frames keep only the tokens that mattered (Efficient-SAM2, section 3.3)."""

    def check(self, host: HostView) -> list[nn.Module]:
        """See `Operation.check`: every cross-attention of memory attention."""
        return list(host.cross_attentions())

    def bind(self, surgery: Surgery, before: Bound[Any] | None) -> BoundRetrieval:
        """See `Operation.bind`."""
        return BoundRetrieval(self, surgery)

    @classmethod
    def simulate(cls, surgery: Surgery, candidates: Sequence[Any]) -> RetrievalSimulation:
        """See `Operation.simulate`."""
        return RetrievalSimulation(surgery.host, candidates)

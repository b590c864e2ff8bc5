"""Sparse Memory Retrieval: which tokens of older memory frames are read."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar, Literal

from pydantic import Field, model_validator
from torch import nn

from surgery.core.evidence import EvidenceSettings
from surgery.core.host import HostView
from surgery.core.operation import MOST, Bound, Fraction, Operation, percent
from surgery.core.surgery import Surgery
from surgery.operations.memory_retrieval.bound import BoundRetrieval
from surgery.operations.memory_retrieval.simulate import RetrievalSimulation


class SparseMemoryRetrieval(Operation):
    """Sparse Memory Retrieval: older memory frames keep only the tokens that mattered (Efficient-SAM2, section 3.3)."""

    type: Literal["sparse_memory_retrieval"] = "sparse_memory_retrieval"
    keep: Fraction = Field(0.05, description="share of the tokens kept of each older memory frame; 1: all")
    keep_conditioning: Fraction = Field(
        1.0, description="the same for conditioning frames, measured when first read; 1: whole"
    )
    saliency: Literal["mean", "object"] = Field(
        "mean",
        description="what is kept: what all queries read most, as published, or of tracked frames an even sample that "
        "stands for all and of prompted ones what the object's queries read most",
    )
    warm_up: bool = Field(
        True, description="prune only after as many frames were measured as the bank's middle holds (5)"
    )
    unsure: Fraction | None = Field(
        None,
        description="an object whose last mask is unsure over more than this share of it reads all memory; null: never",
    )
    query_stride: int = Field(1, ge=1, le=MOST, description="saliency averages every n-th query only; 1: all")

    alias: ClassVar[str] = "retrieval"
    share: ClassVar[str | None] = "keys"

    @model_validator(mode="before")
    @classmethod
    def _of_before(cls, data: Any) -> Any:
        """Recipes that gave pruned frames their weight back keep better tokens instead."""
        if not isinstance(data, dict) or "rebalance" not in data:
            return data
        better = {"saliency": "object"} if data["rebalance"] is True else {}
        return better | {key: data[key] for key in data if key != "rebalance"}

    @property
    def approximate(self) -> bool:
        """Whether keys may be left out."""
        return min(self.keep, self.keep_conditioning) < 1.0

    @property
    def clause(self) -> str:
        """See `Operation.clause`."""
        if min(self.keep, self.keep_conditioning) == 1.0:
            return "all memory read"
        kept = {"older frames": self.keep, "prompted frames": self.keep_conditioning}
        pruned = [f"of {frames} pruned to {percent(share)}" for frames, share in kept.items() if share < 1.0]
        whole = ", whole while the mask is unsure" if self.unsure is not None else ""
        return f"memory {' and '.join(pruned)}" + whole

    @property
    def evidence(self) -> EvidenceSettings | None:
        """See `Operation.evidence`."""
        wanted = self.unsure is not None or self.saliency == "object"
        return EvidenceSettings(doubt=self.unsure is not None) if wanted else None

    def structure(self) -> dict[str, Any]:
        """See `Operation.structure`."""
        return self.model_dump(mode="json", include={"query_stride", "saliency"})

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

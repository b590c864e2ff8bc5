"""Sparse Query Routing: for which tokens memory attention runs."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, ClassVar, Literal

from pydantic import Field

from surgery.core.operation import MOST, Fraction, Operation, percent
from surgery.operations.window_routing import SparseWindowRouting

if TYPE_CHECKING:
    from torch import nn

    from surgery.hosts.base import HostView


class SparseQueryRouting(Operation):
    """Memory attention runs for tokens of computed windows and near the object; the others keep their last output."""

    type: Literal["sparse_query_routing"] = "sparse_query_routing"
    margin: int = Field(2, ge=0, le=255, description="tokens by which the object's mask candidates are widened")
    rolling: int = Field(
        1, ge=0, le=MOST, description="further windows whose tokens are queries, those that waited longest"
    )
    budget: Fraction = Field(
        1.0,
        description="largest share of the tokens that are queries; 1: no limit",
    )

    alias: ClassVar[str] = "queries"

    @property
    def approximate(self) -> bool:
        """Always: tokens may keep their last output."""
        return True

    @property
    def clause(self) -> str:
        """See `Operation.clause`."""
        if self.budget < 1.0:
            return f"memory attention for at most {percent(self.budget)} of the tokens"
        return "memory attention for computed windows and near the object"

    def beside(self, others: Sequence[Operation]) -> None:
        """Raises ValueError without window routing, whose computed windows are queries."""
        if not any(isinstance(other, SparseWindowRouting) and other.windows == "object" for other in others):
            raise ValueError(
                "sparse_query_routing needs sparse_window_routing with windows: object, whose computed windows are its "
                "queries"
            )

    def check(self, view: HostView) -> list[nn.Module]:
        """See `Operation.check`: every self-attention of memory attention."""
        return list(view.self_attentions())

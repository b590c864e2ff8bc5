"""Query routing: memory attention runs for tokens that changed or may hold the object; the others keep their output.

In self-attention the other tokens stay keys, by the input they last had in that layer: among the queries alone, an
object loses its surroundings (benchmarks/README.md has the measurement). Positions are explicit indices into the
token grid, for queries and keys alike.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import Tensor

from surgery.core.constants import steps
from surgery.core.session import State
from surgery.core.windows import WindowGrid

BUCKETS = 64
"""Query counts are rounded up to a multiple of this part of all tokens: few shapes for kernels and compiled graphs."""


@dataclass(eq=False)
class QueryMemory(State):
    """What one object in one direction remembers of its last memory attention.

    frame: when; None before the first. output: [T, C] conditioned features, each as it was last computed; inputs: the
    same of what every layer's self-attention was given. ages: per window, frames since all its tokens were queries.
    picture: fp32 [3, H, W] of the frame when each token was last a query, where no window routing says what changed.
    """

    frame: int | None = None
    output: Tensor | None = None
    inputs: tuple[Tensor, ...] = ()
    ages: tuple[int, ...] = ()
    picture: Tensor | None = None


@dataclass(frozen=True, eq=False)
class ObjectRegion:
    """Where an object may be: tokens, bool [T]; counts, how many of them lie in each window."""

    tokens: Tensor
    counts: tuple[int, ...]


@dataclass(eq=False)
class FrameRegions(State):
    """What is known of the frame that was last encoded.

    frame: which. windows: that were computed, all of whose tokens are queries; None when every token of every object
    is. grid: of the windows. budget: share of the tokens that regions may fill up to. regions: by object. changed: fp32
    [T], how much each token's picture changed since its window was computed, or None. picture: fp32 [3, H, W] of the
    frame, where nobody else says what changed.
    """

    frame: int | None = None
    windows: tuple[int, ...] | None = None
    grid: WindowGrid | None = None
    budget: float = 1.0
    regions: dict[int, ObjectRegion] = field(default_factory=dict)
    changed: Tensor | None = None
    picture: Tensor | None = None

    def removed(self, obj_id: int) -> None:
        """See `State.removed`."""
        self.regions = {other: region for other, region in self.regions.items() if other != obj_id}


@dataclass(eq=False)
class QueryRoute:
    """The queries of one memory attention call.

    index: int64 [K], rising, the tokens that are queries; tokens: T. output, inputs: those of the frame before, see
    `QueryMemory`; each layer replaces its inputs by new ones.
    """

    index: Tensor
    tokens: int
    output: Tensor
    inputs: list[Tensor]

    def merged(self, computed: Tensor) -> Tensor:
        """Conditioned features of the queries [K, C] -> of all tokens [T, C]."""
        return self.output.to(computed.dtype).index_copy(0, self.index, computed)

    def renewed(self, tokens: Tensor, layer: int) -> Tensor:
        """Self-attention inputs of the queries [K, C] -> of all tokens [T, C]."""
        self.inputs[layer] = self.inputs[layer].to(tokens.dtype).index_copy(0, self.index, tokens)
        return self.inputs[layer]


def query_count(tokens: int, certain: int, reached: int, budget: float = 1.0, fill: bool = False) -> int:
    """Queries of a frame: `certain` and `reached` tokens, rounded up to a bucket, at most all `tokens`.

    budget: share of the tokens that the reached ones may fill up to. fill: fill it up with others, unless it is all.
    """
    bucket = max(1, tokens // BUCKETS)
    reached = tokens if fill and budget < 1.0 else reached
    wanted = max(certain, min(certain + reached, round(budget * tokens)))
    return min(tokens, -(-wanted // bucket) * bucket)


def query_tokens(certain: Tensor, reached: Tensor, count: int, changed: Tensor | None = None) -> Tensor:
    """The tokens that are queries, without asking the device how many there are.

    Args:
        certain: int64 [n] tokens of computed windows. reached: bool [T], see `ObjectRegion`.
        count: how many to take: all certain ones, then reached ones, then others; among equals the first, or
        changed: fp32 [T], not negative: those with the largest values.

    Returns:
        int64 [count], rising.
    """
    tokens = reached.shape[0]
    order = steps(tokens, reached.device, torch.float32)
    if changed is not None:
        order = torch.empty_like(order).index_copy(0, changed.argsort(descending=True, stable=True), order)
    priority = reached.to(torch.float32).index_fill(0, certain, 2.0)
    return (priority * tokens - order).topk(count, sorted=False).indices.sort().values

"""What a skipped token returns: what a run of blocks last did, corrected by what a shortcut says has changed.

A run is the whole span or, with dense inner global blocks, the windowed blocks between two of them. With its input x,
its output y and a shortcut S, a skipped token returns S(x) and the y' - S(x') that it reuses (see `matching`), primes
of when it was last computed.
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from surgery.core.windows import Packing
from surgery.operations.window_routing.matching import Matching, normed


@dataclass(eq=False)
class RunMemory:
    """What a video remembers of a run: per token, of when its window was last computed.

    reused: [H * W, C] output of the run less that of the shortcut. entering: [H * W, C] input of the run, normed.
    """

    reused: Tensor
    entering: Tensor

    def skipped(self, tokens: Tensor, branch: Tensor, matching: Matching) -> Tensor:
        """What skipped tokens [M, C] return, whose shortcut's output is `branch`, [M, C]."""
        return branch + matching.reused(normed(tokens), self.entering, self.reused)

    def renewed(self, packing: Packing, chosen: Tensor, reused: Tensor, entering: Tensor) -> RunMemory:
        """With what was computed: [N, C] each, at the places `chosen`, int64 [N]. packing: of their windows."""
        return RunMemory(packing.renewed(self.reused, reused, chosen), packing.renewed(self.entering, entering, chosen))


def noted(entering: Tensor, leaving: Tensor, branch: Tensor) -> RunMemory:
    """Of a run that was computed for every token. Args: [H * W, C], its input, its output, and the shortcut's."""
    return RunMemory(leaving - branch, normed(entering))

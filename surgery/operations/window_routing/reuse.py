"""What a skipped token returns: what a run of blocks last did, corrected by what a shortcut says has changed.

A run is the whole span or, with dense inner global blocks, the windowed blocks between two of them. With its input x,
its output y and a shortcut S, a skipped token returns S(x) and the y' - S(x') that it reuses (see `matching`), primes
of when it was last computed.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor

from surgery.core.windows import Packing
from surgery.operations.window_routing.matching import Matching, normed


@dataclass(eq=False)
class RunMemory:
    """What a video remembers of a run: per token, of when its window was last computed.

    reused: [H * W, C] output of the run less that of the shortcut. entering: [H * W, D] what tokens are matched by, see
    `compared`: input of the run.
    """

    reused: Tensor
    entering: Tensor

    def skipped(self, tokens: Tensor, branch: Tensor, matching: Matching) -> Tensor:
        """What skipped tokens [M, C] return, whose shortcut's output is `branch`, [M, C]."""
        return branch + matching.reused(normed(tokens), self.entering, self.reused).to(branch.dtype)

    def renewed(self, packing: Packing, chosen: Tensor, reused: Tensor, entering: Tensor) -> RunMemory:
        """With what was computed: [N, C] each, at the places `chosen`, int64 [N]. packing: of their windows."""
        keys = renewed_keys(partial(packing.renewed, chosen=chosen), self.entering, entering)
        return RunMemory(packing.renewed(self.reused, reused, chosen), keys)


def renewed_keys(renew: Callable[[Tensor, Tensor], Tensor], last: Tensor, new: Tensor) -> Tensor:
    """What `renew` makes of fp16 tensors. Autocast joins none unless that is its own type; integers it leaves alone."""
    return renew(last.view(torch.int16), new.view(torch.int16)).view(torch.float16)


def noted(entering: Tensor, leaving: Tensor, branch: Tensor) -> RunMemory:
    """Of a run that was computed for every token. Args: [H * W, C], its input, its output, and the shortcut's."""
    return RunMemory(leaving - branch, normed(entering))


def blank(tokens: int, width: int, compared: int, device: torch.device, dtype: torch.dtype) -> RunMemory:
    """Zeros, C and D wide: what counting operations needs."""
    entering = torch.zeros(tokens, compared, device=device, dtype=torch.float16)
    return RunMemory(torch.zeros(tokens, width, device=device, dtype=dtype), entering)

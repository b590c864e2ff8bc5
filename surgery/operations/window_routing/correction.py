"""What a tile that was not computed gets instead of its last stage output: that, plus a cheap branch's change since.

The branch of the first stage reads the patch embedding, which is there for every token; those of later stages read the
map of the stage before, corrected itself. A branch works token by token, so it cannot move features, only follow what
changed in place. Same form as the temporal shortcut: nothing changed, nothing corrected.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import Tensor, nn

NORM_EPS = 1e-6


class StageCorrection(nn.Module):
    """F(x) = direct(x) + up(relu(down(LN(x)))), x the tokens under an output token, side by side.

    `down` is drawn at random and stays as drawn; `direct` and `up` are fitted by least squares.

    Args:
        width: channels of the map it reads. pool: side of the square of its tokens under an output token. out: channels
            of the stage.
    """

    def __init__(self, width: int, pool: int, out: int) -> None:
        super().__init__()
        self.pool = pool
        inputs = width * pool * pool
        self.norm = nn.LayerNorm(inputs, eps=NORM_EPS, elementwise_affine=False)
        self.direct = nn.Linear(inputs, out, bias=False)
        self.down = nn.Linear(inputs, out)
        self.up = nn.Linear(out, out, bias=False)
        self.reset_parameters()

    def reset_parameters(self, generator: torch.Generator | None = None) -> None:
        """Without a fit: the residual stream's own change where the widths agree, else no correction."""
        nn.init.kaiming_normal_(self.down.weight, nonlinearity="relu", generator=generator)
        nn.init.normal_(self.down.bias, std=0.5, generator=generator)
        nn.init.zeros_(self.up.weight)
        nn.init.zeros_(self.direct.weight)
        if self.direct.in_features == self.direct.out_features:
            nn.init.eye_(self.direct.weight)

    def tokens(self, below: Tensor) -> Tensor:
        """[1, H, W, C] -> [1, H / pool, W / pool, pool * pool * C]."""
        _, height, width, channels = below.shape
        if self.pool == 1:
            return below
        parts = below.reshape(1, height // self.pool, self.pool, width // self.pool, self.pool, channels)
        return parts.transpose(2, 3).flatten(3)

    def features(self, inputs: Tensor) -> Tensor:
        """What `direct` and `up`, side by side, are applied to: [..., in] -> [..., in + out].

        Residual streams are compared as they are by the first stage, whose input is its own stream; further up the
        widths differ and the norm carries more.
        """
        return torch.cat(self._halves(inputs), -1)

    def _halves(self, inputs: Tensor) -> tuple[Tensor, Tensor]:
        normed = self.norm(inputs)
        return inputs if self.pool == 1 else normed, F.relu(self.down(normed))

    def forward(self, below: Tensor) -> Tensor:
        """Map below [1, H, W, C] -> [1, H / pool, W / pool, out]."""
        straight, hidden = self._halves(self.tokens(below))
        return self.direct(straight) + self.up(hidden)

    def set_fit(self, weight: Tensor) -> None:
        """weight: [in + out, out], least-squares solution on `features`."""
        inputs = self.direct.in_features
        with torch.no_grad():
            self.direct.weight.copy_(weight[:inputs].T)
            self.up.weight.copy_(weight[inputs:].T)


class Corrections(nn.ModuleList):
    """One `StageCorrection` for every stage that ends before the span.

    Args:
        widths: (side, channels) of the patch embedding and of each of those stages.
    """

    def __init__(self, widths: Sequence[tuple[int, int]]) -> None:
        super().__init__(
            StageCorrection(below[1], below[0] // side, channels) for below, (side, channels) in pairwise(widths)
        )


def make_corrections(widths: Sequence[tuple[int, int]], seed: int = 0) -> Corrections:
    """Build the branches on the CPU; same seed, same weights, and no global generator is read (see `make_shortcut`)."""
    with torch.inference_mode(False), torch.device("meta"):
        corrections = Corrections(widths).to_empty(device="cpu")
    generator = torch.Generator("cpu").manual_seed(seed)
    with torch.inference_mode(False):
        for correction in corrections:
            correction.reset_parameters(generator)  # type: ignore[operator]
    return corrections

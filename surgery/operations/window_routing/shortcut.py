"""The branches that stand in for what is not computed.

A shortcut stands in for the routed span on skipped windows (Efficient-SAM2, arXiv 2602.08224, section 3.2). Every one
maps tokens [N, C] to tokens [N, C] and starts as the identity (its last projection is zero), so an untrained one is
harmless. `pointwise` branches treat tokens one by one; the others see them window by window.

A correction is what a tile that was not computed gets besides its last stage output: a cheap branch's change since.
That of the first stage reads the patch embedding, which is there for every token; those of later stages read the map of
the stage before, corrected itself. A branch works token by token, so it cannot move features, only follow what changed
in place. Same form as the temporal shortcut: nothing changed, nothing corrected.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from surgery.core.early import sent
from surgery.core.windows import Packing, WindowGrid

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


class Shortcut(nn.Module):
    """Base class. Args: channels: width C of the stage-3 residual stream.

    corrections: under tile routing, the branches that correct reused stage outputs; they are saved with the shortcut.
    """

    pointwise = True
    corrections: Corrections | None

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.channels = channels
        self.corrections = None

    def reset_parameters(self, generator: torch.Generator | None = None) -> None:
        """Start anew as the identity; random draws come from `generator` (default: the global one)."""

    def forward(self, tokens: Tensor, packing: Packing | None = None) -> Tensor:
        """[N, C] -> [N, C]; `packing` is required unless `pointwise`."""
        raise NotImplementedError

    def whole(self, tokens: Tensor, grid: WindowGrid) -> Tensor:
        """All tokens of a map [H * W, C], whether `pointwise` or not."""
        if self.pointwise:
            return self(tokens)
        every = range(grid.count)
        ids = sent(grid.token_ids(every), tokens.device)
        ordered = self(tokens.index_select(0, ids), grid.packing(every, tokens.device))
        return ordered.index_select(0, sent(grid.back(every), tokens.device))


class IdentityShortcut(Shortcut):
    """y = x. No parameters."""

    def forward(self, tokens: Tensor, packing: Packing | None = None) -> Tensor:
        return tokens


class _Residual(Shortcut):
    def __init__(self, channels: int, hidden: int, inner: int | None = None) -> None:
        super().__init__(channels)
        self.norm = nn.LayerNorm(channels, eps=NORM_EPS)
        self.down_project = nn.Linear(channels, hidden)
        self.up_project = nn.Linear(inner or hidden, channels)
        self.reset_parameters()

    def reset_parameters(self, generator: torch.Generator | None = None) -> None:
        """The identity: the last projection is zero. The first is drawn as in the released code."""
        self.norm.reset_parameters()
        nn.init.kaiming_uniform_(self.down_project.weight, nonlinearity="relu", generator=generator)
        for still in (self.down_project.bias, self.up_project.weight, self.up_project.bias):
            nn.init.zeros_(still)


class BottleneckShortcut(_Residual):
    """y = x + Up(ReLU(Down(LN(x)))), C -> C/2 -> C: the published branch, C^2 + 3.5 C parameters."""

    def __init__(self, channels: int, hidden: int | None = None) -> None:
        super().__init__(channels, hidden or channels // 2)

    def forward(self, tokens: Tensor, packing: Packing | None = None) -> Tensor:
        return tokens + self.up_project(F.relu(self.down_project(self.norm(tokens))))


class FeedForwardShortcut(BottleneckShortcut):
    """The same with a hidden width of 2 C."""

    def __init__(self, channels: int) -> None:
        super().__init__(channels, 2 * channels)


class AttentionShortcut(_Residual):
    """y = x + Up(MHSA(Down(LN(x)))) inside each window, C -> 3 C/4 (q, k, v of C/4, four heads) -> C.

    Padding inside border windows takes part as zero vectors, as it does in Hiera's own windowed attention.
    """

    pointwise = False
    heads = 4

    def __init__(self, channels: int) -> None:
        inner = max(self.heads, channels // 4 // self.heads * self.heads)
        super().__init__(channels, 3 * inner, inner)

    def forward(self, tokens: Tensor, packing: Packing | None = None) -> Tensor:
        if packing is None:
            raise ValueError("the attention shortcut needs the packing of its windows")
        windows = self.down_project(packing.stack(self.norm(tokens)))
        count, area, _ = windows.shape
        q, k, v = windows.reshape(count, area, 3, self.heads, -1).permute(2, 0, 3, 1, 4).unbind(0)
        mixed = F.scaled_dot_product_attention(q, k, v).transpose(1, 2).reshape(count, area, -1)
        return tokens + self.up_project(packing.flatten(mixed))


SHORTCUTS: dict[str, type[Shortcut]] = {
    "bottleneck": BottleneckShortcut,
    "identity": IdentityShortcut,
    "ffn": FeedForwardShortcut,
    "attention": AttentionShortcut,
}


def make_shortcut(
    kind: str, channels: int, seed: int = 0, corrected: Sequence[tuple[int, int]] | None = None
) -> Shortcut:
    """Build a branch of type `kind` for width `channels`, on the CPU.

    corrected: (side, channels) of the patch embedding and of every stage before the span, to correct reused stage
    outputs as well, see `Corrections`.

    Same seed, same weights; no global generator is read or seeded, not even an accelerator's, and the branch can be
    trained later although it was made under `torch.inference_mode`.
    """
    with torch.inference_mode(False), torch.device("meta"):
        shortcut = SHORTCUTS[kind](channels).to_empty(device="cpu")
        shortcut.reset_parameters(torch.Generator("cpu").manual_seed(seed))
    if corrected is not None:
        shortcut.corrections = make_corrections(corrected, seed)
    return shortcut

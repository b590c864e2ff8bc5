"""The branches that stand in for what is not computed.

A shortcut stands in for the routed span on skipped windows (Efficient-SAM2, arXiv 2602.08224, section 3.2). Every one
maps tokens [N, C] to tokens [N, C] and starts as the identity (its last projection is zero), so an untrained one is
harmless. `pointwise` branches treat tokens one by one; the others see them window by window.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from surgery.core.early import sent
from surgery.core.windows import Packing, WindowGrid

NORM_EPS = 1e-6


class Shortcut(nn.Module):
    """Base class. Args: channels: width C of the stage-3 residual stream.

    parts: with dense inner global blocks, one like this for every run of blocks; they are saved with it.
    """

    pointwise = True
    parts: nn.ModuleList | None

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.channels = channels
        self.parts = None

    def divided(self, runs: int, seed: int = 0) -> None:
        """Get one for every run of blocks, unless there are as many; new ones are the identity."""
        if self.parts is not None and len(self.parts) == runs:
            return
        reference = next(self.parameters(), None)
        kind = next(name for name, made in SHORTCUTS.items() if type(self) is made)
        parts = nn.ModuleList(make_shortcut(kind, self.channels, seed + run) for run in range(runs))
        if reference is not None:
            parts = parts.to(reference.device, reference.dtype)
        self.parts = parts.train(self.training)

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


def make_shortcut(kind: str, channels: int, seed: int = 0) -> Shortcut:
    """Build a branch of type `kind` for width `channels`, on the CPU.

    Same seed, same weights; no global generator is read or seeded, not even an accelerator's, and the branch can be
    trained later although it was made under `torch.inference_mode`.
    """
    with torch.inference_mode(False), torch.device("meta"):
        shortcut = SHORTCUTS[kind](channels).to_empty(device="cpu")
        shortcut.reset_parameters(torch.Generator("cpu").manual_seed(seed))
    return shortcut

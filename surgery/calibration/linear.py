"""The closed form of a shortcut: reduced-rank ridge regression of the span's residual on the shortcut's input.

The published branch is y = x + Up(ReLU(Down(LN(x)))). While every hidden unit stays above zero it is linear, so the
best linear map of rank `hidden` from LN(x) to the residual y - x, a least-squares problem, is a point in its weight
space: biases of four standard deviations keep the units there.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from surgery.core.windows import WindowGrid
from surgery.errors import CalibrationError
from surgery.operations.window_routing.matching import reused_map
from surgery.operations.window_routing.shortcut import NORM_EPS, BottleneckShortcut

RIDGES = (1e-3, 1e-2, 1e-1, 1.0, 10.0, 100.0)
"""Ridge strengths to choose from, relative to the mean variance of the inputs."""
DEFAULT_RIDGE = 1e-1
"""With a single clip there is none to leave out."""
FOLDS = 8
"""Clips are dealt into so many groups; the ridge is the one that fits a left-out group best."""
HEADROOM = 4.0
"""Standard deviations by which hidden units are lifted above zero."""
AGES = (1, 2, 4, 8)
"""Frames between a window's last computation and its use, as budgets and rolling refresh produce them."""


class Regression:
    """Running sums of a ridge regression with an intercept, in fp64; no feature is kept longer than the oldest age.

    Args:
        inputs, outputs: widths. temporal: regress the change of the outputs on the change of the inputs over `AGES`.
    """

    def __init__(self, inputs: int, outputs: int, temporal: bool, device: torch.device) -> None:
        self.temporal = temporal
        self._device = device
        self._widths = inputs, outputs
        self._folds: list[Sums] = []
        self._clips = 0
        self._past: list[tuple[Tensor, Tensor]] = []

    def _zeros(self, *shape: int) -> Tensor:
        return torch.zeros(*shape, dtype=torch.float64, device=self._device)

    def start(self) -> None:
        """A new clip begins: what was seen before is not its past."""
        self._past.clear()
        if len(self._folds) < FOLDS:
            m, n = self._widths
            # With the constant 1 as last input, so that the regression has an intercept.
            self._folds.append(Sums(self._zeros(m + 1, m + 1), self._zeros(m + 1, n), self._zeros(n, n)))
        self._now = self._folds[self._clips % FOLDS]
        self._clips += 1

    def observe(self, inputs: Tensor, outputs: Tensor) -> Tensor:
        """Add one frame: fp32 [N, inputs] and [N, outputs], tokens in the same order every time.

        Returns:
            The inputs with the constant 1 behind them.
        """
        inputs = torch.cat([inputs, inputs.new_ones(len(inputs), 1)], -1)
        if not self.temporal:
            self._sum(inputs, outputs)
            return inputs
        for age in AGES:
            if age <= len(self._past):
                past_inputs, past_outputs = self._reused(inputs, *self._past[-age])
                self._sum(inputs - past_inputs, outputs - past_outputs)
        self._past = [*self._past[-AGES[-1] + 1 :], (inputs, outputs)]
        return inputs

    def _reused(self, now: Tensor, inputs: Tensor, outputs: Tensor) -> tuple[Tensor, Tensor]:
        """What a token would reuse of an earlier frame's inputs and outputs, with the constant 1."""
        return inputs, outputs

    def _sum(self, inputs: Tensor, targets: Tensor) -> None:
        self._now.gram.add_(inputs.T @ inputs)
        self._now.cross.add_(inputs.T @ targets)
        self._now.total.add_(targets.T @ targets)

    def left_out_errors(self) -> Tensor:
        """fp64 [len(RIDGES)]: energy left in each group of clips by the map fitted to the others, summed; zeros when
        there is one group only."""
        errors, whole = self._zeros(len(RIDGES)), Sums.of(self._folds)
        for fold in self._folds:
            others = Sums(whole.gram - fold.gram, whole.cross - fold.cross, whole.total - fold.total)
            if others.scale > 0:
                errors += torch.stack([fold.energy_left(others.weight(ridge)) for ridge in RIDGES])
        return errors

    def summed(self) -> tuple[Sums, float]:
        """All clips together, and the ridge of `RIDGES` that fits left-out clips best.

        Raises:
            CalibrationError: features that are not finite, or that never change.
        """
        whole = Sums.of(self._folds)
        if not bool(torch.isfinite(whole.gram).all() & torch.isfinite(whole.cross).all()):
            raise CalibrationError("the features of the routed blocks are not finite; nothing was fitted")
        if not whole.scale > 0:
            raise CalibrationError("no change between frames was seen in the clips; nothing can be fitted")
        errors = self.left_out_errors()
        return whole, RIDGES[int(errors.argmin())] if bool(errors.any()) else DEFAULT_RIDGE


class ResidualRegression(Regression):
    """The span's residual on its normed input, for the shortcut.

    Args:
        channels: width C. temporal: see `Regression`. grid: of the tokens, which reuse what
        has moved; None: each its own.
    """

    def __init__(self, channels: int, temporal: bool, device: torch.device, grid: WindowGrid | None = None) -> None:
        super().__init__(channels, channels, temporal, device)
        self.grid = grid
        self.level = self._zeros(channels + 1, channels + 1)

    def add(self, entering: Tensor, leaving: Tensor) -> None:
        """Add one dense frame: span input and output, [N, C] each, tokens in the same order every time."""
        x = entering.detach().to(torch.float32)
        inputs = self.observe(F.layer_norm(x, x.shape[-1:], eps=NORM_EPS), leaving.detach().to(torch.float32) - x)
        self.level += (inputs.T @ inputs).to(torch.float64)

    def _reused(self, now: Tensor, inputs: Tensor, outputs: Tensor) -> tuple[Tensor, Tensor]:
        if self.grid is None:
            return inputs, outputs
        width = inputs.shape[-1]
        moved = reused_map(self.grid, now[:, :-1], inputs[:, :-1], torch.cat([inputs, outputs], -1))
        return moved[:, :width], moved[:, width:]


class Sums(NamedTuple):
    """Sums of input x input [M + 1, M + 1], input x target [M + 1, N] and target x target [N, N], fp64."""

    gram: Tensor
    cross: Tensor
    total: Tensor

    @classmethod
    def of(cls, parts: Sequence[Sums]) -> Sums:
        """Their sum."""
        return cls(*(torch.stack(each).sum(0) for each in zip(*parts, strict=True)))

    @property
    def scale(self) -> float:
        """Mean energy of the inputs."""
        return float(self.gram.diagonal()[:-1].mean())

    def weight(self, ridge: float) -> Tensor:
        """Ridge solution [C + 1, C]; the intercept is not shrunk."""
        penalty = torch.full_like(self.gram.diagonal(), ridge * self.scale)
        penalty[-1] = 1e-9 * self.scale if self.gram[-1, -1] > 0 else 1.0
        return torch.linalg.solve(self.gram + penalty.diag(), self.cross)

    def energy_left(self, weight: Tensor) -> Tensor:
        """Energy of the target less what `weight` [C + 1, C] predicts."""
        return (self.total - 2 * weight.T @ self.cross + weight.T @ self.gram @ weight).trace()

    def solve(self, rank: int, ridge: float) -> tuple[Tensor, Tensor, Tensor]:
        """Return (down [rank, C], up [C, rank], intercept [C]) of the best map of this rank, fp64."""
        weight = self.weight(ridge)
        matrix, intercept = weight[:-1], weight[-1]
        # Reduced rank: keep the directions of the fitted outputs that carry most energy.
        fitted = matrix.T @ self.gram[:-1, :-1] @ matrix
        _, vectors = torch.linalg.eigh((fitted + fitted.T) / 2)
        up = vectors[:, -rank:].flip(-1)
        return (matrix @ up).T, up, intercept

    def explained(self, weight: Tensor) -> float:
        """Share of the target's energy that a map explains: 0 for the identity shortcut, at most 1."""
        return 1.0 - float(self.energy_left(weight) / self.total.trace())


@torch.no_grad()
def start_from(shortcut: BottleneckShortcut, sums: Sums, ridge: float, level: Tensor, temporal: bool) -> float:
    """Set the weights of a pointwise branch to the closed form; return the share of energy it explains.

    Args:
        sums, ridge: of all clips. level: `ResidualRegression.level`, by which the hidden units are kept above zero.
        temporal: whether the sums are of changes, so that the intercept means nothing.
    """
    hidden, channels = shortcut.down_project.weight.shape
    rank = min(hidden, channels)
    down, up, intercept = sums.solve(rank, ridge)
    tokens = level[-1, -1]
    mean = down @ level[:-1, -1] / tokens
    second = ((down @ (level[:-1, :-1] / tokens)) * down).sum(-1)
    spread = (second - mean**2).clamp_min(0).sqrt()
    lift = HEADROOM * spread - mean
    shortcut.norm.weight.fill_(1.0)
    shortcut.norm.bias.zero_()
    for parameter in (shortcut.down_project.weight, shortcut.down_project.bias, shortcut.up_project.weight):
        parameter.zero_()
    # Output directions are unit vectors; scaling their units to unit spread keeps both matrices in range for bf16.
    gain = 1.0 / spread.clamp_min(1e-6)
    shortcut.down_project.weight[:rank].copy_(down * gain[:, None])
    shortcut.down_project.bias[:rank].copy_(lift * gain)
    shortcut.up_project.weight[:, :rank].copy_(up / gain)
    shift = intercept if not temporal else torch.zeros_like(intercept)
    shortcut.up_project.bias.copy_(shift - up @ lift)
    return sums.explained(torch.cat([(up @ down).T, intercept[None]]))

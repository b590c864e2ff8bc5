"""The fit of the corrections of reused stage outputs: ridge regression of their change on the change of their input."""

from __future__ import annotations

from itertools import pairwise

import torch
from torch import Tensor

from surgery.calibration.linear import Regression
from surgery.operations.window_routing.shortcut import Corrections, StageCorrection

TOKENS = 2048
"""Tokens of a map that are used, the same ones throughout a clip."""


class StageRegressions:
    """One regression for every stage that ends before the span.

    Args:
        corrections: the branches, whose random halves make the inputs. device: of the sums.
    """

    def __init__(self, corrections: Corrections, device: torch.device) -> None:
        self.stages: list[StageCorrection] = list(corrections)  # type: ignore[arg-type]
        self.device = device
        self.regressions = [
            Regression(stage.direct.in_features + stage.up.in_features, stage.up.out_features, True, device)
            for stage in self.stages
        ]
        self._generator = torch.Generator("cpu").manual_seed(0)
        self._used: dict[StageCorrection, Tensor] = {}

    def start(self) -> None:
        """A new clip begins."""
        self._used.clear()
        for regression in self.regressions:
            regression.start()

    def add(self, maps: list[Tensor]) -> None:
        """Add one dense frame: patch embedding and stage outputs, [1, H, W, C] each."""
        for stage, regression, (below, above) in zip(self.stages, self.regressions, pairwise(maps), strict=True):
            targets = above.detach().flatten(0, 2)
            if stage not in self._used:
                drawn = torch.randperm(len(targets), generator=self._generator)[:TOKENS]
                self._used[stage] = drawn.to(targets.device)
            used = self._used[stage]
            inputs = stage.tokens(below.detach()).flatten(0, 2).index_select(0, used)
            with torch.no_grad():
                features = stage.features(inputs.to(stage.up.weight.dtype)).to(self.device, torch.float32)
            regression.observe(features, targets.index_select(0, used).to(self.device, torch.float32))

    def solve(self) -> list[float]:
        """Set the weights; return the share of every stage's change that they explain.

        Raises:
            CalibrationError: features that are not finite, or clips without any change.
        """
        explained = []
        for stage, regression in zip(self.stages, self.regressions, strict=True):
            sums, ridge = regression.summed()
            weight = sums.weight(ridge)
            stage.set_fit(weight[:-1])
            explained.append(sums.explained(weight))
        return explained

"""What settings of an operation would have done, learned from dense passes over clips."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from surgery.core.frame import FrameContext
from surgery.core.observer import Observer


@dataclass(frozen=True)
class Prediction:
    """kept: mean share over tracked frames, or None where nothing is left out. risk: what is lost, on a scale of the
    operation's own."""

    kept: float | None
    risk: float


class Simulation(Observer):
    """Observes, and predicts for every setting it was made for."""

    def start(self) -> None:
        """A new clip begins."""

    @abstractmethod
    def predict(self, settings: Any, lengths: Sequence[int]) -> Prediction:
        """What `settings` would have done on the clips. lengths: frames of each."""


class Together(Observer):
    """Several observers of the same passes."""

    def __init__(self, simulations: Sequence[Simulation]) -> None:
        self.simulations = simulations

    def start(self) -> None:
        """A new clip begins."""
        for each in self.simulations:
            each.start()

    def frame(self, context: FrameContext, pixels: Tensor) -> None:
        for each in self.simulations:
            each.frame(context, pixels)

    def noted(self, what: Any) -> None:
        for each in self.simulations:
            each.noted(what)

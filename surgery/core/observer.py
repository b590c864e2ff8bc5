"""What calibration is shown of a model that runs dense, and what it learns from that of other settings."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

from torch import Tensor

if TYPE_CHECKING:
    from surgery.core.frame import FrameContext


class Observer:
    """Looks on while every approximate operation runs dense and reports: calibration learns from it what sparse
    settings would have done.

    leads: what operations remember of a frame is as if everything had been asked for, so that sparse frames can follow.
    """

    leads: ClassVar[bool] = False

    def frame(self, context: FrameContext, pixels: Tensor) -> None:
        """Before a frame is encoded; `context.video.evidence` is that of the frame before. pixels: [1, 3, S, S]."""

    def noted(self, what: Any) -> None:
        """An operation reports; what it tells is a class of its own."""


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

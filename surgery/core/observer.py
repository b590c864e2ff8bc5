"""What calibration is shown of a model that runs dense."""

from __future__ import annotations

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

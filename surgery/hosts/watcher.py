"""What calibration is shown of a model that runs dense."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from torch import Tensor

from surgery.operations import Precision
from surgery.session import VideoState

if TYPE_CHECKING:
    from surgery.hosts.base import ObjectStep


class Watcher:
    """Looks on while a model under surgery runs dense: calibration learns from it what sparse settings would have done.

    With a watcher bound, every frame is encoded densely, no key is pruned, every part runs in the precision of the
    stock model, and saliency is measured all the same.
    """

    def part(self, name: str, run: Callable[[Precision | None], Any]) -> Any:
        """A part runs, under recipes with `precision`: `run(None)` as stock, `run(precision)` in another one."""
        return run(None)

    def frame(self, state: VideoState, frame: int, step: ObjectStep | None, pixels: Tensor) -> None:
        """Before `frame` is encoded; `state.evidence` is that of the frame before. pixels: [1, 3, S, S]."""

    def encoded(self, entering: Tensor, leaving: Tensor) -> None:
        """After it was: the span's input and output, [1, H, W, C] each."""

    def stages(self, maps: list[Tensor]) -> None:
        """Under tile routing, before `encoded`: patch embedding and outputs of the stages before the span.

        maps: [1, H, W, C] each.
        """

    def saliency(self, conditioning: bool, layer: int, saliency: Tensor) -> None:
        """A memory frame was read for the first time: fp32 [T], see `memory_saliency`."""

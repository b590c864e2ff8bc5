"""How long a calibration will take, told early."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass

_TIMED = 2
# Cost of one frame of each kind in frames of the dense model, from calibrations of the demo model.
_FEATURE_ERROR, _FIT = 1.5, 1.6


@dataclass(frozen=True)
class Work:
    """What a calibration has before it: tracked frames of the held-out clips and of those fitted on; how often the
    feature error is measured; frames that the gradient steps replay; settings run for real at most.
    """

    held_out: int
    fitted: int
    errors: int
    replayed: int
    runs: int

    def frames(self) -> float:
        """The same in frames of the dense model."""
        tracked = self.held_out * (1 + self.runs) + (self.held_out + self.fitted)
        fit = self.fitted * (self.errors > 0) + _FEATURE_ERROR * self.errors * self.held_out + _FIT * self.replayed
        return tracked + fit


class Estimate:
    """Says once how long `work` will take, from the first frames that the dense model has tracked."""

    def __init__(self, work: Work, say: Callable[[str], None]) -> None:
        self._work, self._say, self._seen, self._began = work, say, 0, 0.0

    def __call__(self) -> None:
        """A frame is done. The first one sets things up and is not timed."""
        if self._seen == 0:
            self._began = time.perf_counter()
        elif self._seen == _TIMED:
            seconds = (time.perf_counter() - self._began) / _TIMED * self._work.frames()
            self._say(f"{_long(seconds)} to go, judged by the first frames; half or twice as long is possible")
        self._seen += 1


def _long(seconds: float) -> str:
    if seconds < 90:
        return f"about {max(1, round(seconds))} seconds"
    return f"about {round(seconds / 60)} minutes" if seconds < 5400 else f"about {seconds / 3600:.1f} hours"

"""How far a calibration is, stage by stage, and how long it will take."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING

from surgery.missing import require

if TYPE_CHECKING:
    from rich.console import Console
    from rich.progress import Progress, TaskID

Step = Callable[[str, int, int], None]
"""Called with (stage, done, total) as work goes on; done reaches total when the stage ends."""
_UNITS = {"reading clips": "clips", "looking for objects": "clips", "feature error": "clips", "fitting": "steps"}
_TIMED = 2
# Cost of one frame of each kind in frames of the dense model, from calibrations of the demo model.
_FEATURE_ERROR, _FIT = 1.5, 1.6


class Counter:
    """Counts one stage. finish: the stage is over, whether or not all that was planned had to be done."""

    def __init__(self, step: Step, stage: str, total: int) -> None:
        self._step, self._stage, self.total, self.done = step, stage, total, 0
        step(stage, 0, total)

    def __call__(self) -> None:
        self.done += 1
        self._step(self._stage, self.done, max(self.done, self.total))

    def finish(self) -> None:
        """Tell that nothing more comes."""
        self._step(self._stage, self.done, self.done)


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


class Bars:
    """A bar per stage on a terminal; where there is none, a line when a stage ends. Called as a `Step`."""

    def __init__(self, console: Console | None, bars: Progress | None) -> None:
        self._console, self._bars = console, bars
        self._tasks: dict[str, TaskID] = {}
        self._began: dict[str, float] = {}

    def __call__(self, stage: str, done: int, total: int) -> None:
        """The stage is at `done` of `total`."""
        if not total:
            return
        units = _UNITS.get(stage.split(",")[0], "frames")
        first = stage not in self._began
        self._began.setdefault(stage, time.perf_counter())
        if self._bars is not None:
            if first:
                self._tasks[stage] = self._bars.add_task(f"{stage}, {units}", total=total)
            self._bars.update(self._tasks[stage], completed=done, total=total)
        elif done == total:
            self.say(f"{stage}: {total} {units}, {time.perf_counter() - self._began.pop(stage):.0f} s")

    def say(self, text: str) -> None:
        """Print a line."""
        if self._console is not None:
            self._console.print(text, markup=False, highlight=False, soft_wrap=True)


@contextmanager
def progress_bar(show: bool) -> Iterator[Bars]:
    """Progress on stderr, or none of it."""
    if not show:
        yield Bars(None, None)
        return
    require("rich")
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    console = Console(stderr=True)
    if not console.is_terminal:
        yield Bars(console, None)
        return
    columns = (
        TextColumn("{task.description}", markup=False), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn()
    )  # fmt: skip
    with Progress(*columns, console=console, transient=True) as bars:
        yield Bars(console, bars)

"""How far long work is, on stderr: a bar per stage on a terminal, elsewhere a plain line now and then, or nothing."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import timedelta
from typing import TYPE_CHECKING

from surgery.missing import require

if TYPE_CHECKING:
    from rich.progress import Progress, TaskID

Step = Callable[[str, int, int | None], None]
"""Called with (stage, done, total) as work goes on; done is total when the stage ends. total None: not known."""
# Seconds between plain lines of a stage.
_PAUSE = 30.0


class Counter:
    """Counts one stage. finish: the stage is over, whether or not all that was planned had to be done."""

    def __init__(self, step: Step, stage: str, total: int | None) -> None:
        self._step, self._stage, self.total, self.done = step, stage, total, 0
        step(stage, 0, total)

    def __call__(self) -> None:
        self.done += 1
        self._step(self._stage, self.done, self.total)

    def finish(self) -> None:
        """Tell that nothing more comes."""
        self._step(self._stage, self.done, self.done)


class Bars:
    """A bar per stage on a terminal, plain lines where `progress` is disabled, nothing without one. Called as a `Step`.

    with progress_bar(True) as bars:
        with bars.stage("loading"):
            ...
        with bars.stage("tracking", 300) as step:
            for frame in frames:
                step()
    """

    def __init__(self, progress: Progress | None) -> None:
        self._progress = progress
        self._tasks: dict[str, TaskID] = {}
        self._told: dict[str, tuple[int, float]] = {}

    def __call__(self, stage: str, done: int, total: int | None, text: str | None = None) -> None:
        """The stage is at `done` of `total` (None: unknown, 0: there is nothing to do). text: the bar's, if not its
        name."""
        if self._progress is None or total == 0:
            return
        if not done or stage not in self._tasks:
            self._drop(stage)
            self._tasks[stage] = self._progress.add_task(stage, total=total)
            self._told[stage] = 0, time.monotonic()
            if self._progress.disable:
                self.say(stage)
        self._progress.update(self._tasks[stage], completed=done, total=total, description=text or stage)
        before, then = self._told[stage]
        if self._progress.disable and done > before and (done == total or time.monotonic() - then >= _PAUSE):
            task = self._progress.tasks[self._progress.task_ids.index(self._tasks[stage])]
            spent, left = (timedelta(seconds=round(part or 0)) for part in (task.elapsed, task.time_remaining))
            of, more = ("", "") if total is None else (f"/{total}", f", {left} left" if done < total else "")
            self._told[stage] = done, time.monotonic()
            self.say(f"{stage}: {done}{of}, {spent}{more}")

    @contextmanager
    def stage(self, text: str, total: int | None = None) -> Iterator[Callable[[], None]]:
        """Show `text` while the block runs; call what it yields after every frame, of which `total` are expected."""
        count = Counter(self, text, total)
        try:
            yield count
            count.finish()
        finally:
            self._drop(text)

    def say(self, text: str) -> None:
        """One line, above the bars if there are any."""
        if self._progress is not None:
            self._progress.console.print(text, markup=False, emoji=False, highlight=False, soft_wrap=True)

    def _drop(self, stage: str) -> None:
        if self._progress is not None and stage in self._tasks:
            self._progress.remove_task(self._tasks.pop(stage))


@contextmanager
def progress_bar(show: bool) -> Iterator[Bars]:
    """Progress on stderr, or none of it."""
    if not show:
        yield Bars(None)
        return
    require("rich")
    from rich.console import Console
    from rich.progress import (
        BarColumn,
        MofNCompleteColumn,
        Progress,
        TextColumn,
        TimeElapsedColumn,
        TimeRemainingColumn,
    )

    console = Console(stderr=True)
    name = TextColumn("{task.description}", markup=False)
    columns = (name, BarColumn(), MofNCompleteColumn(), TimeElapsedColumn(), TimeRemainingColumn())
    lines = not console.is_terminal or console.is_dumb_terminal
    with Progress(*columns, console=console, transient=True, disable=lines) as progress:
        yield Bars(progress)

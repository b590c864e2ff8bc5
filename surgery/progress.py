"""How far long work is, on stderr: a bar per stage on a terminal, elsewhere a plain line now and then, or nothing."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import TYPE_CHECKING

from surgery.missing import require

if TYPE_CHECKING:
    from rich.console import Console
    from rich.progress import Progress, TaskID

Step = Callable[[str, int, int], None]
"""Called with (stage, done, total) as work goes on; done reaches total when the stage ends."""
# What a stage counts, if not frames.
_UNITS = {"reading clips": "clips", "looking for objects": "clips"}
# A plain line for every tenth, but not for every frame of a short clip, and a sign of life on long ones. Seconds.
_SHORTEST, _LONGEST = 2.0, 60.0


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


@dataclass
class _Stage:
    began: float
    told_at: float
    first: int  # done before it began to be shown, as when a fit is resumed
    told: int = 0
    bar: TaskID | None = None


class Bars:
    """A bar per stage on a terminal, plain lines where `bars` is None, nothing without a console. Called as a `Step`.

    with progress_bar(True) as bars:
        with bars.stage("loading"):
            ...
        with bars.stage("tracking", 300) as step:
            for frame in frames:
                step()
    """

    def __init__(self, console: Console | None, bars: Progress | None) -> None:
        self._console, self._bars = console, bars
        self._stages: dict[str, _Stage] = {}

    def __call__(self, stage: str, done: int, total: int | None, text: str | None = None) -> None:
        """The stage is at `done` of `total` (None: unknown, 0: there is nothing to do). text: the bar's, if not its
        name."""
        if self._console is None or total == 0:
            return
        now = time.monotonic()
        if not done or stage not in self._stages:
            self._drop(stage)
            self._stages[stage] = _Stage(now, now, done)
            if self._bars is None:
                self.say(stage)
            else:
                self._stages[stage].bar = self._bars.add_task(stage, total=total, count="")
        at = self._stages[stage]
        count = _count(done, total, _UNITS.get(stage.split(",")[0], "frames"), now - at.began, done - at.first)
        if at.bar is not None and self._bars is not None:
            self._bars.update(at.bar, completed=done, total=total, count=count, description=text or stage)
            return
        waited = now - at.told_at
        tenth = total is not None and done * 10 // total > at.told * 10 // total
        if done > at.told and (done == total or waited >= _LONGEST or (waited >= _SHORTEST and tenth)):
            at.told, at.told_at = done, now
            self.say(f"{stage}: {count}")

    @contextmanager
    def stage(self, text: str, total: int | None = None) -> Iterator[Callable[[], None]]:
        """Show `text` while the block runs; call what it yields after every frame, of which `total` are expected."""
        done = 0

        def step() -> None:
            nonlocal done
            done += 1
            self(text, done, total)

        self(text, 0, total)
        try:
            yield step
            self(text, done, done)
        finally:
            self._drop(text)

    def say(self, text: str) -> None:
        """One line, above the bars if there are any."""
        if self._console is not None:
            self._console.print(text, markup=False, emoji=False, highlight=False, soft_wrap=True)

    def _drop(self, stage: str) -> None:
        old = self._stages.pop(stage, None)
        if self._bars is not None and old is not None and old.bar is not None:
            self._bars.remove_task(old.bar)


def _count(done: int, total: int | None, units: str, seconds: float, timed: int) -> str:
    """`timed`: how many of those done took the seconds."""
    if done == total:
        return f"{done} {units}, {seconds:.1f} s"
    if not timed:
        return ""
    each = max(seconds, 1e-6) / timed
    pace = f"{units}, {1 / each:.1f} a second" if each <= 1 else f"{units}, {each:.1f} s each"
    if total is None or done > total:
        return f"{done} {pace}"
    return f"{done}/{total} {pace}, {timedelta(seconds=round((total - done) * each))} left"


@contextmanager
def progress_bar(show: bool) -> Iterator[Bars]:
    """Progress on stderr, or none of it."""
    if not show:
        yield Bars(None, None)
        return
    require("rich")
    from rich.console import Console
    from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

    console = Console(stderr=True)
    if not console.is_terminal or console.is_dumb_terminal:
        yield Bars(console, None)
        return
    name, count = (TextColumn(text, markup=False) for text in ("{task.description}", "{task.fields[count]}"))
    with Progress(name, BarColumn(), count, TimeElapsedColumn(), console=console, transient=True) as bars:
        yield Bars(console, bars)

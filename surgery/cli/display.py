"""What a long command is at, on stderr: bars on a terminal, and elsewhere a plain line now and then."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import timedelta
from types import TracebackType

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

from surgery.cli.common import err

# A plain line for every tenth, but not for every frame of a short clip, and a sign of life on long ones. Seconds.
_SHORTEST, _LONGEST = 2.0, 60.0


class Display:
    """Context manager that shows stages, one inside another if need be.

    with Display() as display:
        with display.stage("loading"):
            ...
        with display.stage("tracking", 300) as step:
            for frame in frames:
                step()

    Attributes:
        live: whether stderr is a terminal, which shows bars; control characters are written only there.
    """

    def __init__(self, console: Console = err) -> None:
        self.live = console.is_terminal and not console.is_dumb_terminal
        self._console = console
        self._bars = Progress(
            TextColumn("{task.description}", markup=False),
            BarColumn(),
            TextColumn("{task.fields[count]}", markup=False),
            TimeElapsedColumn(),
            console=console,
            transient=True,
            disable=not self.live,
        )

    def __enter__(self) -> Display:
        self._bars.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._bars.stop()

    def say(self, text: str) -> None:
        """One line, above the bars if there are any."""
        self._console.print(text, markup=False, highlight=False, soft_wrap=True)

    @contextmanager
    def stage(self, text: str, total: int | None = None) -> Iterator[Callable[[], None]]:
        """Show `text` while the block runs; call what it yields after every frame, of which `total` are expected."""
        if self.live:
            task = self._bars.add_task(text, total=total, count="")
            done, start = 0, time.monotonic()

            def step() -> None:
                nonlocal done
                done += 1
                self._bars.update(task, completed=done, count=_count(done, total, time.monotonic() - start))

            try:
                yield step
            finally:
                self._bars.remove_task(task)
        else:
            lines = _Lines(text, total, self.say)
            yield lines.step
            lines.end()


class _Lines:
    def __init__(self, text: str, total: int | None, say: Callable[[str], None]) -> None:
        self.text, self.total, self.say = text, total, say
        self.done = self.told = 0
        self.start = self.last = time.monotonic()
        say(text)

    def step(self) -> None:
        self.done += 1
        waited = time.monotonic() - self.last
        tenth = self.total is not None and self.done * 10 // self.total > self.told * 10 // self.total
        if waited >= _LONGEST or (waited >= _SHORTEST and tenth):
            self._tell()

    def end(self) -> None:
        if self.done > self.told:
            self._tell()

    def _tell(self) -> None:
        self.told, self.last = self.done, time.monotonic()
        self.say(f"{self.text}: {_count(self.done, self.total, self.last - self.start)}")


def _count(done: int, total: int | None, seconds: float) -> str:
    rate = done / max(seconds, 1e-6)
    if total is None:
        return f"{done} frames, {rate:.1f} a second"
    left = timedelta(seconds=round(max(total - done, 0) / rate))
    return f"{done}/{total} frames, {rate:.1f} a second, {left} left"

"""Ctrl-C and SIGTERM end a command in the same way: an exception, so that everything cleans up, then 128 + signal."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType


class Stopped(KeyboardInterrupt):
    """A signal asked the command to end."""

    def __init__(self, number: int) -> None:
        super().__init__(signal.Signals(number).name)
        self.number = number


_HELD: list[list[int]] = []
"""Signals that came inside `held`."""


def _heed(number: int, frame: FrameType | None) -> None:
    if not _HELD:
        raise Stopped(number)
    _HELD[-1].append(number)


@contextmanager
def stoppable() -> Iterator[None]:
    """Inside, SIGINT and SIGTERM raise `Stopped`, unless the process was started to ignore them."""
    numbers = (signal.SIGINT, signal.SIGTERM) if threading.current_thread() is threading.main_thread() else ()
    before = {each: signal.signal(each, _heed) for each in numbers if signal.getsignal(each) is not signal.SIG_IGN}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


@contextmanager
def held() -> Iterator[None]:
    """Inside `stoppable`, let a block end before a signal is heeded: what belongs together is written together."""
    _HELD.append([])
    try:
        yield
    finally:
        came = _HELD.pop()
    if came:
        raise Stopped(came[-1])

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


class _Signals:
    def __init__(self) -> None:
        self.held = False
        self.pending: int | None = None

    def __call__(self, number: int, frame: FrameType | None) -> None:
        if self.held:
            self.pending = number
        else:
            raise Stopped(number)


_SIGNALS = _Signals()


@contextmanager
def stoppable() -> Iterator[None]:
    """Inside, SIGINT and SIGTERM raise `Stopped`, unless the process was started to ignore them."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    heeded = {number: handler for number, handler in before.items() if handler is not signal.SIG_IGN}
    try:
        for number in heeded:
            signal.signal(number, _SIGNALS)
        yield
    finally:
        for number, handler in heeded.items():
            signal.signal(number, handler)


@contextmanager
def held() -> Iterator[None]:
    """Inside `stoppable`, let a block end before a signal is heeded: what belongs together is written together."""
    _SIGNALS.held = True
    try:
        yield
    finally:
        _SIGNALS.held = False
        number, _SIGNALS.pending = _SIGNALS.pending, None
    if number is not None:
        raise Stopped(number)

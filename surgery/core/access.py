"""Who has a model: one frame at a time, or one call that changes it; and which callers want it dense.

Frames and changes exclude each other across threads. Wanting it dense belongs to the caller: other threads and tasks
are not concerned.
"""

from __future__ import annotations

import functools
import threading
import weakref
from collections.abc import Callable, Generator, Iterator
from contextlib import closing, contextmanager
from contextvars import ContextVar
from typing import Any, TypeVar

from torch import nn

from surgery.core.patching import is_patched
from surgery.errors import ModelStateError

T = TypeVar("T")


@contextmanager
def replaced(owner: object, name: str, value: Any) -> Iterator[None]:
    """Inside, an attribute of `owner` has another value."""
    before = getattr(owner, name)
    setattr(owner, name, value)
    try:
        yield
    finally:
        setattr(owner, name, before)


class Access:
    """The lock of one model. A frame may be entered again from within itself."""

    def __init__(self) -> None:
        self._lock = threading.RLock()
        self._frames = 0

    @contextmanager
    def frame(self) -> Iterator[None]:
        """A frame runs inside; those of other threads wait."""
        with self._lock:
            self._frames += 1
            try:
                yield
            finally:
                self._frames -= 1

    @contextmanager
    def change(self) -> Iterator[None]:
        """The model changes inside, after the frame of another thread has ended.

        Raises:
            ModelStateError: the caller is itself inside a frame of this model.
        """
        with self._lock:
            if self._frames:
                raise ModelStateError(
                    "called from inside a frame of this very model (from a hook?), which would go on with another one; "
                    "call it between frames"
                )
            yield


_LOCK = threading.Lock()
_ACCESS: weakref.WeakKeyDictionary[nn.Module, Access] = weakref.WeakKeyDictionary()


def access_to(model: nn.Module) -> Access:
    """The lock of a model, stock or not; a copy of the model has its own."""
    with _LOCK:
        return _ACCESS.setdefault(model, Access())


def seam(method: Callable[..., T]) -> Callable[..., T]:
    """A method of the patched model that waits for the frames and changes of other threads.

    If the surgery was undone meanwhile, the host's own method runs.
    """

    @functools.wraps(method)
    def held(self: nn.Module, *args: Any, **kwargs: Any) -> T:
        with access_to(self).frame():
            if not is_patched(self):
                return getattr(self, method.__name__)(*args, **kwargs)
            return method(self, *args, **kwargs)

    return held


def in_turn(model: nn.Module, frames: Generator[T, None, None]) -> Iterator[T]:
    """The host's generator of frames. Between frames nothing is held."""
    with closing(frames):
        while True:
            with access_to(model).frame():
                try:
                    frame = next(frames)
                except StopIteration:
                    return
            yield frame


class _Pause:
    """One use of `paused`. owner: None once it is over."""

    def __init__(self, owner: object) -> None:
        self.owner: object = owner


_PAUSES: ContextVar[tuple[_Pause, ...]] = ContextVar("surgery_pauses", default=())


def is_paused(owner: object) -> bool:
    """Whether this thread or task is inside a `paused` of `owner`."""
    return any(pause.owner is owner for pause in _PAUSES.get())


@contextmanager
def paused(owner: object) -> Iterator[None]:
    """Inside, in this thread or task, `is_paused`. Any number, closed in any order and from anywhere."""
    mine = _Pause(owner)
    _PAUSES.set((*_PAUSES.get(), mine))
    try:
        yield
    finally:
        mine.owner = None
        _PAUSES.set(tuple(pause for pause in _PAUSES.get() if pause.owner is not None))

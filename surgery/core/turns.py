"""The methods of a host's model that the surgery runs in: one frame of one thread at a time."""

from __future__ import annotations

import functools
from collections.abc import Callable, Generator, Iterator
from contextlib import closing
from typing import Any, TypeVar

from torch import nn

from surgery.core.access import access_to
from surgery.core.patching import is_patched

T = TypeVar("T")


def seam(method: Callable[..., T]) -> Callable[..., T]:
    """A method of the patched model that waits for the frames and changes of other threads.

    If the surgery was undone meanwhile, the host's own method runs.
    """

    @functools.wraps(method)
    def held(self: nn.Module, *args: Any, **kwargs: Any) -> T:
        with access_to(self).frame():
            if not is_patched(self):
                found: T = getattr(self, method.__name__)(*args, **kwargs)
                return found
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

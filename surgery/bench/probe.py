"""Where a frame's time and FLOPs go: spans around the parts of a model, each less the spans inside it."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch.utils.flop_counter import FlopCounterMode

from surgery.bench.clock import Clock

REST = "host overhead"


class Meter(ABC):
    """Something that only grows, read at the borders of spans."""

    @abstractmethod
    def mark(self) -> Any:
        """The reading now."""

    @abstractmethod
    def between(self, start: Any, end: Any) -> float:
        """How much it grew; called after the frame."""


class TimeMeter(Meter):
    """Milliseconds. CUDA: events in the stream, so that no span waits for the device. MPS: one wait per border."""

    def __init__(self, clock: Clock) -> None:
        self.clock = clock

    def mark(self) -> Any:
        if self.clock.device.type == "cuda":
            event = torch.cuda.Event(enable_timing=True)
            event.record()
            return event
        self.clock.synchronise()
        return self.clock.now()

    def between(self, start: Any, end: Any) -> float:
        if self.clock.device.type == "cuda":
            self.clock.synchronise()
            return float(start.elapsed_time(end))
        return 1000 * float(end - start)


class FlopMeter(Meter):
    """GFLOP: matrix products and convolutions of the ops that run, one multiply-add = 2."""

    def __init__(self, counter: FlopCounterMode) -> None:
        self.counter = counter

    def mark(self) -> int:
        return self.counter.get_total_flops()

    def between(self, start: int, end: int) -> float:
        return (end - start) / 1e9


class Probe:
    """Collects spans of one frame after another; `totals` is per span name, exclusive of the spans inside."""

    def __init__(self, meter: Meter) -> None:
        self.meter = meter
        self.totals: defaultdict[str, float] = defaultdict(float)
        self._open: list[tuple[str, Any]] = []
        self._closed: list[tuple[str, str | None, Any, Any]] = []

    @contextmanager
    def span(self, name: str) -> Iterator[None]:
        """A span around what runs inside, or, as a decorator, around every call."""
        self.enter(name)
        try:
            yield
        finally:
            self.leave()

    def enter(self, name: str) -> None:
        """Begin a span; inside another of the same name it is part of that."""
        self._open.append((name, self.meter.mark()))

    def leave(self) -> None:
        """End the innermost span."""
        name, start = self._open.pop()
        parent = self._open[-1][0] if self._open else None
        self._closed.append((name, parent, start, self.meter.mark()))

    def settle(self) -> None:
        """Turn the spans of the frame that ended into totals."""
        for name, parent, start, end in self._closed:
            amount = self.meter.between(start, end)
            self.totals[name] += amount
            if parent is not None:
                self.totals[parent] -= amount
        self._closed.clear()

"""Time and memory of a device, with the synchronisation each kind of device needs."""

from __future__ import annotations

import resource
import sys
import time
from collections.abc import Callable
from typing import Any

import torch

MB = 1024 * 1024


class Clock:
    """Time and memory on one torch device.

    CUDA and MPS run behind the caller's back, so `synchronise` waits for the device; on the CPU it does nothing.

    Args:
        device: where the work is done. processor: count the processor time of this process, all threads together, and
            not wall time; for the CPU only, where other processes share the machine.
    """

    def __init__(self, device: torch.device, processor: bool = False) -> None:
        self.device = device
        self.now: Callable[[], float] = time.process_time if processor else time.perf_counter

    def synchronise(self) -> None:
        """Wait until the device has done all work given to it."""
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
        elif self.device.type == "mps":
            torch.mps.synchronize()

    def timed(self, call: Callable[[], Any]) -> tuple[Any, float]:
        """The result of `call` and its synchronised time in milliseconds."""
        self.synchronise()
        start = self.now()
        result = call()
        self.synchronise()
        return result, 1000 * (self.now() - start)

    @property
    def memory_kind(self) -> str:
        """What `peak_mb` counts on this device."""
        if self.device.type == "cuda":
            return "CUDA memory allocated by torch, peak"
        if self.device.type == "mps":
            return "MPS memory allocated by torch, highest of the values after each frame (no peak counter)"
        return "resident set of the process, high-water mark"

    def reset_peak(self) -> None:
        """Start the peak anew where the device counts one (CUDA)."""
        if self.device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(self.device)

    def peak_mb(self) -> float:
        """Highest MB since `reset_peak` (CUDA), now (MPS), or since the process began (CPU)."""
        if self.device.type == "cuda":
            return torch.cuda.max_memory_allocated(self.device) / MB
        if self.device.type == "mps":
            return torch.mps.current_allocated_memory() / MB
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        return peak / MB if sys.platform == "darwin" else peak / 1024

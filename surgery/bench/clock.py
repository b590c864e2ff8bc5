"""Time and memory of a device, with the synchronisation each kind of device needs."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from pathlib import Path
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
        """What `memory_mb` and `peak_mb` count on this device."""
        if self.device.type == "cuda":
            return "CUDA memory allocated by torch, peak"
        if self.device.type == "mps":
            return "MPS memory allocated by torch, highest of the values after each frame (no peak counter)"
        return "resident set of the process, high-water mark"

    def reset_peak(self) -> None:
        """Start the peak anew where the device counts one (CUDA)."""
        if self.device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(self.device)

    def give_back(self) -> None:
        """Return freed memory to the system, so that what follows does not grow into it unseen."""
        if self.device.type == "cuda":
            torch.cuda.empty_cache()
        elif self.device.type == "mps":
            torch.mps.empty_cache()
        elif sys.platform == "linux":
            import ctypes

            trim = getattr(ctypes.CDLL(None), "malloc_trim", None)  # glibc has it, musl has not
            if trim is not None:
                trim(0)

    def memory_mb(self) -> float:
        """MB in use now: allocated by torch (CUDA, MPS) or resident (CPU)."""
        if self.device.type == "cuda":
            return torch.cuda.memory_allocated(self.device) / MB
        if self.device.type == "mps":
            return torch.mps.current_allocated_memory() / MB
        return resident_mb()

    def peak_mb(self) -> float:
        """Highest MB since `reset_peak` (CUDA), now (MPS), or since the process began (CPU)."""
        if self.device.type == "cuda":
            return torch.cuda.max_memory_allocated(self.device) / MB
        if self.device.type == "mps":
            return torch.mps.current_allocated_memory() / MB
        return high_water_mb()


def resident_mb() -> float:
    """Resident set of this process in MB; the high-water mark where the system tells nothing else (macOS)."""
    listing = Path("/proc/self/status")
    if listing.exists():
        for line in listing.read_text().splitlines():
            if line.startswith("VmRSS:"):
                return int(line.split()[1]) / 1024
    return high_water_mb()


def high_water_mb() -> float:
    """Highest resident set of this process so far, in MB."""
    import resource

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / MB if sys.platform == "darwin" else peak / 1024

"""Tensors that depend on sizes alone: made once for a device, and never written to."""

from __future__ import annotations

import threading
from collections.abc import Callable, Hashable

import torch
from torch import Tensor

MOST = 256
"""Kept at a time, all of them small."""

_MADE: dict[Hashable, Tensor] = {}
_LOCK = threading.Lock()


def constant(key: Hashable, device: torch.device, make: Callable[[], Tensor]) -> Tensor:
    """What `make` made when it was first asked for, on `device`. key: all else that it depends on."""
    found = _MADE.get((key, device))
    if found is None:
        # Good for callers with gradients as well.
        with torch.inference_mode(False), torch.no_grad():
            found = make().to(device)
        if type(found) is not Tensor:
            return found  # a fake tensor, while operations are counted, must not stay
        with _LOCK:
            while len(_MADE) >= MOST:
                _MADE.pop(next(iter(_MADE)))
            _MADE[key, device] = found
    return found


def steps(count: int, device: torch.device, dtype: torch.dtype = torch.int64) -> Tensor:
    """0, 1 .. count - 1."""
    return constant(("steps", count, dtype), device, lambda: torch.arange(count, dtype=dtype, device="cpu"))

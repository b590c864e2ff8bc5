"""Values on their way from the device to the host: sent as soon as they exist, waited for only where they are needed.

A read that waits makes the host stop until the device has done all that was asked of it. A copy that was started before
other work was launched has arrived by the time that it is looked at, or the device is busy meanwhile.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor


class Early:
    """A copy that has started. values: of any shape, read as fp32."""

    def __init__(self, values: Tensor) -> None:
        self._held = values.detach().flatten().to(torch.float32)
        self._event: torch.cuda.Event | None = None
        self._known: list[float] | None = None
        if self._held.device.type == "cuda":
            stream = torch.cuda.current_stream(self._held.device)
            # Only a copy to pinned memory leaves the host alone.
            pinned = torch.empty(self._held.shape, dtype=torch.float32, device="cpu", pin_memory=True)
            self._held = pinned.copy_(self._held, non_blocking=True)
            self._event = torch.cuda.Event()
            self._event.record(stream)

    def values(self) -> list[float]:
        """Waits until they are there."""
        if self._known is None:
            self._known = self._arrived()
        return self._known

    def _arrived(self) -> list[float]:
        if self._event is not None:
            self._event.synchronize()
        return self._held.tolist()


def sent(array: npt.NDArray[np.generic], device: torch.device) -> Tensor:
    """The other way: an array goes to the device, and the host does not wait for it."""
    return torch.from_numpy(array).to(device, non_blocking=True)

"""What the objects of one frame share in memory attention: the first self-attention, which sees the frame alone."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(eq=False)
class SharedSelfAttention:
    """The first self-attention of one frame, computed for its first object and given to the others.

    frame: which. features: [T, 1, C] that memory attention was given, positions: their position code or None; both are
    held, so that their memory cannot be used for another frame's meanwhile. cast: autocast dtype or None. output:
    [..., T, C] of the self-attention module, None until its first object has run.
    """

    frame: int
    features: Tensor
    positions: Tensor | None
    cast: torch.dtype | None
    output: Tensor | None = None

    @classmethod
    def of(cls, frame: int, features: Tensor, positions: Tensor | None) -> SharedSelfAttention:
        """Nothing computed yet."""
        return cls(frame, features, positions, cast_of(features))

    def fits(self, frame: int, features: Tensor, positions: Tensor | None) -> bool:
        """Whether an object with these inputs would compute the very same: the same bytes in the same memory."""
        own = (self.frame, self.cast, _memory(self.features), _memory(self.positions))
        return own == (frame, cast_of(features), _memory(features), _memory(positions))


def cast_of(tensor: Tensor) -> torch.dtype | None:
    """The dtype autocast is on for where `tensor` lies, or None."""
    kind = tensor.device.type
    return torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else None


def _memory(tensor: Tensor | None) -> tuple[object, ...] | None:
    """Where a tensor lies, and how."""
    return None if tensor is None else (tensor.data_ptr(), tensor.device, tensor.dtype, tensor.shape, tensor.stride())

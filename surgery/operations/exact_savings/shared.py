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
        if frame != self.frame or self.cast != cast_of(features) or (positions is None) != (self.positions is None):
            return False
        same_positions = positions is None or self.positions is None or _same_memory(positions, self.positions)
        return same_positions and _same_memory(features, self.features)


def cast_of(tensor: Tensor) -> torch.dtype | None:
    """The dtype autocast is on for where `tensor` lies, or None."""
    kind = tensor.device.type
    return torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else None


def _same_memory(one: Tensor, other: Tensor) -> bool:
    def facts(tensor: Tensor) -> tuple[object, ...]:
        return tensor.data_ptr(), tensor.device, tensor.dtype, tensor.shape, tensor.stride()

    return facts(one) == facts(other)

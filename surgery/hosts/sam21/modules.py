"""What is put in front of the parts that hosts have alike."""

from __future__ import annotations

from typing import Any, ClassVar

from torch import Tensor

from surgery.core.attention import MemoryCall
from surgery.core.seams import Block, MemoryAttentionPart, PositionCode
from surgery.hosts.sam21.names import Names


class HieraBlock(Block):
    """An encoder block of Hiera."""

    _names: ClassVar[Names]

    def _norm1(self, tokens: Tensor) -> Tensor:
        return self._names.norm_of(self, 1)(tokens)

    def _norm2(self, tokens: Tensor) -> Tensor:
        return self._names.norm_of(self, 2)(tokens)

    def _qkv(self, tokens: Tensor, places: Tensor | None) -> Tensor:
        heads = getattr(self.attn, self._names.heads)
        return self.attn.qkv(tokens).reshape(tokens.shape[:-1].numel(), 3, heads, -1)

    def _out(self, mixed: Tensor) -> Tensor:
        return self.attn.proj(mixed)


class HieraTrunk(PositionCode):
    """Hiera, which interpolates its position code to the map and tiles it on every frame."""

    def _get_pos_embed(self, hw: tuple[int, int]) -> Tensor:
        make = super()._get_pos_embed  # type: ignore[misc]
        return self._code((int(hw[0]), int(hw[1])), lambda: make(hw))


class MemoryAttention(MemoryAttentionPart):
    """Memory attention. `__call__` and not `forward`, which the VOS predictor of `sam2` replaces by a compiled one."""

    _names: ClassVar[Names]

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        stock = super().__call__
        if self._surgery.context is None:
            return stock(*args, **kwargs)
        features, memory, code, _, pointers = self._names.memory
        given = {**dict(zip(self._names.memory, args, strict=False)), **kwargs}
        current, positions = _one(given[features]), _one(given.get(code))

        def run(call: MemoryCall) -> Any:
            if call.current is current:
                return stock(*args, **kwargs)
            return stock(**{**given, features: call.current, code: call.positions})

        stride, layers = self._surgery.surgery.host.memory_stride(), len(self.layers)
        call = MemoryCall(current, positions, given[memory], given.get(pointers, 0), stride, layers)
        return self._conditioned(call, run)


def _one(given: Any) -> Any:
    """What `sam2` gives in a list of one."""
    return given[0] if isinstance(given, list) else given

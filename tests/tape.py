"""A recording of what a region runs, made and replayed on any device: in the place of a CUDA graph."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map_only

Tensors = list[Tensor]


class Idle(TorchDispatchMode):
    """Sees every op and does nothing: under any such mode torch makes some composite ops of other parts."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return func(*args, **(kwargs or {}))


class _Slot(int):
    """Number of a tensor of a tape."""


class _Tape(TorchDispatchMode):
    """Every op that runs, its tensors by number. outside: those that no op made, by number."""

    def __init__(self, inputs: Tensors) -> None:
        super().__init__()
        self.ops: list[tuple[Any, Any, Any]] = []
        # Held, so that no other tensor gets the identity of one that is gone.
        self.held = list(inputs)
        self._slots = {id(each): _Slot(place) for place, each in enumerate(inputs)}
        self.outside: dict[int, Tensor] = {}

    def slot(self, tensor: Tensor) -> _Slot:
        if id(tensor) not in self._slots:
            self._slots[id(tensor)] = _Slot(len(self.held))
            self.held.append(tensor)
        return self._slots[id(tensor)]

    def _read(self, tensor: Tensor) -> _Slot:
        if id(tensor) not in self._slots:
            self.outside[self.slot(tensor)] = tensor
        return self.slot(tensor)

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        read = tree_map_only(Tensor, self._read, (args, kwargs))
        out = func(*args, **kwargs)
        self.ops.append((func, read, tree_map_only(Tensor, self.slot, out)))
        return out


class TapeRecorder:
    """See `surgery.core.region.Record`. As a CUDA graph does, a replay writes where the one before had written.

    made: tapes recorded. played: replays.
    """

    def __init__(self) -> None:
        self.made = self.played = 0

    def __call__(self, run: Callable[[Tensors], Tensors], inputs: Tensors) -> Callable[[], Tensors]:
        tape = _Tape(inputs)
        with tape:
            found = run(inputs)
        self.made += 1
        returned = [tape.slot(each) for each in found]
        ops, fixed = tape.ops, {**dict(enumerate(inputs)), **tape.outside}
        last: Tensors = []

        def play() -> Tensors:
            for each in last:
                each.fill_(torch.nan) if each.is_floating_point() else each.zero_()
            values: dict[int, Any] = dict(fixed)
            for func, (args, kwargs), out in ops:
                args, kwargs = tree_map_only(_Slot, values.__getitem__, (args, kwargs))
                made = func(*args, **kwargs)
                for slot, each in zip(tree_leaves(out), tree_leaves(made), strict=True):
                    if isinstance(slot, _Slot):
                        values[slot] = each
            self.played += 1
            own = {id(each) for each in fixed.values()}
            last[:] = [values[slot] for slot in returned if id(values[slot]) not in own]
            return [values[slot] for slot in returned]

        return play

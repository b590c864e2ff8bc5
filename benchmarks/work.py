"""Work that can be counted where seconds cannot be trusted: operators, bytes gathered, waits of the host."""

from __future__ import annotations

import weakref
from collections import Counter
from contextlib import ExitStack
from typing import Any
from unittest.mock import patch

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

from surgery.core.early import Early
from surgery.core.values import tensors

GATHERS = {"index_select", "gather", "index", "embedding"}


class KernelMode(TorchDispatchMode):
    """Sees every op that runs, as the parts that composite ops are made of."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        # In inference mode composite ops arrive whole; their parts are what runs.
        with self:
            parts = func.decompose(*args, **kwargs)
        if parts is not NotImplemented:
            return parts
        out = func(*args, **kwargs)
        self.ran(func, args, kwargs, out)
        return out

    def ran(self, func: Any, args: Any, kwargs: Any, out: Any) -> None:
        """An op has run on `args` and `kwargs` and made `out`."""
        raise NotImplementedError


class OperatorCounter(KernelMode):
    """Operators that run, views included, and the bytes that gathers read by an index.

    operators: by name. gathered: bytes of the rows that index_select, gather, index and embedding made.
    """

    def __init__(self) -> None:
        super().__init__()
        self.operators: Counter[str] = Counter()
        self.gathered = 0

    def ran(self, func: Any, args: Any, kwargs: Any, out: Any) -> None:
        name = func.overloadpacket.__name__
        self.operators[name] += 1
        if name in GATHERS:
            self.gathered += sum(tensor.numel() * tensor.element_size() for tensor in tensors(out))

    @property
    def total(self) -> int:
        """Operators that ran."""
        return self.operators.total()


NO_WORK = {"empty", "empty_like", "empty_strided", "new_empty", "new_empty_strided"}


class LaunchCounter(KernelMode):
    """Operators that make or write memory: each would launch at least one kernel on an accelerator. Views, no-ops and
    allocations are left out. launches: by name."""

    def __init__(self) -> None:
        super().__init__()
        self.launches: Counter[str] = Counter()

    def ran(self, func: Any, args: Any, kwargs: Any, out: Any) -> None:
        name = func.overloadpacket.__name__
        given = {tensor.untyped_storage().data_ptr() for tensor in tensors([*args, *kwargs.values()])}
        made = any(tensor.untyped_storage().data_ptr() not in given for tensor in tensors(out))
        if name not in NO_WORK and (made or func._schema.is_mutable):
            self.launches[name] += 1

    @property
    def total(self) -> int:
        """Launches."""
        return self.launches.total()


class SyncCounter(TorchFunctionMode):
    """Calls that make the host wait for the device, whatever device the model is on.

    Values read into Python or numpy, copies to the CPU, shapes that depend on values (nonzero, boolean masks). The
    calls are counted as they are written, so a model on the CPU shows what a GPU would wait for. A copy that was
    started early (`Early`) is none, if anything was launched between its start and its read.

    syncs: by name of the call. early: of every copy that was started early and read, the launches in between.
    """

    def __init__(self) -> None:
        super().__init__()
        self.syncs: Counter[str] = Counter()
        self.early: list[int] = []
        self._launched = LaunchCounter()
        self._started: weakref.WeakKeyDictionary[Early, int] = weakref.WeakKeyDictionary()

    def __enter__(self) -> SyncCounter:
        start, arrive = Early.__init__, Early._arrived

        def started(early: Early, values: Tensor) -> None:
            start(early, values)
            self._started[early] = self._launched.total

        def arrived(early: Early) -> list[float]:
            between = self._launched.total - self._started.get(early, self._launched.total)
            before = self.syncs.copy()
            found = arrive(early)
            if between:
                self.syncs = before
                self.early.append(between)
            return found

        with ExitStack() as stack:
            stack.enter_context(patch.object(Early, "__init__", started))
            stack.enter_context(patch.object(Early, "_arrived", arrived))
            stack.enter_context(self._launched)
            super().__enter__()
            self._entered = stack.pop_all()
        return self

    def __exit__(self, *error: Any) -> None:
        super().__exit__(*error)
        self._entered.close()

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        name = getattr(func, "__name__", str(func))
        if name in _WAITS or (name == "where" and len(args) + len(kwargs) == 1) or _by_mask(name, args):
            self.syncs[name] += 1
        elif name == "to" and any(_to_cpu(args[0], value) for value in (*args[1:], *kwargs.values())):
            self.syncs["to cpu"] += 1
        return func(*args, **kwargs)

    @property
    def total(self) -> int:
        """Waits."""
        return self.syncs.total()

    def again(self) -> None:
        """Count from here on. What was started before is known to have been."""
        self.syncs, self.early = Counter(), []


_WAITS = {
    "item", "tolist", "cpu", "numpy", "__array__", "__bool__", "__int__", "__float__", "__index__", "nonzero",
    "argwhere", "masked_select", "unique", "unique_consecutive", "equal", "allclose", "is_nonzero",
}  # fmt: skip


def _by_mask(name: str, args: Any) -> bool:
    if name not in ("__getitem__", "__setitem__"):
        return False
    places = args[1] if isinstance(args[1], tuple) else (args[1],)
    # x[mask] = number needs no shape; every other use of a boolean mask asks how many it selects.
    filled = name == "__setitem__" and not isinstance(args[2], Tensor)
    return not filled and any(isinstance(place, Tensor) and place.dtype == torch.bool for place in places)


def _to_cpu(tensor: Tensor, target: Any) -> bool:
    # On the CPU a device held in a variable is the model's own; only the word itself asks for a copy to the host.
    if isinstance(target, str):
        return target == "cpu"
    return isinstance(target, torch.device) and target.type == "cpu" != tensor.device.type


def held_bytes(session: Any) -> int:
    """Bytes of every tensor storage reachable from a session, each storage once."""
    storages: dict[int, int] = {}
    seen: set[int] = set()
    waiting = [session]
    while waiting:
        item = waiting.pop()
        if id(item) in seen:
            continue
        seen.add(id(item))
        if isinstance(item, Tensor):
            storages[item.untyped_storage().data_ptr()] = item.untyped_storage().nbytes()
        elif isinstance(item, dict):
            waiting += item.values()
        elif isinstance(item, (list, tuple, set)):
            waiting += item
        elif type(item).__module__.startswith(("surgery.", "transformers.")) and hasattr(item, "__dict__"):
            waiting += vars(item).values()
    return sum(storages.values())

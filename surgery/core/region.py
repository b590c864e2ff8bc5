"""One call of a part as a region from tensors to tensors, to be recorded once and replayed.

What goes in is what the host gives the part and what operations laid into the context of the frame for the modules
below; what comes out is the part's output and what those modules noted there. A region that reads a tensor from
anywhere else but the model's own weights, or changes anything but tensors, is not recorded: its replay would be wrong.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from surgery.core.surgery import Surgery
from surgery.core.values import Path, at, leaves, put, rebuilt, signature, tensors

Play = Callable[[], list[Tensor]]
Record = Callable[[Callable[[list[Tensor]], list[Tensor]], list[Tensor]], Play]
"""Makes a recording of a function of tensors: (function, its static inputs) -> what runs it again on what then lies in
them. Every call may overwrite what the one before returned."""


class UnfitError(Exception):
    """A call that cannot be replayed; says why."""


@dataclass(frozen=True, eq=False)
class Given:
    """What goes into one call. notes: the frame's records, and what token-to-image attentions read."""

    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    notes: dict[str, Any]

    @classmethod
    def of(cls, surgery: Surgery, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Given:
        """Of the call in progress."""
        context = surgery.context
        names = ("records", "decoder_inputs") if context is not None else ()
        return cls(args, kwargs, {name: getattr(context, name) for name in names})


class Region:
    """One part, recorded for one kind of call.

    Args:
        surgery: of the model. part: the module. given: to the first call; what `Record` then runs on are copies of it.
        proceed: the host's own module, given args and kwargs. record: see `Record`.
        constants: tensors besides the model's own that may be read from outside, and never change.

    Raises:
        UnfitError: see the module.
    """

    def __init__(
        self, surgery: Surgery, part: nn.Module, given: Given, proceed: Callable[..., Any], record: Record,
        constants: list[Tensor],
    ) -> None:  # fmt: skip
        self._surgery, self._proceed = surgery, proceed
        with torch.inference_mode(False), torch.no_grad():
            self._bases = [_empty_like(_base(each)) for each in tensors(given)]
        self._inputs = [base.expand(each.shape) for base, each in zip(self._bases, tensors(given), strict=True)]
        own = iter(self._inputs)
        self._given: Given = rebuilt(given, lambda _: next(own))
        self._load(given)
        watch = _Watch(self._inputs)
        with uncached_casts(), watch:
            found = self._run(self._inputs)
        self._held = self._known(surgery.host.model, watch.read, constants)
        self._constant = [None if watch.made_or_given(each) else each for each in found]
        self._weights = list(_weights(part))
        try:
            with uncached_casts():
                self._play = record(self._replayed, self._inputs)
        except RuntimeError as error:
            # It ran a moment ago: what fails is the recording.
            raise UnfitError(f"cannot be recorded: {str(error).splitlines()[0][:200]}") from error

    def current(self) -> bool:
        """Whether the part's weights lie where they lay when it was recorded."""
        return all(home.get(name) is own and own.data_ptr() == where for home, name, own, where in self._weights)

    def __call__(self, given: Given) -> Any:
        """Replay. What the modules below note lands in what `given` holds."""
        self._load(given)
        played = self._play()
        # The next replay writes there.
        kept = [torch.empty_like(each) for each in played]
        if kept:
            torch._foreach_copy_(kept, played)
        fresh = iter(kept)
        own = iter([next(fresh) if each is None else each for each in self._constant])
        out = rebuilt(self._out, lambda _: next(own))
        for path, value in self._writes.items():
            put(given.notes, path, rebuilt(value, lambda _: next(own)))
        return out

    def _load(self, given: Given) -> None:
        with torch.no_grad():
            torch._foreach_copy_(self._bases, [_base(each) for each in tensors(given)])

    def _replayed(self, inputs: list[Tensor]) -> list[Tensor]:
        return [each for constant, each in zip(self._constant, self._run(inputs), strict=True) if constant is None]

    def _run(self, inputs: list[Tensor]) -> list[Tensor]:
        """The part on `inputs`: the tensors of its output, and then of what was noted."""
        own = iter(inputs)
        twin: Given = rebuilt(self._given, lambda _: next(own))
        before = dict(leaves(twin.notes))
        context = self._surgery.context
        if context is not None:
            context = replace(context, **twin.notes)
        with self._surgery.within(context):
            self._out = self._proceed(twin.args, twin.kwargs)
        self._writes: dict[Path, Any] = {}
        inner = {path[:depth] for path in before for depth in range(len(path))}
        for path, leaf in leaves(twin.notes):
            if leaf is before.get(path):
                continue
            if not isinstance(leaf, Tensor):
                raise UnfitError(f"changes {path[-1]!r}, which is no tensor")
            # A container may have come where nothing was.
            place = next(path[:depth] for depth in range(1, len(path) + 1) if path[:depth] not in inner)
            self._writes[place] = at(twin.notes, place)
        return [*tensors(self._out), *tensors(list(self._writes.values()))]

    @staticmethod
    def _known(model: nn.Module, read: dict[int, Tensor], constants: list[Tensor]) -> list[Tensor]:
        """The tensors that are read from outside, all of which are the model's own or `constants`."""
        own = {_place(each) for module in model.modules() for each in _attributes(module)}
        own.update(_place(each) for each in constants)
        stranger = next((each for place, each in read.items() if place not in own), None)
        if stranger is not None:
            raise UnfitError(f"reads a tensor {tuple(stranger.shape)} that is not the model's")
        return list(read.values())


def _base(tensor: Tensor) -> Tensor:
    """What an expanded tensor was expanded from."""
    for dim, (size, stride) in enumerate(zip(tensor.shape, tensor.stride(), strict=True)):
        if stride == 0 and size > 1:
            tensor = tensor.narrow(dim, 0, 1)
    return tensor


def _empty_like(tensor: Tensor) -> Tensor:
    """With its strides: kernels may be chosen by them. Raises UnfitError."""
    found = torch.empty_like(tensor, memory_format=torch.preserve_format)
    if found.stride() != tensor.stride():
        raise UnfitError("is given a tensor with gaps or overlaps")
    return found


def _attributes(module: nn.Module) -> Iterator[Tensor]:
    """Parameters, buffers, and what hosts keep as plain attributes or in a cache."""
    for value in vars(module).values():
        if isinstance(value, Tensor):
            yield value
        elif isinstance(value, dict):
            yield from (each for each in value.values() if isinstance(each, Tensor))


def _weights(part: nn.Module) -> Iterator[tuple[dict[str, Any], str, Tensor, int]]:
    for module in part.modules():
        for home in (module._parameters, module._buffers):
            for name, own in home.items():
                if own is not None:
                    yield home, name, own, own.data_ptr()


def _place(tensor: Tensor) -> int:
    return tensor.untyped_storage().data_ptr()


@contextmanager
def uncached_casts() -> Iterator[None]:
    """Inside, autocast casts weights anew: a cast kept from before would be another region's."""
    before = torch.is_autocast_cache_enabled()
    torch.set_autocast_cache_enabled(False)
    try:
        yield
    finally:
        torch.set_autocast_cache_enabled(before)


class _Watch(TorchDispatchMode):
    """Notes what is read that neither was given nor made inside. read: by where it lies."""

    def __init__(self, given: list[Tensor]) -> None:
        super().__init__()
        self._given = {_place(each) for each in given}
        self._made: set[int] = set()
        self.read: dict[int, Tensor] = {}

    def made_or_given(self, tensor: Tensor) -> bool:
        """Whether it is neither a weight nor a constant."""
        return _place(tensor) in self._made | self._given

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        named = kwargs or {}
        if func is torch.ops.aten._local_scalar_dense.default:
            raise UnfitError("reads a value")
        # A number that Python makes a tensor of comes from nowhere, and is part of the recording.
        for each in tensors((args, named)) if func is not torch.ops.aten.lift_fresh.default else ():
            place = _place(each)
            if place and place not in self._made and place not in self._given:
                self.read[place] = each
        out = func(*args, **named)
        for each in tensors(out):
            if _place(each) not in self._given and _place(each) not in self.read:
                self._made.add(_place(each))
        return out


def kind_of(part: str, given: Given) -> Any:
    """What a recording of this call holds good for."""
    casts = tuple(
        torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else None
        for device in {each.device.type for each in tensors(given)}
    )
    return part, signature(given), casts

"""Swap a module's class in place, so that paths, state-dict keys, hooks and `isinstance` stay as they were.

The new class is made at run time as `(Mixin, HostClass)` and bears the host class's name, because hosts write that
name into saved files (`config.json`: architectures). One class exists per pair, which keeps `torch.compile` guards,
`deepcopy` and pickling working.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from torch import nn

_SLOT = "_surgery"


class Patched:
    """Base of all mixins that are put in front of a host class."""

    if TYPE_CHECKING:

        def __getattr__(self, name: str) -> Any:
            """What the host's class has."""

    def __reduce_ex__(self, protocol: Any) -> tuple[Any, ...]:
        mixin, host = type(self).__bases__
        state = self.__dict__.copy()
        # Left by `module.compile()`; torch's own modules drop it too.
        state.pop("_compiled_call_impl", None)
        return _revive, (mixin, host), state


_CLASSES: dict[tuple[type, type], type] = {}


def patched_class(mixin: type[Patched], host: type) -> type:
    """Return the class `(mixin, host)`, always the same one for the same pair."""
    pair = (mixin, host)
    if pair not in _CLASSES:
        namespace = {"__module__": host.__module__, "__doc__": host.__doc__, "__qualname__": host.__qualname__}
        metaclass: Any = type(host)
        _CLASSES.setdefault(pair, metaclass(host.__name__, pair, namespace))
    return _CLASSES[pair]


def _revive(mixin: type[Patched], host: type) -> Any:
    cls: Any = patched_class(mixin, host)
    return cls.__new__(cls)


def is_patched(module: object) -> bool:
    """Whether `module` has a class of ours in front of its own."""
    return isinstance(module, Patched)


def host_class(module: object) -> type:
    """The host's own class of `module`, patched or not."""
    return type(module).__bases__[1] if is_patched(module) else type(module)


def patch(module: nn.Module, mixin: type[Patched], payload: Any) -> None:
    """Swap the class of `module`; `payload` is what the mixin reads as `self._surgery`."""
    cls = patched_class(mixin, type(module))
    module.__dict__[_SLOT] = payload
    try:
        module.__class__ = cls
    except TypeError:
        del module.__dict__[_SLOT]
        raise


def unpatch(module: nn.Module) -> None:
    """Give `module` its host class back and remove what `patch` added; a stock module is left alone."""
    if is_patched(module):
        if own_forward(module):
            del module.__dict__["forward"]
        module.__class__ = host_class(module)
        module.__dict__.pop(_SLOT, None)


def own_forward(module: nn.Module) -> bool:
    """Whether an instance `forward` merely repeats the class's own.

    Early transformers 5.x leave one behind on every module whose outputs they have recorded.
    """
    forward = module.__dict__.get("forward")
    return getattr(forward, "__self__", None) is module and getattr(forward, "__func__", 0) is type(module).forward

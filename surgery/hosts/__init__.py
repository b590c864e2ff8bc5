"""The model families the surgery knows, each in a folder of its own. A host library is imported only for its models."""

from __future__ import annotations

from collections.abc import Iterator
from importlib import import_module
from typing import TYPE_CHECKING

from torch import nn

from surgery.errors import UnsupportedModelError

if TYPE_CHECKING:
    from surgery.core.host import HostView

_HOSTS: list[str | type[HostView]] = [
    "surgery.hosts.transformers.view:TransformersView",
    "surgery.hosts.sam2.view:Sam2View",
]


def register(host: type[HostView]) -> None:
    """Make a host known that is not of this package; `HostView.matches` must answer for exactly its own models."""
    _HOSTS.append(host)


def hosts() -> Iterator[type[HostView]]:
    """Every host."""
    for host in _HOSTS:
        if isinstance(host, str):
            module, name = host.split(":")
            yield getattr(import_module(module), name)
        else:
            yield host


def view_of(model: object) -> HostView:
    """Find the host of `model`.

    Raises:
        UnsupportedModelError: not a video model of a known host.
    """
    for host in hosts():
        if host.matches(model):
            assert isinstance(model, nn.Module)
            return host(model)
    for host in hosts():
        lack = host.near_miss(model)
        if lack is not None:
            raise UnsupportedModelError(lack)
    kind, expected = type(model).__name__, " or ".join(host.models for host in hosts())
    if not isinstance(model, nn.Module):
        raise UnsupportedModelError(f"expected a SAM 2 video model ({expected}), got {kind}")
    raise UnsupportedModelError(f"{kind} is not a SAM 2 video model; expected {expected}")

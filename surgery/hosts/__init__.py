"""The model families the surgery knows, each in a folder of its own. A host library is imported only for its models."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from importlib import import_module
from typing import TYPE_CHECKING, Any

from torch import nn

from surgery.errors import ModelLoadError, UnsupportedModelError, nearest
from surgery.hosts.sam21 import SIZES
from surgery.missing import first_present, require

if TYPE_CHECKING:
    import torch

    from surgery.core.host import HostView
    from surgery.core.loader import Loader

_HOSTS: list[str | type[HostView]] = [
    "surgery.hosts.transformers.view:TransformersView",
    "surgery.hosts.sam2.view:Sam2View",
    "surgery.hosts.transformers_sam3.view:Sam3TrackerView",
    "surgery.hosts.transformers_sam3.text:Sam3VideoView",
]
_OF_PICTURES: list[str] = [
    "surgery.hosts.transformers.image:TransformersImageView",
    "surgery.hosts.sam2.image:Sam2ImageView",
]
"""Models of pictures alone, of the same libraries."""


def register(host: type[HostView]) -> None:
    """Make a host known that is not of this package; `HostView.matches` must answer for exactly its own models."""
    _HOSTS.append(host)


def hosts() -> Iterator[type[HostView]]:
    """Every host of video models."""
    yield from _loaded(_HOSTS)


def _loaded(listed: Sequence[str | type[HostView]]) -> Iterator[type[HostView]]:
    for host in listed:
        if isinstance(host, str):
            module, name = host.split(":")
            yield getattr(import_module(module), name)
        else:
            yield host


def detector(name: str, device: torch.device) -> Any:
    """An object detector by its Hub id or folder, for any host's model; see `Loader.detector`.

    Raises:
        MissingLibraryError: the library that loads detectors is not installed.
        HubError, ModelLoadError: there is no such detector.
    """
    loader = next(host.loader for host in hosts() if host.loader.detects)
    require(loader.library)
    return loader.detector(name, device)


def builders() -> dict[str, Loader]:
    """Every host's loader by the host's name, in the order in which they are tried where none is named."""
    return {host.name: host.loader for host in sorted(hosts(), key=lambda host: not host.loader.default)}


def sizes_of(loader: Loader) -> Mapping[str, Any]:
    """Sizes by name of the models that a loader builds."""
    return SIZES if loader.own is None else loader.own


def loader_of(name: str | None = None, vos: bool = False, size: str | None = None) -> Loader:
    """The loader of the host of that name, or of the first that can be used.

    Args:
        vos: it must build a predictor that compiles itself whole.
        size: it must build models of this size; None: any of SAM 2.1.

    Raises:
        ModelLoadError: no such host, or none of that name that can build such a predictor or such a size.
        MissingLibraryError: the host's library is not installed.
    """
    known = builders()
    if name is not None and name not in known:
        raise ModelLoadError(f"host {name!r} is not one of {', '.join(known)}{nearest(name, known)}")
    able = {
        host: loader
        for host, loader in known.items()
        if (loader.own is None if size is None else size in sizes_of(loader)) and (loader.vos or not vos)
    }
    if not able:
        raise ModelLoadError(f"no host builds {size or 'SAM 2.1'} as a VOS predictor")
    if name is None:
        first = first_present(loader.library for loader in able.values())
        return next(loader for loader in able.values() if loader.library == first)
    if name not in able:
        asked, lack = ("vos=True", "VOS predictor") if vos else (size or "SAM 2.1", "model of that size")
        raise ModelLoadError(f"{asked} needs host={' or '.join(map(repr, able))}: {name} has no {lack}")
    require(able[name].library)
    return able[name]


def view_of(model: object, pictures: bool = False) -> HostView:
    """Find the host of `model`.

    pictures: a model of pictures alone will do.

    Raises:
        UnsupportedModelError: not a video model of a known host.
    """
    for host in (*hosts(), *(_loaded(_OF_PICTURES) if pictures else ())):
        if host.matches(model):
            assert isinstance(model, nn.Module)
            return host(model)
    for host in hosts():
        lack = host.near_miss(model)
        if lack is not None:
            raise UnsupportedModelError(lack)
    kind, expected = type(model).__name__, " or ".join(host.models for host in hosts())
    if not isinstance(model, nn.Module):
        raise UnsupportedModelError(f"expected a video model ({expected}), got {kind}")
    raise UnsupportedModelError(f"{kind} is not a video model of SAM 2 or SAM 3; expected {expected}")

"""Whose surgery a module carries, and whether a model still has the modules the surgery was done on."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from torch import nn

from surgery.core.patching import is_patched
from surgery.errors import ModelStateError

if TYPE_CHECKING:
    from surgery.core.surgery import Surgery


def surgery_of(module: nn.Module) -> Surgery | None:
    """The surgery that a patched module is a part of; None for a copy of one without its model."""
    return vars(module)["_surgery"].surgery


def strangers(model: nn.Module, own: Surgery | None) -> Iterator[tuple[str, nn.Module]]:
    """Patched modules of `model` with their paths that are not of its own surgery."""
    for path, module in model.named_modules():
        if is_patched(module) and (own is None or surgery_of(module) is not own):
            yield path, module


def is_orphan(module: nn.Module) -> bool:
    """Whether a patched module is of no model's surgery: a copy of a part of one."""
    own = surgery_of(module)
    return own is None or not is_patched(own.host.model) or surgery_of(own.host.model) is not own


def require_own(model: nn.Module, own: Surgery | None) -> None:
    """Raises ModelStateError when a module carries the surgery of another model, or a copy of one."""
    for path, module in strangers(model, own):
        if is_orphan(module):
            raise ModelStateError(
                f"{path} is a copy of a module under surgery, without the model it belongs to; call desparsify on "
                "this model first, which makes it a stock module again"
            )
        raise ModelStateError(
            f"{path} is shared with another model that is under surgery; call desparsify on that model first, or give "
            "this one a module of its own"
        )


@dataclass(frozen=True, eq=False)
class Structure:
    """The way from a model down to every patched module: (path, parent, name in the parent, child)."""

    edges: tuple[tuple[str, nn.Module, str, nn.Module], ...] = ()

    @classmethod
    def of(cls, model: nn.Module, patched: Sequence[nn.Module]) -> Structure:
        """As it is now."""
        wanted, edges = {id(module) for module in patched}, {}
        for path, module in model.named_modules():
            if not path or id(module) not in wanted:
                continue
            parent, names = model, path.split(".")
            for depth, name in enumerate(names):
                child = parent.get_submodule(name)
                edges[id(parent), name] = (".".join(names[: depth + 1]), parent, name, child)
                parent = child
        return cls(tuple(edges.values()))

    def require(self) -> None:
        """Raises ModelStateError when a module was replaced. Wrapping one is no replacement."""
        for path, parent, name, child in self.edges:
            found = parent._modules.get(name)
            if found is not child and not (found is not None and any(each is child for each in found.modules())):
                raise ModelStateError(
                    f"{path} is another module than the surgery was done on; call desparsify, then sparsify again"
                )

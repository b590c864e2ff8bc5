"""What every call on a model comes down to: the surgery it is under; one applied, undone, or left out for now."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Protocol, TypeVar

from torch import nn

from surgery.core.access import access_to, paused
from surgery.core.engine import cut, plan, undo, undo_copies
from surgery.core.patching import is_patched
from surgery.core.surgery import Surgery
from surgery.errors import ModelStateError
from surgery.hosts import view_of
from surgery.recipe import Recipe

M = TypeVar("M")


class Weights(Protocol):
    """Trained weights of operations, as an adapter has them."""

    @property
    def source(self) -> str:
        """Where they are from."""

    def fill(self, surgery: Surgery, force: bool) -> None:
        """Copy them into the modules of a surgery that is not done yet. Raises AdapterMismatchError when they are not
        for its model and recipe."""


def apply(model: M, recipe: Recipe, adapter: Weights | None = None, force: bool = False) -> M:
    """Put `model` under `recipe`, in place; arguments and errors as in `sparsify`."""
    host = view_of(model, pictures=True)
    with access_to(host.model).change():
        before = current_surgery(model)
        surgery = plan(host, recipe, before)
        if adapter is not None:
            adapter.fill(surgery, force)
            surgery.adapter = adapter.source
        desparsify(model)
        try:
            cut(surgery)
        except BaseException:
            if before is not None:
                cut(before)
            raise
    return model


def desparsify(model: M) -> M:
    """Give the stock model back, bit for bit: classes, state-dict keys, attributes, and every session it touched.

    A stock model is returned unchanged. Other threads' frames are waited for.

    Raises:
        UnsupportedModelError: not a torch module.
        ModelStateError: called from inside a frame.
    """
    module = _module(model)
    with access_to(module).change():
        surgery = current_surgery(model)
        if surgery is not None:
            undo(surgery)
        else:
            undo_copies(module)
    return model


@contextmanager
def disabled(model: nn.Module) -> Iterator[None]:
    """Dense inside, sparse again after; a video may go on across both.

    It belongs to the caller: other threads and asyncio tasks track sparse meanwhile. Contexts may be nested, and closed
    in any order.

    Raises:
        ModelStateError: the model is not under surgery.
    """
    with paused(require_surgery(model)):
        yield


def current_surgery(model: object) -> Surgery | None:
    """The surgery a model is under, or None for a stock model. Raises UnsupportedModelError for what is none."""
    module = _module(model)
    found = vars(module)["_surgery"].surgery if is_patched(module) else None
    return found if isinstance(found, Surgery) and found.host.model is module else None


def require_surgery(model: object) -> Surgery:
    """The surgery a model is under. Raises ModelStateError for a stock one."""
    surgery = current_surgery(model)
    if surgery is None:
        raise ModelStateError(f"this {type(model).__name__} is not under surgery; call sparsify(model) first")
    return surgery


def _module(model: object) -> nn.Module:
    if not isinstance(model, nn.Module):
        view_of(model)  # which says what is expected
        raise AssertionError
    return model

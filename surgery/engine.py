"""What every call on a model comes down to: the surgery it is under; one applied, undone, or left out for now."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Protocol, TypeVar

from torch import nn

from surgery.access import access_to, paused
from surgery.errors import ModelStateError
from surgery.graft import is_grafted
from surgery.hosts import view_of
from surgery.hosts.base import HostView, SpanInfo
from surgery.operate import inspect, operate, undo, undo_copies
from surgery.operations import SparseWindowRouting
from surgery.operations.window_geometry import tile_grid
from surgery.recipe import Recipe
from surgery.routing.shortcut import Shortcut, make_shortcut

M = TypeVar("M")


class Weights(Protocol):
    """Weights of a shortcut, as an adapter has them."""

    @property
    def source(self) -> str:
        """Where they are from."""

    def check(self, view: HostView, span: SpanInfo, shortcut: str, force: bool) -> None:
        """Raises AdapterMismatchError when they are not for this model and kind of shortcut."""

    def fill(self, shortcut: Shortcut) -> None:
        """Copy them into a shortcut of that kind."""


def apply(model: M, recipe: Recipe, weights: Weights | None = None, force: bool = False) -> M:
    """Put `model` under `recipe`, in place; arguments and errors as in `sparsify`."""
    view = view_of(model)
    with access_to(view.model).change():
        before = current_view(model)
        span = inspect(view, recipe, before.binding if before is not None else None)
        shortcut = _shortcut(view, span, recipe, weights, force) if span is not None else None
        old = before.shortcut_module(before.span_info) if before is not None and before.span_info is not None else None
        desparsify(model)
        try:
            operate(view, recipe, span, shortcut)
        except BaseException:
            if before is not None and before.recipe is not None:
                operate(before, before.recipe, before.span_info, old)
            raise
        view.adapter = weights.source if weights is not None else None
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
        view = current_view(model)
        if view is not None:
            undo(view)
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
    with paused(require_view(model).binding):
        yield


def current_view(model: object) -> HostView | None:
    """The view of a model under surgery, or None for a stock model. Raises UnsupportedModelError for what is none."""
    module = _module(model)
    view = vars(module).get("_surgery") if is_grafted(module) else None
    return view if isinstance(view, HostView) else None


def require_view(model: object) -> HostView:
    """The view of a model under surgery. Raises ModelStateError for a stock one."""
    view = current_view(model)
    if view is None:
        raise ModelStateError(f"this {type(model).__name__} is not under surgery; call sparsify(model) first")
    return view


def _module(model: object) -> nn.Module:
    if not isinstance(model, nn.Module):
        view_of(model)  # which says what is expected
        raise AssertionError
    return model


def _shortcut(view: HostView, span: SpanInfo, recipe: Recipe, weights: Weights | None, force: bool) -> Shortcut:
    routing = recipe.find(SparseWindowRouting)
    assert routing is not None
    kind = routing.shortcut.type
    reference = next(view.blocks()[span.entry].parameters())
    corrected = tile_grid(view, span).widths if routing.correction == "patch" else None
    shortcut = make_shortcut(kind, span.channels, corrected=corrected)
    if weights is not None:
        weights.check(view, span, kind, force)
        weights.fill(shortcut)
    return shortcut.to(reference.device, reference.dtype).train(bool(view.model.training))

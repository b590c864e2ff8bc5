"""A stock model and its sparse twin, made from one model that stays as it is and lends both its weights."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from surgery.api import current_view, desparsify, require_view, sparsify
from surgery.bench.settings import BenchmarkError, Settings
from surgery.hosts import view_of
from surgery.hosts.base import HostView
from surgery.hosts.compiled import must_keep_forward, part_module
from surgery.operate import retune
from surgery.operations import PARTS, CompileParts
from surgery.recipe import Metadata, Recipe

if TYPE_CHECKING:
    from surgery.adapters.files import Adapter

_DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


@dataclass(frozen=True)
class Pair:
    """Views of the two models; the sparse one is under surgery."""

    dense: HostView
    sparse: HostView
    device: torch.device

    def views(self) -> tuple[HostView, HostView]:
        """Dense, sparse."""
        return self.dense, self.sparse


def twins(
    model: Any, recipe: str | Path | Recipe | None, adapter: str | Path | Adapter | None, settings: Settings
) -> Pair:
    """The two models of a case; `model` is not changed.

    Weights are shared, so that they lie in memory once. Of a model under surgery the sparse twin keeps recipe and
    shortcut unless `recipe` or `adapter` says otherwise.

    Raises:
        BenchmarkError: the host cannot reach the precision, or windows are forced and the recipe routes none.
    """
    host = view_of(model).name
    if settings.precision == "fp16" and host == "sam2":
        raise BenchmarkError(
            "precision fp16 needs the transformers host: sam2 keeps its memory in bf16, which fp16 autocast cannot "
            "join with fp16; use bf16"
        )
    if settings.cast == "weights":
        if host != "transformers":
            raise BenchmarkError(
                f"cast 'weights' needs the transformers host: {host} feeds its encoder fp32 frames; use cast 'autocast'"
            )
        model = copy.deepcopy(model).to(_DTYPES[settings.precision])
    dense, sparse = _twin(model), _twin(model)
    desparsify(dense)
    operation = compile_operation(settings)
    if current_view(sparse) is None or recipe is not None or adapter is not None:
        sparsify(sparse, recipe, adapter=adapter, compile=False)
    view = require_view(sparse)
    assert view.recipe is not None
    if operation is not None:
        for part in operation.parts:
            if must_keep_forward(part_module(view, part)):
                raise BenchmarkError(f"{part} carries a compiled forward already; give the plain predictor")
        # The stock twin is compiled by the same operation, and by nothing else.
        alone = Metadata(name="compiled", description="The stock model, compiled.")
        sparsify(dense, Recipe(metadata=alone, operations=(operation,)))
    retune(view, view.recipe.with_compilation(operation))
    if settings.windows is not None and view.binding.routing is None:
        name = view.recipe.metadata.name if view.recipe is not None else None
        raise BenchmarkError(f"windows {settings.windows}: recipe {name!r} routes no windows; leave windows out")
    return Pair(current_view(dense) or view_of(dense), view, next(sparse.parameters()).device)


def compile_operation(settings: Settings) -> CompileParts | None:
    """What the settings compile, as a recipe's operation."""
    if settings.compile == "none":
        return None
    parts = ("encoder",) if settings.compile == "encoder" else PARTS
    return CompileParts.model_validate({"parts": parts, "mode": settings.mode})


def _twin(model: nn.Module) -> nn.Module:
    shared = {id(tensor): tensor for tensor in (*model.parameters(), *model.buffers())}
    return copy.deepcopy(model, shared)


@contextmanager
def precision(settings: Settings, device: torch.device) -> Iterator[None]:
    """Inference mode, and autocast where the settings ask for it."""
    with ExitStack() as stack:
        stack.enter_context(torch.inference_mode())
        if settings.precision != "fp32" and settings.cast == "autocast":
            stack.enter_context(torch.autocast(device.type, dtype=_DTYPES[settings.precision]))
        yield


@contextmanager
def uncompiled(views: Sequence[HostView]) -> Iterator[None]:
    """Inside, nothing runs compiled."""
    with ExitStack() as stack:
        for view in views:
            stack.enter_context(view.binding.uncompiled())
        yield

"""A stock model and its sparse twin, made from one model that stays as it is and lends both its weights."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import torch
from torch import nn

from surgery.api import sparsify
from surgery.bench.settings import BenchmarkError, Settings
from surgery.core.engine import reconfigure
from surgery.core.host import HostView
from surgery.core.operation import Operation
from surgery.core.parts import ENCODER, PARTS
from surgery.core.surgery import Surgery
from surgery.engine import current_surgery, desparsify, require_surgery
from surgery.hosts import hosts, view_of
from surgery.operations import CompileParts, CudaGraphs
from surgery.operations.compile import must_keep_forward
from surgery.operations.precision import BoundPrecision
from surgery.operations.window_routing.bound import WindowRouter
from surgery.recipe import Metadata, Recipe

if TYPE_CHECKING:
    from surgery.adapters.files import AnyAdapter

T = TypeVar("T")
_DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


@dataclass(frozen=True)
class Pair:
    """Two models. sparse: the surgery of one. dense: the other through its host; compiled: its surgery, where it is
    compiled by the same operation as the sparse one. own: the sparse recipe has a precision of its own, and the
    settings' is the dense model's alone."""

    dense: HostView
    sparse: Surgery
    device: torch.device
    own: bool = False
    compiled: Surgery | None = None

    def hosts(self) -> tuple[HostView, HostView]:
        """Dense, sparse."""
        return self.dense, self.sparse.host

    def surgeries(self) -> tuple[Surgery | None, Surgery]:
        """Dense, sparse."""
        return self.compiled, self.sparse


def twins(
    model: Any, recipe: str | Path | Recipe | None, adapter: str | Path | AnyAdapter | None, settings: Settings
) -> Pair:
    """The two models of a case; `model` is not changed.

    Weights are shared, so that they lie in memory once. Of a model under surgery the sparse twin keeps recipe and
    shortcut unless `recipe` or `adapter` says otherwise.

    The precision of the settings is that of both models, or of the dense one alone when the recipe has its own.

    Raises:
        BenchmarkError: the host cannot reach the precision, or windows are forced and the recipe routes none.
    """
    check_host(view_of(model), settings)

    def cut(model: Any) -> Any:
        if current_surgery(model) is None or recipe is not None or adapter is not None:
            sparsify(model, recipe, adapter=adapter, compile=False)
        return model

    dense, sparse = twin(model), cut(twin(model))
    own = require_surgery(sparse).find(BoundPrecision) is not None
    if settings.cast == "weights":
        converted = copy.deepcopy(model).to(_DTYPES[settings.precision])
        dense, sparse = twin(converted), sparse if own else cut(twin(converted))
    desparsify(dense)
    operation = compile_operation(settings, next(model.parameters()).device)
    if operation is not None:
        for part in PARTS if settings.compile != "encoder" else (ENCODER,):
            if must_keep_forward(view_of(dense).parts()[part]):
                raise BenchmarkError(f"{part} carries a compiled forward already; give the plain predictor")
        sparsify(dense, compiled_alone(operation))
    surgery = require_surgery(sparse)
    recipe = surgery.recipe
    assert recipe is not None
    reconfigure(surgery, recipe.with_operation(operation) if operation is not None else recipe.without(CompileParts))
    if settings.windows is not None and surgery.find(WindowRouter) is None:
        raise BenchmarkError(
            f"windows {settings.windows}: recipe {recipe.metadata.name!r} routes no windows; leave windows out"
        )
    return Pair(view_of(dense), surgery, next(sparse.parameters()).device, own, current_surgery(dense))


def compile_operation(settings: Settings, device: torch.device) -> Operation | None:
    """What the settings compile or record, as a recipe's operation. Raises BenchmarkError off a CUDA device."""
    if settings.compile == "none":
        return None
    if settings.compile == "graphs":
        if device.type != "cuda":
            raise BenchmarkError(f"compile 'graphs' records CUDA graphs; the model is on {device.type}")
        return CudaGraphs()
    parts = (ENCODER,) if settings.compile == "encoder" else PARTS
    return CompileParts.model_validate({"parts": parts, "mode": settings.mode})


def compiled_alone(operation: Operation) -> Recipe:
    """The recipe of a stock model that is compiled or recorded as a sparse one is, and nothing else."""
    metadata = Metadata(name="compiled", description="The stock model, compiled or recorded.")
    return Recipe(metadata=metadata, operations=(operation,))


def twin(model: nn.Module) -> nn.Module:
    """A copy of `model` on the same parameters and buffers."""
    shared = {id(tensor): tensor for tensor in (*model.parameters(), *model.buffers())}
    return copy.deepcopy(model, shared)


def check_host(view: HostView, settings: Settings) -> None:
    """Raises BenchmarkError when the host cannot reach the precision."""
    for asked, way in ((settings.precision, "precision {}"), (settings.cast, "cast {!r}")):
        if asked in view.cannot:
            alike = (host for host in hosts() if host.family == view.family)
            able = " or ".join(host.name for host in alike if asked not in host.cannot)
            raise BenchmarkError(f"{way.format(asked)} needs the {able} host: {view.name} {view.cannot[asked]}")


@contextmanager
def inference(device: torch.device) -> Iterator[None]:
    """Inference mode, around a whole measurement."""
    # The weights that autocast has cast are kept until its outermost context ends: as in a user's loop, after the last
    # frame and not after each.
    with torch.inference_mode(), torch.autocast(device.type, enabled=False):
        yield


def stepped(run: Iterator[T], device: torch.device, settings: Settings, own: bool = False) -> Iterator[T]:
    """The same steps, each under the autocast the settings ask for; `own`: the model has a precision of its own."""
    outer = settings.precision != "fp32" and settings.cast == "autocast" and not own
    dtype = _DTYPES[settings.precision]
    while True:
        # Entered for a step and not around the loop: the other model's frames lie between two steps.
        with torch.autocast(device.type, dtype=dtype) if outer else nullcontext():
            try:
                step = next(run)
            except StopIteration:
                return
        yield step


@contextmanager
def plain(pair: Pair) -> Iterator[None]:
    """Inside, no part runs compiled, by the recipe or by the predictor itself, nor in a precision of the recipe's:
    operations are counted in eager code."""
    with ExitStack() as stack:
        for surgery in pair.surgeries():
            if surgery is not None:
                stack.enter_context(surgery.plain_parts())
        for host in pair.hosts():
            for part in host.model.modules():
                if hasattr(vars(part).get("forward"), "_torchdynamo_orig_callable"):
                    stack.callback(vars(part).__setitem__, "forward", vars(part).pop("forward"))
        yield

"""The large parts of a model through torch.compile, each with a bounded set of graphs (docs/compile.md).

What changes from frame to frame is either a size that the graph takes as a symbol (windows computed, memory rows,
queries) or one of a few kinds of call. Every kind has a code object of its own, because torch counts the graphs of a
code object and gives up at eight. What a part notes for the surgery is read outside of the compiled region.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Hashable, Iterator
from dataclasses import dataclass
from time import perf_counter
from types import FunctionType
from typing import Any, ClassVar, Literal

import torch
from pydantic import Field, model_validator
from torch import Tensor, nn
from torch.utils._pytree import tree_map_only

from surgery.core.host import HostView
from surgery.core.operation import Bound, Operation, OwnWork, Patch
from surgery.core.parts import ATTENTION, DECODER, ENCODER, MEMORY, PARTS, Part, SomeParts
from surgery.core.patching import own_forward
from surgery.core.surgery import Surgery
from surgery.core.weights import require_unquantised
from surgery.errors import ModelStateError, RecipeError, nearest

CompileMode = Literal["default", "reduce-overhead", "max-autotune", "max-autotune-no-cudagraphs"]
Kind = tuple[Hashable, ...]


class CompileParts(Operation):
    """torch.compile of the large parts of the model, with a bounded set of graphs (docs/compile.md)."""

    type: Literal["compile"] = "compile"
    parts: SomeParts = Field(PARTS, description="what is compiled; the prompt encoder never is")
    mode: CompileMode = Field("default", description="of torch.compile; all but `default` are inductor's")
    backend: str = Field("inductor", min_length=1, max_length=80, description="any that torch.compile knows")

    alias: ClassVar[str] = "compile"

    @model_validator(mode="after")
    def _modes_are_of_inductor(self) -> CompileParts:
        if self.mode != "default" and self.backend != "inductor":
            raise ValueError(
                f"mode {self.mode!r} is one of inductor's; with backend {self.backend!r} use mode: default"
            )
        return self

    @property
    def clause(self) -> str:
        """See `Operation.clause`."""
        return "compiled"

    def check(self, host: HostView) -> list[nn.Module]:
        """See `Operation.check`: a backend that torch knows, and parts whose forward is their own."""
        known = torch.compiler.list_backends(())
        if self.backend not in known:
            raise RecipeError(
                f"compile.backend: torch knows no backend {self.backend!r}{nearest(self.backend, known)}; it has: "
                + ", ".join(known)
            )
        for part in self.parts:
            module = host.parts()[part]
            if must_keep_forward(module):
                raise ModelStateError(
                    f"{type(module).__name__} carries its own forward (accelerate dispatch or another patch), which "
                    f"compiling {part} would bypass; sparsify first, or leave {part} out of the parts of operation "
                    "compile"
                )
        return []

    def bind(self, surgery: Surgery, before: Bound[Any] | None) -> Compilation:
        """See `Operation.bind`."""
        return Compilation(self, surgery)


@dataclass
class Spent:
    """What compiling one part took so far. kinds: kinds of call compiled."""

    seconds: float = 0.0
    graphs: int = 0
    kinds: int = 0


class Compilation(OwnWork[CompileParts]):
    """The compiled forwards of one model, made on first use. Never copied: a copy of the model makes its own.

    spent: by part. _parked: compiled forwards that the host had put on its modules, out of the way meanwhile.
    """

    def _start(self) -> None:
        self.spent: dict[str, Spent] = {part: Spent() for part in self.settings.parts}
        self._entries: dict[tuple[str, Kind], Callable[..., Any]] = {}
        self._parked: list[tuple[nn.Module, Callable[..., Any]]] = []

    def patches(self) -> Iterator[Patch]:
        """See `Bound.patches`."""
        yield from (Patch("forward", self._run, part) for part in self.settings.parts)

    def applied(self) -> None:
        """See `Bound.applied`: forwards that the host compiled itself are put out of the way."""
        for part in self.settings.parts:
            module = self.surgery.host.parts()[part]
            if "forward" in vars(module) and not own_forward(module):
                self._parked.append((module, vars(module).pop("forward")))

    def undone(self) -> None:
        """See `Bound.undone`."""
        for module, forward in self._parked:
            vars(module)["forward"] = forward
        self._parked.clear()

    @property
    def reuses_memory(self) -> bool:
        """Whether a compiled call may overwrite what an earlier one returned: CUDA graphs, of fixed shapes."""
        return self.settings.mode in ("reduce-overhead", "max-autotune")

    def _wanted(self, part: str) -> bool:
        """Whether a call of `part` runs compiled now.

        Not while an observer looks on, with gradients, or inside somebody else's compilation. Prompted frames run the
        decoder as it is: every number of clicks is another shape.
        """
        if torch.compiler.is_compiling() or torch.is_grad_enabled() or self.surgery.observer is not None:
            return False
        context = self.surgery.context
        return part != DECODER or (context is not None and context.step is not None and not context.step.prompted)

    def _run(
        self, part: str, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], proceed: Callable[..., Any]
    ) -> Any:
        """A part's forward, compiled for the kind of call that the operations say it is."""
        if not self._wanted(part):
            return proceed(args, kwargs)
        kind = self._kind(part, args)
        entry = self._entries.get((part, kind))
        spent = self.spent[part]
        if entry is None:
            entry = self._entries[part, kind] = self._entry(part, kind, proceed)
            spent.kinds += 1
        if part == ENCODER:
            # Frames come as views, as inference tensors or not; torch would compile for each.
            args = tuple(each.clone(memory_format=torch.contiguous_format) for each in args)
        before, start = _graphs(), perf_counter()
        out = require_unquantised(module, part, "compiled", lambda: entry(args, kwargs))
        made = _graphs() - before
        if made:
            spent.graphs += made
            spent.seconds += perf_counter() - start
        if self.reuses_memory:
            self._own_notes(part)  # type: ignore[arg-type]
            out = tree_map_only(Tensor, torch.clone, out)
        return out

    def _kind(self, part: Part | str, args: tuple[Any, ...]) -> Kind:
        if part == MEMORY:
            return (mark_batch(args),)
        context = self.surgery.context
        if context is None:
            return ("plain",)
        if part == DECODER:
            return (context.decoder_inputs is not None,)
        return tuple(
            each
            for bound in self.surgery.bound
            for each in bound.kind(context, part, self.reuses_memory)  # type: ignore[arg-type]
        )

    def _own_notes(self, part: Part) -> None:
        context = self.surgery.context
        if context is None:
            return
        for bound in self.surgery.bound:
            bound.own(context, part)
        if part == DECODER and context.decoder_inputs is not None:
            inputs = context.decoder_inputs
            inputs[:] = [None if each is None else (each[0].clone(), each[1].clone()) for each in inputs]

    def _entry(self, part: str, kind: Kind, proceed: Callable[..., Any]) -> Callable[..., Any]:
        def run(args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
            return proceed(args, kwargs)

        name = "_".join([part, *(str(each) for each in kind)])
        own = FunctionType(run.__code__.replace(co_name=name), run.__globals__, name, None, run.__closure__)
        backend, dynamic = self.settings.backend, True if part == ATTENTION else None
        options = inductor_options(self.settings.mode) if backend == "inductor" else None
        return torch.compile(own, fullgraph=True, dynamic=dynamic, backend=backend, options=options)


def inductor_options(mode: str) -> dict[str, Any]:
    """Options of a mode. CUDA graphs are recorded of fixed shapes only: one per memory length would fill the device."""
    options = dict(torch._inductor.list_mode_options(mode))
    if options.get("triton.cudagraphs"):
        options["triton.cudagraph_skip_dynamic_graphs"] = True
    return options


def mark_batch(args: tuple[Any, ...]) -> bool:
    """Mark the batch of objects as a symbol; whether there is more than one object."""
    several = [each for each in args if isinstance(each, Tensor) and each.ndim and each.shape[0] > 1]
    for tensor in several:
        torch._dynamo.maybe_mark_dynamic(tensor, 0)
    return bool(several)


def _graphs() -> int:
    return int(torch._dynamo.utils.counters["stats"]["unique_graphs"])


def compiled_own_forward(module: nn.Module) -> bool:
    """Whether the instance `forward` of `module` is torch.compile of the class's own, as the VOS predictor has it."""
    forward = vars(module).get("forward")
    if forward is None or not hasattr(forward, "_torchdynamo_orig_callable"):
        return False
    # torch puts further functions around those of its own modules.
    original = inspect.unwrap(forward, stop=lambda each: hasattr(each, "__self__"))
    return getattr(original, "__self__", None) is module and getattr(original, "__func__", 0) is type(module).forward


def must_keep_forward(module: nn.Module) -> bool:
    """Whether `module` carries an instance `forward` that compiling the part would bypass."""
    return "forward" in vars(module) and not own_forward(module) and not compiled_own_forward(module)

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
from typing import TYPE_CHECKING, Any, ClassVar, Literal

import torch
from pydantic import Field, field_validator, model_validator
from torch import Tensor, nn
from torch.utils._pytree import tree_map_only

from surgery.core.operation import Operation
from surgery.core.parts import ATTENTION, DECODER, ENCODER, MEMORY, PARTS, Part, each_part_once
from surgery.errors import ModelStateError, RecipeError, nearest
from surgery.graft import own_forward

if TYPE_CHECKING:
    from surgery.hosts.base import Binding, HostView
    from surgery.routing.span import Route
    from surgery.routing.windows import Packing, WindowGrid

CompileMode = Literal["default", "reduce-overhead", "max-autotune", "max-autotune-no-cudagraphs"]
Kind = tuple[Hashable, ...]


class CompileParts(Operation):
    """torch.compile of the large parts of the model, with a bounded set of graphs (docs/compile.md)."""

    type: Literal["compile"] = "compile"
    parts: tuple[Part, ...] = Field(PARTS, description="what is compiled; the prompt encoder never is")
    mode: CompileMode = Field("default", description="of torch.compile; all but `default` are inductor's")
    backend: str = Field("inductor", min_length=1, max_length=80, description="any that torch.compile knows")

    alias: ClassVar[str] = "compile"

    @field_validator("parts", mode="before")
    @classmethod
    def _known_parts(cls, value: Any) -> Any:
        found = each_part_once(value)
        if not found:
            raise ValueError(f"expected a non-empty list out of {', '.join(PARTS)}; got {value!r:.80}")
        return found

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

    def check(self, view: HostView) -> list[nn.Module]:
        """See `Operation.check`: a backend that torch knows, and parts whose forward is their own."""
        _check_backend(self)
        for part in self.parts:
            module = view.parts()[part]
            if must_keep_forward(module):
                raise ModelStateError(
                    f"{type(module).__name__} carries its own forward (accelerate dispatch or another patch), which "
                    f"compiling {part} would bypass; sparsify first, or leave {part} out of the parts of operation "
                    "compile"
                )
        return []


@dataclass
class Spent:
    """What compiling one part took so far. kinds: kinds of call compiled."""

    seconds: float = 0.0
    graphs: int = 0
    kinds: int = 0


class Compilation:
    """The compiled forwards of one model, made on first use. Never copied: a copy of the model makes its own."""

    def __init__(self, settings: CompileParts) -> None:
        self.settings = settings
        self.spent: dict[str, Spent] = {part: Spent() for part in settings.parts}
        self._entries: dict[tuple[str, Kind], Callable[..., Any]] = {}

    @property
    def reuses_memory(self) -> bool:
        """Whether a compiled call may overwrite what an earlier one returned (CUDA graphs)."""
        return self.settings.mode in ("reduce-overhead", "max-autotune")

    def fixes_shapes(self, grid: WindowGrid) -> bool:
        """Whether every number of windows has a graph of its own, as CUDA graphs, recorded of fixed shapes, need.

        Not on a padded grid: its border windows hold fewer tokens, so that the number does not fix the shape.
        """
        return self.reuses_memory and not grid.padded

    def wanted(self, part: str, binding: Binding) -> bool:
        """Whether a call of `part` runs compiled now.

        Not inside `disabled` or `uncompiled`, while a watcher looks on, with gradients, or inside somebody else's
        compilation. Prompted frames run the decoder as it is: every number of clicks is another shape.
        """
        if part not in self.spent or torch.compiler.is_compiling() or torch.is_grad_enabled():
            return False
        if not binding.enabled or binding.eager or binding.watcher is not None:
            return False
        return part != DECODER or (binding.step is not None and not binding.step.prompted)

    def run(
        self, part: str, binding: Binding, forward: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> Any:
        """Call `forward` compiled, for the kind of call that `binding` says it is."""
        kind = self._kind(part, binding, args)
        entry = self._entries.get((part, kind))
        spent = self.spent[part]
        if entry is None:
            entry = self._entries[part, kind] = self._entry(part, kind, forward)
            spent.kinds += 1
        if part == ENCODER:
            # Frames come as views, as inference tensors or not; torch would compile for each.
            args = tuple(each.clone(memory_format=torch.contiguous_format) for each in args)
        before, start = _graphs(), perf_counter()
        out = entry(*args, **kwargs)
        made = _graphs() - before
        if made:
            spent.graphs += made
            spent.seconds += perf_counter() - start
        if self.reuses_memory:
            own_notes(part, binding)
            out = tree_map_only(Tensor, torch.clone, out)
        return out

    def _kind(self, part: str, binding: Binding, args: tuple[Any, ...]) -> Kind:
        if part == ENCODER:
            grid = binding.grid
            return encoder_kind(binding.route, grid, grid is not None and self.fixes_shapes(grid))
        if part == ATTENTION:
            plan = binding.plan
            read = (None,) if plan is None else (plan.index[0] is not None, len(plan.measures), plan.bias is not None)
            return (*read, binding.query is not None, binding.inputs is not None)
        if part == MEMORY:
            return (mark_batch(args),)
        return (binding.taps is not None,)

    def _entry(self, part: str, kind: Kind, forward: Callable[..., Any]) -> Callable[..., Any]:
        def run(*args: Any, **kwargs: Any) -> Any:
            return forward(*args, **kwargs)

        name = "_".join([part, *(str(each) for each in kind)])
        own = FunctionType(run.__code__.replace(co_name=name), run.__globals__, name, None, run.__closure__)
        how: dict[str, Any] = {"fullgraph": True, "dynamic": True if part == ATTENTION else None}
        if self.settings.backend != "inductor":
            return torch.compile(own, backend=self.settings.backend, **how)
        return torch.compile(own, options=inductor_options(self.settings.mode), **how)


def inductor_options(mode: str) -> dict[str, Any]:
    """Options of a mode. CUDA graphs are recorded of fixed shapes only: one per memory length would fill the device."""
    options = dict(torch._inductor.list_mode_options(mode))
    if options.get("triton.cudagraphs"):
        options["triton.cudagraph_skip_dynamic_graphs"] = True
    return options


def encoder_kind(route: Route | None, grid: WindowGrid | None, fixed: bool) -> Kind:
    """What kind of call an encoder call under `route` is; its sizes are marked as symbols unless they are `fixed`."""
    if route is None:
        return ("plain",)
    if route.dense:
        return ("dense", route.observe, route.tiles is not None, route.late is not None)
    assert route.packing is not None and grid is not None
    if not fixed:
        settle_route(route, grid)
    count = route.packing.ids.shape[0]
    pieces = 0 if route.tiles is None or route.tiles.pieces is None else route.tiles.pieces.shape[0]
    rest = 0 if route.rest is None else 1 if route.rest_packing is None else route.rest_packing.ids.shape[0]
    return (
        "routed",
        # torch makes a graph of its own for size one, and for size zero.
        count if fixed else min(count, 2),
        rest if fixed else min(rest, 2),
        route.memory is not None,
        route.real is not None,
        # A window may be a single piece.
        pieces if fixed else min(pieces, 2),
        route.late is not None,
    )


def settle_route(route: Route, grid: WindowGrid) -> None:
    """Make a route look like others to a compiled encoder: sizes that follow the number of windows are symbols."""
    for packing in _packings(route):
        # Chosen windows that are all full by chance would be another kind of call.
        if packing.slots is None and grid.padded and route.real is None:
            packing.slots = torch.arange(packing.ids.shape[0] * packing.area, device=packing.ids.device)
    for tensor in _route_indices(route):
        torch._dynamo.maybe_mark_dynamic(tensor, 0)


def _packings(route: Route) -> Iterator[Packing]:
    late = route.late.packing if route.late is not None else None
    yield from (packing for packing in (route.packing, route.rest_packing, late) if packing is not None)


def _route_indices(route: Route) -> Iterator[Tensor]:
    tiles, late = route.tiles, route.late
    given = [route.chosen, route.rest, route.real]
    given += [each for packing in _packings(route) for each in (packing.ids, packing.slots)]
    if tiles is not None:
        given += [tiles.pieces, tiles.tokens, tiles.order]
    if late is not None:
        given.append(late.chosen)
    yield from (tensor for tensor in given if tensor is not None)


def mark_batch(args: tuple[Any, ...]) -> bool:
    """Mark the batch of objects as a symbol; whether there is more than one object."""
    several = False
    for tensor in args:
        if isinstance(tensor, Tensor) and tensor.ndim and tensor.shape[0] > 1:
            torch._dynamo.maybe_mark_dynamic(tensor, 0)
            several = True
    return several


def own_notes(part: str, binding: Binding) -> None:
    """Copy what a compiled call noted for the surgery out of memory that the next call may use again."""
    if part == ENCODER and binding.route is not None:
        route = binding.route
        route.seen_input, route.seen_output = _own(route.seen_input), _own(route.seen_output)
        route.chosen_branch = _own(route.chosen_branch)
        if route.tiles is not None:
            tiles = route.tiles
            tiles.kept[:], tiles.latest = [_own(each) for each in tiles.kept], _own(tiles.latest)
        if route.late is not None:
            route.late.seen = _own(route.late.seen)
    elif part == ATTENTION:
        for item in binding.plan.measures if binding.plan is not None else ():
            item.picked[:], item.offset[:] = [_own(each) for each in item.picked], [_own(each) for each in item.offset]
        if binding.query is not None:
            binding.query.inputs[:] = [each.clone() for each in binding.query.inputs]
        if binding.inputs is not None:
            binding.inputs[:] = [_own(each) for each in binding.inputs]
    elif part == DECODER and binding.taps is not None:
        binding.taps[:] = [None if tap is None else (tap[0].clone(), tap[1].clone()) for tap in binding.taps]


def _own(tensor: Tensor | None) -> Tensor | None:
    return None if tensor is None else tensor.clone()


def _graphs() -> int:
    return int(torch._dynamo.utils.counters["stats"]["unique_graphs"])


class ParkedForwards:
    """Compiled forwards that the host had put on its modules, out of the way while the recipe compiles them.

    Never copied: a copy of such a forward would run the modules it was made for.
    """

    def __init__(self) -> None:
        self._held: list[tuple[nn.Module, Callable[..., Any]]] = []

    def __reduce__(self) -> tuple[Any, ...]:
        return ParkedForwards, ()

    def take(self, module: nn.Module) -> None:
        """Take the instance `forward` of `module`, if it has one."""
        forward = vars(module).pop("forward", None)
        if forward is not None:
            self._held.append((module, forward))

    def give_back(self) -> None:
        """Put every forward back where it was."""
        for module, forward in self._held:
            vars(module)["forward"] = forward
        self._held.clear()


def compiled_own_forward(module: nn.Module) -> bool:
    """Whether the instance `forward` of `module` is torch.compile of the class's own, as the VOS predictor has it."""
    forward = vars(module).get("forward")
    if forward is None or not hasattr(forward, "_torchdynamo_orig_callable"):
        return False
    # torch puts further functions around those of its own modules.
    original = inspect.unwrap(forward, stop=lambda each: hasattr(each, "__self__"))
    return getattr(original, "__self__", None) is module and getattr(original, "__func__", 0) is type(module).forward


def _check_backend(settings: CompileParts) -> None:
    """Raises RecipeError for a backend that torch does not know."""
    known = torch.compiler.list_backends(())
    if settings.backend not in known:
        raise RecipeError(
            f"compile.backend: torch knows no backend {settings.backend!r}{nearest(settings.backend, known)}; it has: "
            + ", ".join(known)
        )


def must_keep_forward(module: nn.Module) -> bool:
    """Whether `module` carries an instance `forward` that compiling the part would bypass."""
    return "forward" in vars(module) and not own_forward(module) and not compiled_own_forward(module)

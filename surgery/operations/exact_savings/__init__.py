"""Exact savings: what hosts compute anew though nothing in it has changed, or that nobody reads, is not computed.

Nothing is skipped. It runs in every recipe that does not name it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from functools import cached_property, partial
from typing import Annotated, Any, ClassVar, Literal, get_args

import torch
from pydantic import BeforeValidator, Field
from torch import Tensor

from surgery.core.attention import AttentionCall, ConditionedBy, MemoryCall
from surgery.core.frame import FrameContext
from surgery.core.host import HostView
from surgery.core.operation import Bound, Operation, OwnWork, Patch
from surgery.core.parts import ATTENTION, ENCODER, Part, some_of
from surgery.core.seams import BlockCall
from surgery.core.session import State
from surgery.core.surgery import Surgery
from surgery.operations.exact_savings.shared import SharedSelfAttention, cast_of
from surgery.operations.exact_savings.strips import block_in_strips, in_strips

Saving = Literal["codes", "self_attention", "products", "strips"]
SAVINGS: tuple[Saving, ...] = get_args(Saving)
MOST_CODES = 8
"""Codes of the neck kept for one model; a neck has four levels."""


class ExactSavings(Operation):
    """What changes no mask: kept position codes, one first self-attention for all objects, no unread products."""

    type: Literal["exact_savings"] = "exact_savings"
    savings: Annotated[tuple[Saving, ...], BeforeValidator(partial(some_of, SAVINGS, "saving"))] = Field(
        SAVINGS,
        description="`codes`: position codes are kept; `self_attention`: the objects of a frame share the first one of "
        "memory attention; `products`: those that nobody reads are left out; `strips`: on a CPU large maps go strip by "
        "strip, which rounds differently, so only in recipes that may differ anyway; []: none",
    )

    alias: ClassVar[str] = "savings"
    order: ClassVar[int] = 10

    @property
    def clause(self) -> str:
        """See `Operation.clause`."""
        return "exact savings" if self.savings else "no exact savings"

    @classmethod
    def unasked(cls) -> ExactSavings:
        """All of them."""
        return cls()

    def bind(self, surgery: Surgery, before: Bound[Any] | None) -> BoundSavings:
        """See `Operation.bind`."""
        return BoundSavings(self, surgery)


@dataclass(eq=False)
class KeptCode(State):
    """A video's code of the trunk. made_for: map, dtypes, weights by address and version. weights: held, so that
    nothing else comes to lie there."""

    made_for: tuple[object, ...] | None = None
    weights: tuple[Tensor, ...] = ()
    code: Tensor | None = None


@dataclass(eq=False)
class SharedWork(State):
    """What the objects of the frame in progress share."""

    work: SharedSelfAttention | None = None

    def copied(self) -> SharedWork:
        """Without it: the copied session would hold other features."""
        return SharedWork()


class BoundSavings(OwnWork[ExactSavings]):
    """Exact savings in one model. codes: of the neck, by all that they depend on."""

    def _start(self) -> None:
        self._codes: dict[tuple[Any, ...], Tensor] = {}

    def constants(self) -> Iterable[Tensor]:
        """See `Bound.constants`."""
        return self._codes.values()

    @cached_property
    def _makes_anew(self) -> bool:
        return self._taken(ENCODER)

    def patches(self) -> Iterator[Patch]:
        """See `Bound.patches`."""
        savings, recipe = self.settings.savings, self.surgery.recipe
        if "codes" in savings:
            yield Patch("code", self._code)
        if "self_attention" in savings and not self._taken(ATTENTION):
            yield Patch("memory_attention", self._shared)
            yield Patch("self_attention", self._first, 0)
        if "products" in savings:
            yield Patch("product", None)
        if "strips" in savings and recipe is not None and recipe.approximate:
            yield Patch("strip", self._strip)
            if any(patch.seam == "block" and approximate for patch, approximate in self._others()):
                yield from (Patch("block", self._block, index) for index in before_global_stage(self.surgery.host))

    def _others(self) -> Iterator[tuple[Patch, bool]]:
        """What the other operations run, and whether masks may differ by it."""
        for bound in self.surgery.bound:
            if bound is not self:
                yield from ((patch, bound.settings.approximate) for patch in bound.patches())

    def _taken(self, part: Part) -> bool:
        # What is compiled or recorded must not keep tensors from one call to the next.
        return any(patch.seam == "forward" and patch.index in (None, part) for patch, _ in self._others())

    def _code(
        self, context: FrameContext | None, module: Any, key: tuple[Any, ...], make: Callable[[], Tensor], proceed: Any
    ) -> Tensor:
        weights = tuple(module.parameters(recurse=False))
        if weights:
            return self._of_weights(context, weights, key, make)
        key = (id(module), *key)
        if key not in self._codes:
            code = make()
            if type(code) is not Tensor:
                return code  # a fake tensor, while operations are counted, must not stay
            while len(self._codes) >= MOST_CODES:
                self._codes.pop(next(iter(self._codes)))
            self._codes[key] = code
        return self._codes[key]

    def _of_weights(
        self, context: FrameContext | None, own: tuple[Tensor, ...], key: tuple[Any, ...], make: Callable[[], Tensor]
    ) -> Tensor:
        """Kept with the video: weights may change between two."""
        if (
            self._makes_anew
            or context is None
            or torch.is_grad_enabled()
            or any(weight.is_inference() for weight in own)
        ):
            return make()
        state = context.video.state(KeptCode)
        weights = tuple((weight.data_ptr(), weight._version, weight.dtype, weight.device) for weight in own)
        made_for = (*key, cast_of(own[0]), weights)
        if state.code is None or state.made_for != made_for:
            state.made_for, state.weights = made_for, tuple(weight.detach() for weight in own)
            state.code = make()
        return state.code

    def _shared(self, context: FrameContext, call: MemoryCall, proceed: ConditionedBy) -> Tensor:
        """Memory attention of one object of several; what they share is dropped after the last one."""
        step = context.step
        if step is None or len(step.objects) < 2 or call.current.shape[1] != 1:
            return proceed(call)
        state = context.video.state(SharedWork)
        if state.work is None or not state.work.fits(step.frame, call.current, call.positions):
            state.work = SharedSelfAttention.of(step.frame, call.current, call.positions)
        context.records[self.settings.type] = state.work
        try:
            return proceed(call)
        finally:
            del context.records[self.settings.type]
            if step.obj_id == next(reversed(step.objects)):
                state.work = None

    def _first(self, context: FrameContext, call: AttentionCall, proceed: Callable[[AttentionCall], Tensor]) -> Tensor:
        """The first self-attention: of the first object for all, where every token is a query."""
        # Compiled by the user: see `_taken`.
        if torch.compiler.is_compiling() or call.explicit or call.training:
            return proceed(call)
        work = context.records.get(self.settings.type)
        if work is None:
            return proceed(call)
        if work.output is None:
            out = proceed(call)
            # Eager attention returns its weights, T x T of them: hooks may want each object's, and nobody keeps them.
            if not call.returns_weights:
                work.output = out
            return out
        return work.output

    def _strip(
        self, context: FrameContext, hidden: int, tokens: Tensor, run: Callable[[Tensor], Tensor], proceed: Any
    ) -> Tensor:
        if tokens.device.type != "cpu" or type(tokens) is not Tensor:
            return run(tokens)
        return in_strips(run, tokens, 1, 1, hidden)

    def _block(
        self, context: FrameContext, block: BlockCall, tokens: Tensor, proceed: Callable[[Tensor], Tensor]
    ) -> Tensor:
        # Fake tensors are counted, and strips cost the same operations in ten times as many calls.
        if torch.compiler.is_compiling() or tokens.device.type != "cpu" or type(tokens) is not Tensor:
            return proceed(tokens)
        return block_in_strips(proceed, tokens, self.surgery.host.block_info(block.number))


def before_global_stage(host: HostView) -> range:
    """Numbers of the blocks up to the start of the stage that ends with global attention: all of them are windowed."""
    infos = [host.block_info(index) for index in range(len(host.blocks()))]
    last = max((info.index for info in infos if info.window == 0 and not info.pools), default=0)
    start = max(start for start in host.stage_starts() if start <= last)
    return range(start + infos[start].pools)

"""Sparse Memory Retrieval: which tokens of older memory frames are read."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor, nn

from surgery.core.attention import AttentionCall
from surgery.core.frame import FrameContext
from surgery.core.host import HostView
from surgery.core.memory import Conditioning, ConditionedBy, MemoryCall
from surgery.core.operation import MOST, Bound, Fraction, Operation, Patch, percent
from surgery.core.parts import ATTENTION, Part
from surgery.core.surgery import Surgery
from surgery.errors import ModelStateError
from surgery.operations.memory_retrieval.bank import KeyPlan, ObjectMemory, plan_keys, remember
from surgery.operations.memory_retrieval.saliency import kept_count, memory_saliency, top_tokens


class SparseMemoryRetrieval(Operation):
    """Sparse Memory Retrieval: older memory frames keep only the tokens that mattered (Efficient-SAM2, section 3.3)."""

    type: Literal["sparse_memory_retrieval"] = "sparse_memory_retrieval"
    keep: Fraction = Field(0.05, description="share of the tokens kept of each older memory frame; 1: all")
    keep_conditioning: Fraction = Field(
        1.0, description="the same for conditioning frames, measured when first read; 1: whole"
    )
    rebalance: bool = Field(
        False, description="kept tokens of a frame together weigh what the whole frame weighed when measured"
    )
    warm_up: bool = Field(
        True, description="prune only after as many frames were measured as the bank's middle holds (5)"
    )
    query_stride: int = Field(1, ge=1, le=MOST, description="saliency averages every n-th query only; 1: all")

    alias: ClassVar[str] = "retrieval"
    share: ClassVar[str | None] = "keys"

    @property
    def approximate(self) -> bool:
        """Whether keys may be left out."""
        return min(self.keep, self.keep_conditioning) < 1.0

    @property
    def clause(self) -> str:
        """See `Operation.clause`."""
        if min(self.keep, self.keep_conditioning) == 1.0:
            return "all memory read"
        kept = {"older frames": self.keep, "prompted frames": self.keep_conditioning}
        pruned = [f"of {frames} pruned to {percent(share)}" for frames, share in kept.items() if share < 1.0]
        return f"memory {' and '.join(pruned)}" + (", rebalanced" if self.rebalance else "")

    def structure(self) -> dict[str, Any]:
        """See `Operation.structure`."""
        return self.model_dump(mode="json", include={"query_stride", "rebalance"})

    def check(self, host: HostView) -> list[nn.Module]:
        """See `Operation.check`: every cross-attention of memory attention."""
        return list(host.cross_attentions())

    def bind(self, surgery: Surgery, before: Bound[Any] | None) -> BoundRetrieval:
        """See `Operation.bind`."""
        return BoundRetrieval(self, surgery)


@dataclass(frozen=True, eq=False)
class SaliencySeen:
    """Told to an observer when a memory frame was read for the first time: fp32 [T], see `memory_saliency`."""

    conditioning: bool
    layer: int
    saliency: Tensor


class BoundRetrieval(Bound[SparseMemoryRetrieval]):
    """Memory retrieval in one model."""

    needs_memory_frames = True
    saves_in = ATTENTION
    steps = 4

    def patches(self) -> Iterator[Patch]:
        """See `Bound.patches`."""
        yield Patch("memory_attention", self._plan)
        yield Patch("cross_attention", self._read)

    def _plan(self, context: FrameContext, call: MemoryCall, proceed: ConditionedBy) -> Tensor:
        """Choose the rows to read for one memory attention call, and keep what it measures."""
        step, memory_frames = context.step, context.memory_frames
        if step is None or not memory_frames:
            return proceed(call)
        spatial = call.memory.shape[0] - call.pointers
        if spatial % len(memory_frames):
            raise ModelStateError(
                f"memory of {spatial} spatial rows does not divide into the {len(memory_frames)} memory frames that "
                "the host gathered"
            )
        memory = context.video.of_object(ObjectMemory, step.obj_id, step.reverse)
        plan = self.plan(call, context, memory, spatial // len(memory_frames))
        context.video.count("keys", 1.0 if plan is None else plan.kept / plan.total, step.obj_id)
        if plan is None:
            return proceed(call)
        context.records[self.settings.type] = plan
        try:
            out = proceed(call)
        finally:
            del context.records[self.settings.type]
        remember(plan, memory)
        return out

    def plan(self, call: MemoryCall, context: FrameContext, memory: ObjectMemory, tokens: int) -> KeyPlan | None:
        """The rows to read. tokens: of a memory frame."""
        settings, observer, bank = self.settings, context.observer, self.surgery.host.bank_size()
        plan = plan_keys(
            context.memory_frames or [],
            memory,
            tokens=tokens,
            length=call.memory.shape[0],
            pointers=call.pointers,
            layers=call.layers,
            keep=settings.keep,
            query_stride=settings.query_stride,
            middle=sys.maxsize if observer is not None else max(0, bank - 2) if settings.warm_up else 0,
            stride=call.stride,
            device=call.memory.device,
            keep_conditioning=settings.keep_conditioning,
            rebalance=settings.rebalance,
        )
        if plan is not None and observer is not None:
            plan.listener = lambda *seen: observer.noted(SaliencySeen(*seen))
        return plan

    def _read(self, context: FrameContext, call: AttentionCall, proceed: Callable[[AttentionCall], Tensor]) -> Tensor:
        plan: KeyPlan | None = context.records.get(self.settings.type)
        if plan is None:
            return proceed(call)
        layer = call.layer
        for item in plan.measures:
            saliency = memory_saliency(call.turned(), call.turned_keys(item.rows), plan.query_stride)
            if plan.listener is not None:
                plan.listener(not item.counts, layer, saliency)
            picked = top_tokens(saliency, item.keep)
            item.picked[layer], item.offset[layer] = picked, -saliency.index_select(0, picked).sum().log()
        if plan.index[layer] is not None:
            call.rows, call.spots = plan.index[layer], plan.rows[layer]
            call.bias = plan.bias[layer] if plan.bias is not None else None
        return proceed(call)

    def pretend(self, context: FrameContext, kept: Mapping[str, float]) -> None:
        """See `Bound.pretend`: every frame but the newest was measured, the newest is measured now."""
        settings, host, step = self.settings, self.surgery.host, context.step
        assert step is not None and context.memory_frames is not None
        share, tokens, layers = kept.get("keys"), host.frame_tokens(), len(host.cross_attentions())
        device = next(host.memory_attention().parameters()).device
        bank = len(context.memory_frames)
        memory = ObjectMemory(measured=bank)
        for each in context.memory_frames[:-1]:
            first = isinstance(each, Conditioning)
            keep = settings.keep_conditioning if first else settings.keep
            if share is not None:
                keep = max(1 / tokens, (share * bank - 1) / (bank - 1))  # the newest is read whole
            frame = each.frame if isinstance(each, Conditioning) else each
            if keep < 1.0 and frame is not None:
                memory.frames[frame] = [torch.arange(kept_count(tokens, keep), device=device)] * layers
                memory.offsets[frame] = [torch.zeros((), device=device)] * layers
        if memory.frames:
            context.video.set_object(memory, step.obj_id, step.reverse)
        else:
            context.memory_frames = None

    def kind(self, context: FrameContext, part: Part, fixed: bool) -> tuple[Any, ...]:
        """See `Bound.kind`."""
        if part != ATTENTION:
            return ()
        plan: KeyPlan | None = context.records.get(self.settings.type)
        return (None,) if plan is None else (plan.index[0] is not None, len(plan.measures), plan.bias is not None)

    def own(self, context: FrameContext, part: Part) -> None:
        """See `Bound.own`."""
        plan: KeyPlan | None = context.records.get(self.settings.type)
        for item in plan.measures if part == ATTENTION and plan is not None else ():
            item.picked[:] = [None if each is None else each.clone() for each in item.picked]
            item.offset[:] = [None if each is None else each.clone() for each in item.offset]

"""Memory retrieval in one model: which rows a call reads, and what is measured on the way."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from torch import Tensor

from surgery.core.attention import AttentionCall, ConditionedBy, Conditioning, MemoryCall
from surgery.core.constants import steps
from surgery.core.evidence import Evidence
from surgery.core.frame import FrameContext, ObjectStep
from surgery.core.operation import Bound, Patch
from surgery.core.parts import ATTENTION, Part
from surgery.errors import ModelStateError
from surgery.operations.memory_retrieval.bank import Kept, KeyPlan, ObjectMemory, plan_keys, remember
from surgery.operations.memory_retrieval.saliency import asked_by, kept_count, memory_saliency, top_tokens
from surgery.operations.memory_retrieval.sampling import sampled

if TYPE_CHECKING:
    from surgery.operations.memory_retrieval import SparseMemoryRetrieval


@dataclass(frozen=True, eq=False)
class SaliencySeen:
    """Told to an observer when a memory frame was read for the first time: fp32 [T], see `memory_saliency`."""

    conditioning: bool
    layer: int
    saliency: Tensor


@dataclass(frozen=True)
class DoubtSeen:
    """Told to an observer when an object is about to read so many frames: how unsure its last mask was (`doubt_of`)."""

    doubt: float
    frames: int


class BoundRetrieval(Bound[Any]):
    """Memory retrieval in one model. restores: whether unsure masks read all memory; it is asked all the same."""

    settings: SparseMemoryRetrieval
    restores = True
    needs_memory_frames = True
    saves_in: ClassVar[Part] = ATTENTION
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
        reason = "unsure mask" if plan is not None and self._unsure(context, step) and plan.restore() else None
        context.video.count("keys", 1.0 if plan is None else plan.kept / plan.total, step.obj_id, reason)
        if plan is None:
            return proceed(call)
        context.records[self.settings.type] = plan
        try:
            out = proceed(call)
        finally:
            del context.records[self.settings.type]
        remember(plan, memory)
        return out

    def _unsure(self, context: FrameContext, step: ObjectStep) -> bool:
        """Whether the object's last mask asks for all memory."""
        limit = self.settings.unsure
        if limit is None and not context.watched:
            return False
        evidence = _evidence(context, step)
        told = evidence.told() if evidence is not None else None
        if told is None or told.doubt is None:
            return False
        if context.watched and context.observer is not None:
            context.observer.noted(DoubtSeen(told.doubt, len(context.memory_frames or ())))
        return limit is not None and not told.doubt <= limit and self.restores

    def plan(self, call: MemoryCall, context: FrameContext, memory: ObjectMemory, tokens: int) -> KeyPlan | None:
        """The rows to read. tokens: of a memory frame."""
        settings, observer, bank = self.settings, context.observer, self.surgery.host.bank_size()
        if context.watched:
            # Any share below 1 will do: nothing is pruned, and the whole saliency is reported.
            settings = settings.model_copy(update={"keep": 0.5, "keep_conditioning": 0.5})
        sampling = settings.saliency == "object" and not context.watched
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
            sample=partial(self._sample, context, tokens, call.memory.device) if sampling else None,
        )
        if plan is not None and plan.measures and settings.saliency == "object":
            assert context.step is not None
            evidence = _evidence(context, context.step)
            plan.weights = asked_by(evidence.mask if evidence is not None else None, tokens, call.memory.device)
        if plan is not None and observer is not None and context.watched:
            plan.listener = lambda *seen: observer.noted(SaliencySeen(*seen))
        return plan

    def _sample(self, context: FrameContext, tokens: int, device: torch.device, frame: int, keep: float) -> Kept:
        """What to keep of the frame before, whose mask is known unless the object was not tracked there."""
        assert context.step is not None
        evidence = _evidence(context, context.step)
        mask = evidence.mask if evidence is not None and evidence.frame == frame else None
        return sampled(mask, tokens, keep, frame, device)

    def _read(self, context: FrameContext, call: AttentionCall, proceed: Callable[[AttentionCall], Tensor]) -> Tensor:
        plan: KeyPlan | None = context.records.get(self.settings.type)
        if plan is None:
            return proceed(call)
        layer = call.layer
        for item in plan.measures:
            weights = plan.weights
            if weights is not None and call.places is not None:
                weights = weights.index_select(0, call.places)
            saliency = memory_saliency(call.turned(), call.turned_keys(item.rows), plan.query_stride, weights)
            if plan.listener is not None:
                plan.listener(not item.counts, layer, saliency)
            item.picked[layer] = top_tokens(saliency, item.keep)
        if plan.index[layer] is not None:
            call.rows, call.spots, call.bias = plan.index[layer], plan.rows[layer], plan.bias
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
            if keep == 1.0 or frame is None:
                continue
            if settings.saliency == "object" and not first:
                memory.frames[frame] = sampled(None, tokens, keep, frame, device)
            else:
                memory.frames[frame] = Kept(steps(kept_count(tokens, keep), device).expand(layers, -1))
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


def _evidence(context: FrameContext, step: ObjectStep) -> Evidence | None:
    """Of the object on the frame before, where there is any."""
    evidence = context.video.evidence.get(step.obj_id)
    return evidence if evidence is not None and evidence.frame == step.previous else None

"""Which keys memory attention reads for one object on one frame.

The host concatenates whole memory frames (T tokens each, conditioning frames first) and then the object pointers. A
`KeyPlan` says, layer by layer, which of those rows to read. What is kept is remembered per object, direction and
frame id, so several conditioning frames, any memory stride and reverse tracking need no special case.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from surgery.core.attention import Conditioning, MemoryFrame
from surgery.core.constants import constant, steps
from surgery.core.session import State
from surgery.core.values import APART
from surgery.errors import bypassed

ALIGNMENT = 16
"""Rows of a biased plan are padded to a multiple of this: fused attention would otherwise copy the bias per query."""


class Kept(NamedTuple):
    """What is read of a memory frame. tokens: int64 [layers, k], or [1, k] where all layers read the same. bias: fp32
    [k], log of how many tokens each stands for, added to its logits; None: each for itself."""

    tokens: Tensor
    bias: Tensor | None = None


@dataclass(eq=False)
class ObjectMemory(State):
    """What is read of older memory frames of one object in one direction, by frame.

    measured: tracked frames measured or sampled since the direction was last entered; with a warm-up, pruning waits
    until it reaches the bank's middle length, as published.
    """

    frames: dict[int, Kept] = field(default_factory=dict)
    measured: int = 0

    def forget(self, frame: int) -> None:
        """Drop what was measured of `frame`: it is about to be tracked or prompted again."""
        self.frames.pop(frame, None)

    def copied(self) -> ObjectMemory:
        """A copy that shares the tensors, which are never written to."""
        return ObjectMemory(dict(self.frames), self.measured)

    def jumped(self) -> None:
        """Drop everything: a new pass measures afresh."""
        self.frames.clear()
        self.measured = 0


@dataclass(eq=False)
class Measured:
    """A memory frame to measure during one call, and what was found.

    rows: int64 [T] rows of the concatenated memory. keep: share of its tokens to keep. picked: filled during
    attention, per layer int64 [k]. counts: whether it counts for the warm-up.
    """

    rows: Tensor
    keep: float
    picked: list[Tensor | None]
    frame: int = field(metadata=APART)
    counts: bool = field(metadata=APART)


@dataclass(eq=False)
class KeyPlan:
    """Rows to read in each layer, and what to measure on the way.

    index: per layer int64 [n] rows of the concatenated memory, or None for all. rows: per layer int64 [m], the position
    on the T-token grid of every row that carries a position (the first m; pointers and padding follow). bias: fp32 [n]
    added to the logits in every layer, or None. measures: frames to measure. weights: fp32 [T], what queries count in
    that, or None: the published mean. sampled: what to keep of a frame that is not measured. listener: is told (whether
    it is a conditioning frame, layer, saliency [T]) of every measure.
    """

    layers: int
    query_stride: int
    index: list[Tensor | None]
    rows: list[Tensor | None]
    measures: list[Measured]
    kept: int = field(metadata=APART)
    total: int = field(metadata=APART)
    bias: Tensor | None = None
    sampled: dict[int, Kept] = field(default_factory=dict, metadata=APART)
    weights: Tensor | None = None
    listener: Callable[[bool, int, Tensor], None] | None = field(default=None, metadata=APART)

    def restore(self) -> bool:
        """Read every row after all. Returns whether any had been left out."""
        pruned = self.kept < self.total
        self.index, self.rows, self.bias = [None] * self.layers, [None] * self.layers, None
        self.kept = self.total
        return pruned


def plan_keys(
    memory_frames: Sequence[MemoryFrame],
    memory: ObjectMemory,
    *,
    tokens: int,
    length: int,
    pointers: int,
    layers: int,
    keep: float,
    query_stride: int,
    middle: int,
    stride: int,
    device: torch.device,
    keep_conditioning: float = 1.0,
    sample: Callable[[int, float], Kept] | None = None,
) -> KeyPlan | None:
    """Decide the rows of one memory attention call.

    Args:
        memory_frames: the memory frames in the host's order.
        memory: what is known of this object in this direction; entries outside the bank are dropped here.
        tokens: T, tokens per memory frame.
        length: rows of the concatenated memory, pointers included.
        pointers: rows at the end that are object pointers.
        layers: memory attention layers.
        keep: share of tokens kept of a pruned frame.
        query_stride: see `memory_saliency`.
        middle: measured frames needed before pruning starts (bank size less the conditioning and newest frame).
        stride: the host's memory stride; a frame that will not be read again is not measured.
        device: where the memory lives.
        keep_conditioning: share of tokens kept of a conditioning frame once it has been read.
        sample: what to keep of a tracked frame, given it and the share; None: it is measured.

    Returns:
        The plan, or None when every key is read and nothing is measured.
    """
    spatial = length - pointers
    if (keep >= 1.0 and keep_conditioning >= 1.0) or not memory_frames or spatial != len(memory_frames) * tokens:
        return None
    ids = [
        memory_frame.frame if isinstance(memory_frame, Conditioning) else memory_frame for memory_frame in memory_frames
    ]
    for frame in [known for known in memory.frames if known not in ids]:
        memory.forget(frame)
    measures = _to_measure(memory_frames, memory, tokens, layers, keep, keep_conditioning, stride, device)
    tracked = [slot for slot, each in enumerate(memory_frames) if isinstance(each, int)]
    newest = tracked[-1] if tracked else -1
    warm = memory.measured >= middle
    pruned = {
        slot: frame
        for slot, frame in enumerate(ids)
        if slot != newest and frame is not None and frame in memory.frames and warm
    }
    whole = layers * spatial
    plan = KeyPlan(layers, query_stride, [None] * layers, [None] * layers, measures, kept=whole, total=whole)
    if sample is not None:
        plan.sampled = {item.frame: sample(item.frame, item.keep) for item in measures if item.counts}
        plan.measures = [item for item in measures if not item.counts]
    if pruned:
        _choose_rows(plan, pruned, memory, len(memory_frames), tokens, length, device)
    return plan if pruned or measures else None


def _to_measure(
    memory_frames: Sequence[MemoryFrame], memory: ObjectMemory, tokens: int, layers: int, keep: float,
    keep_conditioning: float, stride: int, device: torch.device,
) -> list[Measured]:  # fmt: skip
    """The newest tracked frame and the first conditioning frame that are to be pruned and were not measured yet."""
    tracked = [(slot, each) for slot, each in enumerate(memory_frames) if isinstance(each, int)]
    prompted = [(slot, each.frame) for slot, each in enumerate(memory_frames) if isinstance(each, Conditioning)]
    newest = [(slot, frame) for slot, frame in tracked[-1:] if frame not in memory.frames and frame % stride == 0]
    first = [(slot, frame) for slot, frame in prompted if frame not in memory.frames][:1]
    return [
        Measured(_rows_of(slot, tokens, device), share, [None] * layers, frame, counts)
        for places, share, counts in ((newest, keep, True), (first, keep_conditioning, False))
        for slot, frame in places
        if share < 1.0
    ]


def _rows_of(slot: int, tokens: int, device: torch.device) -> Tensor:
    """Rows of a whole memory frame: int64 [T]. No view: a compiled graph would be made for each place in another."""
    return constant(("rows", slot, tokens), device, lambda: torch.arange(slot * tokens, (slot + 1) * tokens))


def _choose_rows(
    plan: KeyPlan, pruned: dict[int, int], memory: ObjectMemory, frames: int, tokens: int, length: int,
    device: torch.device,
) -> None:  # fmt: skip
    """Fill the plan's index, rows and bias. pruned: {slot: frame} of which a part is read."""
    layers, others = plan.layers, length - frames * tokens
    every = steps(max(tokens, others), device)
    found = [memory.frames[pruned[slot]] if slot in pruned else None for slot in range(frames)]
    biases = [None if each is None else each.bias for each in found]
    kept = [tokens if each is None else each.tokens.shape[1] for each in found]
    biased = any(bias is not None for bias in biases)
    padding = -(sum(kept) + others) % ALIGNMENT if biased else 0
    parts = [every[:tokens] if each is None else each.tokens.to(device) for each in found]
    where = torch.cat([part.expand(layers, -1) for part in (*parts, every[:others], every[:1].expand(padding))], 1)
    starts = _starts((*kept, others, padding), tokens, device)
    plan.rows, plan.kept = list(where[:, : sum(kept)]), layers * sum(kept)
    plan.index = list(where + starts)
    if biased:
        zero, never = (_number(value, device) for value in (0.0, -torch.inf))
        spread = [
            zero.expand(count) if bias is None else bias.to(device) for bias, count in zip(biases, kept, strict=True)
        ]
        plan.bias = torch.cat([*spread, zero.expand(others), never.expand(padding)])


def _starts(counts: tuple[int, ...], tokens: int, device: torch.device) -> Tensor:
    """Of every row that is read, the first row of its memory frame, of the pointers, or of all (padding): int64 [n]."""
    firsts = [*(slot * tokens for slot in range(len(counts) - 1)), 0]
    return constant(("starts", counts, tokens), device, lambda: torch.from_numpy(np.repeat(firsts, counts)))


def _number(value: float, device: torch.device) -> Tensor:
    return constant(("number", value), device, lambda: torch.tensor([value]))


def remember(plan: KeyPlan, memory: ObjectMemory) -> None:
    """Store what to keep of the frames it measured or sampled. Raises ModelStateError when a layer did not measure."""
    for item in plan.measures:
        picked = [layer for layer in item.picked if layer is not None]
        if len(picked) != plan.layers:
            raise bypassed(f"memory attention measured {len(picked)} of its {plan.layers} layers")
        memory.frames[item.frame] = Kept(torch.stack(picked))
        memory.measured += item.counts
    memory.frames |= plan.sampled
    memory.measured += len(plan.sampled)

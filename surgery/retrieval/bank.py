"""Which keys memory attention reads for one object on one frame.

The host concatenates whole memory frames (T tokens each, conditioning frames first) and then the object pointers. A
`KeyPlan` says, layer by layer, which of those rows to read. What was salient is remembered per object, direction and
frame id, so several conditioning frames, any memory stride and reverse tracking need no special case.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from surgery.errors import ModelStateError


@dataclass(eq=False)
class ObjectMemory:
    """Salient token indices of one object in one direction: `{frame: [int64 [k] per layer]}`.

    `measured` counts the frames measured since the direction was last entered; pruning waits until it reaches the
    bank's middle length, as published (spec 4.3).
    """

    frames: dict[int, list[Tensor]] = field(default_factory=dict)
    measured: int = 0

    def forget(self, frame: int) -> None:
        """Drop what was measured of `frame`: it is about to be tracked or prompted again."""
        self.frames.pop(frame, None)


@dataclass(eq=False)
class KeyPlan:
    """Rows to read in each layer, and what to measure on the way.

    index: per layer int64 [n] rows of the concatenated memory, or None for all. newest: int64 [T] rows of the frame to
    measure, or None. rows: per layer int64 [m], the position on the T-token grid of every row that carries a position
    (all but the pointers). picked: filled during attention, per layer int64 [k].
    """

    layers: int
    keep: float
    query_stride: int
    index: list[Tensor | None]
    rows: list[Tensor | None]
    newest: Tensor | None
    newest_frame: int | None
    picked: list[Tensor | None]
    kept: int
    total: int


def plan_keys(
    chunks: Sequence[int | None],
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
) -> KeyPlan | None:
    """Decide the rows of one memory attention call.

    Args:
        chunks: frame id of every memory frame in the host's order, None for a conditioning frame.
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

    Returns:
        The plan, or None when every key is read and nothing is measured.
    """
    spatial = length - pointers
    if keep >= 1.0 or not chunks or spatial != len(chunks) * tokens:
        return None
    tracked = [(slot, frame) for slot, frame in enumerate(chunks) if frame is not None]
    in_bank = {frame for _, frame in tracked}
    for frame in [known for known in memory.frames if known not in in_bank]:
        del memory.frames[frame]

    newest = newest_frame = None
    newest_slot = tracked[-1][0] if tracked else -1
    if tracked:
        frame = tracked[-1][1]
        assert frame is not None
        if frame not in memory.frames and frame % stride == 0:
            newest_frame = frame
            newest = torch.arange(newest_slot * tokens, (newest_slot + 1) * tokens, device=device)

    known = [
        (slot, memory.frames[frame])
        for slot, frame in tracked
        if slot != newest_slot and frame is not None and frame in memory.frames
    ]
    index: list[Tensor | None] = [None] * layers
    rows: list[Tensor | None] = [None] * layers
    kept = total = layers * spatial
    if known and memory.measured >= middle:
        pruned = dict(known)
        every = torch.arange(length, device=device)
        kept = 0
        for layer in range(layers):
            parts = [
                pruned[slot][layer].to(device) + slot * tokens
                if slot in pruned
                else every[slot * tokens : (slot + 1) * tokens]
                for slot in range(len(chunks))
            ]
            where = torch.cat(parts)
            rows[layer] = where % tokens
            index[layer] = torch.cat([where, every[spatial:]])
            kept += where.shape[0]
    elif newest is None:
        return None
    return KeyPlan(
        layers=layers,
        keep=keep,
        query_stride=query_stride,
        index=index,
        rows=rows,
        newest=newest,
        newest_frame=newest_frame,
        picked=[None] * layers,
        kept=kept,
        total=total,
    )


def remember(plan: KeyPlan, memory: ObjectMemory) -> None:
    """Store what the attention measured under the plan. Raises ModelStateError when a layer did not measure."""
    if plan.newest_frame is None:
        return
    picked = [layer for layer in plan.picked if layer is not None]
    if len(picked) != plan.layers:
        raise ModelStateError(
            f"memory attention measured {len(picked)} of its {plan.layers} layers under the surgery; was the model "
            "compiled before sparsify? Call sparsify first, then compile"
        )
    memory.frames[plan.newest_frame] = picked
    memory.measured += 1

"""One call of the host on one frame, as operations see it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from itertools import islice
from typing import TYPE_CHECKING, Any, TypeVar

import torch
import torch.nn.functional as F
from torch import Tensor

from surgery.core.early import Early
from surgery.core.windows import WindowGrid

if TYPE_CHECKING:
    from surgery.core.attention import MemoryFrame
    from surgery.core.evidence import Evidence, EvidenceSettings
    from surgery.core.observer import Observer
    from surgery.core.session import SessionHandle, VideoState

T = TypeVar("T")


@dataclass
class ObjectStep:
    """One object's step on one frame.

    handle: the session. objects: the host's own output store of every object of the session, by id; a store that is
    another object than last time means the object was reset. shared_prompt: another object is prompted on this frame.
    """

    handle: SessionHandle
    obj_id: int
    objects: dict[int, Any]
    frame: int
    reverse: bool
    prompted: bool
    shared_prompt: bool = False

    @property
    def dense(self) -> bool:
        """Whether a prompt on this frame asks for everything."""
        return self.prompted or self.shared_prompt

    @property
    def previous(self) -> int:
        """The frame before this one in the direction of tracking."""
        return self.frame + 1 if self.reverse else self.frame - 1


@dataclass(frozen=True, eq=False)
class ComputedWindows:
    """Which windows of the encoder's map are computed on a frame. ids: rising; None for all. seen: fp32 [3, H, W],
    picture of every token when its window was computed, or None."""

    grid: WindowGrid
    ids: tuple[int, ...] | None
    seen: Tensor | None = None


@dataclass(eq=False)
class FrameContext:
    """Made at the host's seam for one frame, gone after the call.

    video: what the session remembers. handle: the session, None for a made-up frame. step: the object's step; None
    where the frame is encoded for no object. observer: looks on while everything runs dense. evidence: how it is made;
    None where nobody needs it. known: evidence of every object on the frame before, while the frame is encoded. facts:
    tensors that operations want to know the values of, see `send` and `read`. provided: what operations tell each
    other, by type. records: what an operation noted for the modules below, by the operation's type. memory_frames: in
    the host's order, where somebody needs them. decoder_inputs: query and key of every token-to-image attention, or
    None. sparse: the features of the frame follow from the frame before, so that they are good for this pass only;
    rounded: they are not those of the stock model, and good as long as the surgery is. Who makes them so says it.
    """

    frame: int
    video: VideoState
    handle: SessionHandle | None
    step: ObjectStep | None = None
    observer: Observer | None = None
    evidence: EvidenceSettings | None = None
    known: Mapping[int, Evidence] = field(default_factory=dict)
    facts: dict[str, Tensor] = field(default_factory=dict)
    provided: dict[type, Any] = field(default_factory=dict)
    records: dict[str, Any] = field(default_factory=dict)
    memory_frames: list[MemoryFrame] | None = None
    decoder_inputs: list[tuple[Tensor, Tensor] | None] | None = None
    sparse: bool = False
    rounded: bool = False
    _sent: list[tuple[dict[str, int], Early]] = field(default_factory=list)
    _pictures: dict[tuple[int, int], Tensor] = field(default_factory=dict)

    @property
    def dense(self) -> bool:
        """Whether a prompt asks for everything on this frame, or nothing says that it is tracked."""
        return self.step is None or self.step.dense

    @property
    def watched(self) -> bool:
        """Whether an observer wants to know what settings would have done, and not what these remember."""
        return self.observer is not None and not self.observer.leads

    def picture(self, pixels: Tensor, height: int, width: int) -> Tensor:
        """Normalised pixels [1, 3, S, S] -> fp32 [3, height, width], one block mean per token; computed once."""
        key = (height, width)
        if key not in self._pictures:
            self._pictures[key] = F.adaptive_avg_pool2d(pixels.to(torch.float32), key)[0]
        return self._pictures[key]

    def has_picture(self, height: int, width: int) -> bool:
        """Whether some operation has asked for this `picture` already."""
        return (height, width) in self._pictures

    def send(self) -> None:
        """Start one device-to-host copy of all `facts` since the last one."""
        facts, self.facts = {name: fact.flatten() for name, fact in self.facts.items()}, {}
        if facts:
            device = next(iter(facts.values())).device
            values = torch.cat([fact.to(device, torch.float32) for fact in facts.values()])
            self._sent.append(({name: len(fact) for name, fact in facts.items()}, Early(values)))

    def read(self) -> dict[str, list[float]]:
        """The values of all `facts`. Waits for those that were sent, and sends the others first."""
        self.send()
        found = {}
        for counts, early in self._sent:
            values = iter(early.values())
            found.update({name: list(islice(values, count)) for name, count in counts.items()})
        return found

    def get(self, kind: type[T]) -> T | None:
        """What an operation provided of this kind, if any did."""
        return self.provided.get(kind)

    def provide(self, what: Any) -> None:
        """Tell the operations that are asked later."""
        self.provided[type(what)] = what

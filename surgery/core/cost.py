"""Floating-point operations of one tracked frame, counted by running the real code on fake tensors.

Matrix products and convolutions only, one multiply-add = 2 (torch.utils.flop_counter); norms, softmax, gathers and
copies are not counted. No memory or time proportional to the model is spent.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from surgery.core.attention import Conditioning
from surgery.core.frame import FrameContext, ObjectStep
from surgery.core.host import HostView
from surgery.core.operation import Operation
from surgery.core.parts import ATTENTION, ENCODER, Part
from surgery.core.session import VideoState
from surgery.core.surgery import Surgery

COUNTED: tuple[Part, ...] = (ENCODER, ATTENTION)
"""The parts that are counted; the others cost little and no operation saves in them."""
OBJECT = 1
LATE = 1000
"""The frame that is pretended: late enough for a full bank."""


@contextmanager
def _unchanged(module: nn.Module) -> Iterator[None]:
    """Put back every plain attribute: hosts cache position codes, and a fake one would poison all later frames."""
    registries = {"_parameters", "_buffers", "_modules", "_surgery"}
    saved = [
        (part, {name: dict(value) if type(value) is dict else value for name, value in vars(part).items()})
        for part in module.modules()
    ]
    try:
        yield
    finally:
        for part, attributes in saved:
            vars(part).update({name: value for name, value in attributes.items() if name not in registries})


def count(host: HostView, module: nn.Module, call: Callable[[], object]) -> float:
    """GFLOP of `call`, which runs `module` of the host's model and builds its inputs itself; nothing is computed, the
    model is unchanged."""
    with (
        host.counting(),
        torch.no_grad(),
        _unchanged(module),
        FakeTensorMode(allow_non_fake_inputs=True),
        sdpa_kernel(SDPBackend.MATH),
    ):
        counter = FlopCounterMode(display=False)
        with counter:
            call()
    return counter.get_total_flops() / 1e9


def gflop(surgery: Surgery, part: Part, kept: Mapping[str, float] | None = None) -> float:
    """GFLOP of a part on a tracked frame of one object with a full bank, under the surgery.

    kept: shares that operations keep, by name; one that is absent is what its settings allow.
    """
    host = surgery.host
    with surgery.plain_parts(), surgery.within(pretended(surgery, dict(kept or {}))):
        return stock_gflop(host, part)


def pretended(surgery: Surgery, kept: Mapping[str, float]) -> FrameContext:
    """A late frame, as operations would have found it. kept: see `gflop`."""
    host, video = surgery.host, VideoState(None)
    step = ObjectStep(None, OBJECT, {OBJECT: None}, LATE, reverse=False, prompted=False)  # type: ignore[arg-type]
    context = FrameContext(LATE, video, step.handle, step)
    context.memory_frames = [Conditioning(0), *range(LATE - host.bank_size() + 1, LATE)]
    for bound in surgery.bound:
        bound.pretend(context, kept)
    return context


def stock_gflop(host: HostView, part: Part, frames: int | None = None) -> float:
    """GFLOP of a part as it now runs, as stock outside of `gflop`; `frames` in the memory bank, None for a full one."""
    reference = next(host.parts()[part].parameters())

    def empty(*shape: int) -> Tensor:
        return torch.empty(*shape, device=reference.device, dtype=reference.dtype)

    if part == ENCODER:
        encoder, side = host.image_encoder(), host.image_size()
        return count(host, encoder, lambda: encoder(empty(1, 3, side, side)))
    tokens, pointers = host.frame_tokens(), host.pointers()

    def attend() -> Tensor:
        memory = empty((frames or host.bank_size()) * tokens + pointers, 1, host.memory_channels())
        return host.run_memory_attention(empty(tokens, 1, width_of(host)), memory, pointers)

    return count(host, host.memory_attention(), attend)


def width_of(host: HostView) -> int:
    """Channels of the features that memory attention is given."""
    return next(part.in_features for part in host.cross_attentions()[0].modules() if isinstance(part, nn.Linear))


class CostModel:
    """GFLOP of the counted parts under the recipe of a surgery, at any shares kept: at whole steps of an operation's
    share they are counted, between them interpolated.

    stock: of the stock parts.
    """

    def __init__(self, surgery: Surgery) -> None:
        self.surgery = surgery
        with surgery.within(None):
            self.stock = {part: stock_gflop(surgery.host, part) for part in COUNTED}
        self._counted: dict[tuple[Part, tuple[tuple[str, float], ...]], float] = {}

    def parts(self, kept: Mapping[str, float], operations: Sequence[Operation] | None = None) -> dict[Part, float]:
        """GFLOP by part.

        kept: shares by name; one that is absent is what `operations` allow; these differ from those of the surgery in
        nothing that a share costs (`Operation.structure`). Default: the surgery's own.
        """
        bound = {type(each.settings): each for each in self.surgery.bound}
        shares, steps = dict(kept), {part: dict[str, int]() for part in COUNTED}
        for operation in operations or [each.settings for each in bound.values()]:
            name, allowed = operation.share, operation.allowed(shares)
            if name is None:
                continue
            if name not in shares and allowed is not None:
                shares[name] = allowed
            if name in shares:
                steps[bound[type(operation)].saves_in][name] = bound[type(operation)].steps
        return {part: self._interpolated(part, shares, steps[part]) for part in COUNTED}

    def shares(self, kept: Mapping[str, float], operations: Sequence[Operation] | None = None) -> dict[Part, float]:
        """The same as shares of the stock parts' sum."""
        both = sum(self.stock.values())
        return {part: value / both for part, value in self.parts(kept, operations).items()}

    def _interpolated(self, part: Part, shares: Mapping[str, float], steps: Mapping[str, int]) -> float:
        ends = []
        for name, count_ in steps.items():
            place = shares[name] * count_
            low = min(math.floor(place + 1e-9), count_)
            weight = max(0.0, place - low)
            ends.append([(name, low / count_, 1 - weight), (name, (low + 1) / count_, weight)])
        total = 0.0
        for corner in itertools.product(*ends):
            weight = math.prod(each[2] for each in corner)
            if weight > 1e-9:
                total += weight * self._at(part, tuple((name, share) for name, share, _ in corner))
        return total

    def _at(self, part: Part, point: tuple[tuple[str, float], ...]) -> float:
        if (part, point) not in self._counted:
            self._counted[part, point] = gflop(self.surgery, part, dict(point))
        return self._counted[part, point]

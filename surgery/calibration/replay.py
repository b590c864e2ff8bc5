"""Teacher and student on the same frames: what the dense model read and answered, replayed with routed features."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from surgery.calibration.clips import CalibrationClip
from surgery.core.frame import FrameContext
from surgery.core.host import HostView
from surgery.core.observer import Observer
from surgery.core.surgery import Surgery
from surgery.operations.window_routing.bound import SpanSeen, require_router
from surgery.operations.window_routing.router import mask_windows, within_budget
from surgery.operations.window_routing.span import updated_memory
from surgery.tracking import track

OBJECTIVES = ("memory", "stage", "masks")
DILATIONS = (1, 5, 9, 17)
_BUDGETS = (0.15, 0.25, 0.4, 0.6)


@dataclass(eq=False)
class Call:
    """One call of a module by the host: its keyword arguments and the first tensor it returned."""

    kwargs: dict[str, Any]
    output: Tensor


@dataclass(eq=False)
class Sample:
    """One frame of the dense model. windows: what a router would have computed, None on the first frame of a clip.
    entering, leaving: span input and output [H * W, C]. reads, decodes: memory attention and decoder, object by object.
    """

    pixels: Tensor
    windows: list[int] | None
    entering: Tensor
    leaving: Tensor
    reads: list[Call] = field(default_factory=list)
    decodes: list[Call] = field(default_factory=list)


class Recorder(Observer):
    """Keeps the frames of a segment while the dense model tracks.

    The windows are those of the real router's first rule, mask windows of the frame before, under a random dilation and
    budget drawn from (seed, clip, frame), so that the shortcut is not fitted to one threshold.
    """

    def __init__(self, surgery: Surgery, seed: tuple[int, ...]) -> None:
        self.grid, self.seed = require_router(surgery).grid, seed
        self.samples: list[Sample] = []
        self._pixels: Tensor | None = None
        self._windows: list[int] | None = None
        self._ages: list[int] = []
        self._kept: list[Tensor] = []

    def frame(self, context: FrameContext, pixels: Tensor) -> None:
        grid = self.grid
        self._pixels = thaw(pixels)
        masks = [item.mask for item in context.video.evidence.values()]
        if context.dense or not masks or not self.samples:
            self._windows, self._ages = None, [0] * grid.count
            return
        draw = np.random.default_rng((*self.seed, context.frame))
        taken = mask_windows(masks, grid, int(draw.choice(DILATIONS))).tolist()
        noise = draw.random(grid.count).tolist()
        budget = float(draw.choice(_BUDGETS))
        self._windows = within_budget(taken, taken, self._ages, noise, budget=budget, fill=True)[0]
        self._ages = [0 if window in self._windows else age + 1 for window, age in enumerate(self._ages)]

    def noted(self, what: Any) -> None:
        if not isinstance(what, SpanSeen):
            return
        assert self._pixels is not None
        flat = [thaw(each).flatten(0, 2) for each in (what.entering, what.leaving)]
        self.samples.append(Sample(self._pixels, self._windows, *flat))


@contextmanager
def listening(surgery: Surgery, recorder: Recorder, masks: bool) -> Iterator[None]:
    """Run the model dense with `recorder` looking on, its memory attention included, and its decoder with `masks`."""

    def keep(target: str) -> Callable[..., None]:
        def hook(module: Any, args: Any, kwargs: dict[str, Any], output: Any) -> None:
            if surgery.observer is recorder and not args and recorder.samples:
                first = output if isinstance(output, Tensor) else output[0]
                getattr(recorder.samples[-1], target).append(Call(thaw(kwargs), thaw(first)))

        return hook

    host = surgery.host
    hooks = [host.memory_attention().register_forward_hook(keep("reads"), with_kwargs=True)]
    if masks:
        hooks.append(host.mask_decoder().register_forward_hook(keep("decodes"), with_kwargs=True))
    try:
        with surgery.observed_by(recorder):
            yield
    finally:
        for hook in hooks:
            hook.remove()


def segments(
    surgery: Surgery, clip: CalibrationClip, length: int, seed: tuple[int, ...], masks: bool = False
) -> Iterator[list[Sample]]:
    """Consecutive frames of a clip, `length` at a time; the last of one is the first of the next.

    Memory is bounded by one segment, whatever the length of the clip.
    """
    recorder = Recorder(surgery, seed)
    steps = track(surgery.host.model, clip.video, clip.prompts)
    while True:
        with listening(surgery, recorder, masks):
            if next(steps, None) is None:
                return
        samples = recorder.samples
        if len(samples) >= 2 and samples[-1].windows is None:
            del samples[:-1]  # a prompted frame in the middle: nothing was routed to get there
        if len(samples) == length:
            thaw_caches(surgery)
            yield samples
            recorder.samples = samples[-1:]


def student_error(surgery: Surgery, samples: list[Sample], objective: str) -> Tensor:
    """Error of the routed model over a segment whose first frame is dense, 0-d, with gradient to the shortcut.

    Args:
        objective: "memory": the memory-conditioned stride-16 feature given the teacher's own memory (published);
            "stage": the span's output; "masks": the decoder's mask logits, as binary KL divergence. The first two are
            mean squared errors relative to the variance of the teacher's feature.

    Errors accumulate over the segment: the temporal shortcut builds on the student's own last output.
    """
    router = require_router(surgery)
    temporal = router.settings.skipped.temporal
    memory = router.memory_of(samples[0].entering, samples[0].leaving) if temporal else None
    errors = []
    for sample in samples[1:]:
        assert sample.windows is not None
        route = router.routed(sample.windows, sample.pixels.device, memory)
        with surgery.within(router.replayed(route)):
            current = surgery.host.stride16(sample.pixels)
        if temporal:
            memory = updated_memory(route, router.shortcut, router.grid)
        if objective == "stage":
            assert route.rest is not None and route.skipped is not None
            errors.append(_relative(route.skipped, sample.leaving.index_select(0, route.rest)))
            continue
        for position, read in enumerate(sample.reads):
            conditioned = _replayed_memory(surgery.host, read, current)
            if objective == "memory":
                errors.append(_relative(conditioned, read.output))
            else:
                errors.append(_mask_divergence(surgery.host, sample.decodes[position], conditioned))
    return torch.stack(errors).mean()


def _replayed_memory(host: HostView, call: Call, current: Tensor) -> Tensor:
    name = host.current_argument
    given = [current] if isinstance(call.kwargs[name], list) else current
    output = host.memory_attention()(**{**call.kwargs, name: given})
    return output if isinstance(output, Tensor) else output[0]


def _mask_divergence(host: HostView, call: Call, conditioned: Tensor) -> Tensor:
    """Binary KL divergence of the student's mask probabilities from the teacher's, mean over pixels and candidates."""
    shape = call.kwargs["image_embeddings"].shape
    tokens = conditioned.reshape(-1, shape[-3])
    embeddings = tokens.T.reshape(shape)
    output = host.mask_decoder()(**{**call.kwargs, "image_embeddings": embeddings})
    logits = (output if isinstance(output, Tensor) else output[0]).float()
    target = call.output.float().sigmoid()
    entropy = F.binary_cross_entropy(target, target)
    return F.binary_cross_entropy_with_logits(logits, target) - entropy


def _relative(found: Tensor, wanted: Tensor) -> Tensor:
    wanted = wanted.float()
    return (found.float() - wanted).pow(2).mean() / wanted.var().clamp_min(1e-12)


def thaw(value: Any) -> Any:
    """Copies of inference tensors that autograd may use; containers are rebuilt, other values passed through."""
    if isinstance(value, Tensor):
        with torch.inference_mode(False), torch.no_grad():
            return value.detach().clone()
    if isinstance(value, (list, tuple)):
        return type(value)(thaw(each) for each in value)
    return {key: thaw(each) for key, each in value.items()} if isinstance(value, dict) else value


def thaw_caches(surgery: Surgery) -> None:
    """Replace tables that the host cached under inference mode (rotary codes) by equal ones that autograd may use."""
    for module in surgery.host.model.modules():
        for name, value in list(vars(module).items()):
            if isinstance(value, Tensor) and value.is_inference():
                setattr(module, name, thaw(value))
            elif type(value) is dict and any(
                isinstance(each, Tensor) and each.is_inference() for each in value.values()
            ):
                value.update({key: thaw(each) for key, each in value.items() if isinstance(each, Tensor)})

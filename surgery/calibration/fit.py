"""The fit of a model's shortcuts: a closed form, from one dense pass over the clips."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from statistics import fmean
from typing import Any

import torch

from surgery.calibration.clips import CalibrationClip
from surgery.calibration.linear import ResidualRegression, start_from
from surgery.core.observer import Observer
from surgery.engine import require_surgery
from surgery.errors import ModelStateError
from surgery.operations.window_routing.bound import SpanSeen, WindowRouter
from surgery.operations.window_routing.shortcut import BottleneckShortcut
from surgery.progress import Counter, Step
from surgery.tracking import track


@dataclass
class FitResult:
    """What fitting did. explained: share of the residual's energy (with a temporal shortcut, of what reuse leaves of
    it) that the closed form explains on the clips it was fitted to, of several runs of blocks the mean; None when there
    was nothing to fit."""

    explained: float | None = None


class _Sums(Observer):
    def __init__(self, sums: Sequence[ResidualRegression]) -> None:
        self.sums = sums

    def noted(self, what: Any) -> None:
        if isinstance(what, SpanSeen):
            for sums, passed in zip(self.sums, what.runs, strict=True):
                sums.add(*passed)


def fits(router: WindowRouter) -> list[BottleneckShortcut]:
    """The shortcuts to fit, one a run of blocks."""
    every = router.shortcuts if router.settings.uses_shortcut else []
    return [each for each in every if isinstance(each, BottleneckShortcut)]


def fit_shortcut(
    model: Any, clips: Sequence[CalibrationClip], *, step: Step = lambda what, done, total: None
) -> FitResult:
    """Fit the shortcut of `model` in place.

    Args:
        model: a model under surgery whose recipe routes windows.
        clips: with prompts. Streamed; memory does not grow with their length.
        step: called with (phase, done, total) as work goes on.

    Raises:
        ModelStateError: the model is not under surgery, or its shortcut has nothing to fit.
        CalibrationError: features that are not finite, or that never change.
    """
    surgery = require_surgery(model)
    router = surgery.find(WindowRouter)
    if router is None:
        raise ModelStateError("this recipe has no window routing, so there is no shortcut to fit")
    shortcuts = fits(router)
    if not shortcuts:
        raise ModelStateError(
            "nothing to fit: the identity shortcut has no weights, the attention shortcut no closed form, and with "
            "span: tiles and early: 0 skipped windows reuse their last output; choose skipped.shortcut.type bottleneck "
            "or ffn"
        )
    device = next(router.shortcut.parameters()).device
    # Half-precision sums lose what a regression needs; MPS has no fp64, so there the sums live on the CPU.
    place = torch.device("cpu") if device.type == "mps" else device
    temporal = router.settings.skipped.temporal
    sums = [ResidualRegression(each.channels, temporal, place, router.grid) for each in shortcuts]
    count = Counter(step, "closed form", sum(clip.tracked for clip in clips))
    with surgery.plain_parts():
        for clip in clips:
            for each in sums:
                each.start()
            with surgery.observed_by(_Sums(sums)):
                for _ in track(model, clip.video, clip.prompts):
                    count()
    parts = [
        start_from(shortcut, *found.summed(), found.level, temporal)
        for shortcut, found in zip(shortcuts, sums, strict=True)
    ]
    surgery.adapter = f"fitted on {len(clips)} clips"
    return FitResult(fmean(parts))

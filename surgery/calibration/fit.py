"""The fit of a model's shortcut, and of its corrections: closed forms, from one dense pass over the clips."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch

from surgery.calibration.clips import CalibrationClip
from surgery.calibration.linear import ResidualRegression, start_from
from surgery.calibration.stages import StageRegressions
from surgery.core.observer import Observer
from surgery.engine import require_surgery
from surgery.errors import ModelStateError
from surgery.operations.window_routing.bound import SpanSeen, WindowRouter
from surgery.operations.window_routing.shortcut import BottleneckShortcut, Corrections
from surgery.progress import Counter, Step
from surgery.tracking import track


@dataclass
class FitResult:
    """What fitting did. explained: share of the residual's energy (of its change, with a temporal shortcut) that the
    closed form explains on the clips it was fitted to, None when there was nothing to fit. stages: the same of the
    correction of every stage before the span.
    """

    explained: float | None = None
    stages: list[float] = field(default_factory=list)


class _Sums(Observer):
    def __init__(self, sums: ResidualRegression | None, stages: StageRegressions | None) -> None:
        self.sums, self.stages = sums, stages

    def noted(self, what: Any) -> None:
        if not isinstance(what, SpanSeen):
            return
        if self.stages is not None and what.maps:
            self.stages.add(list(what.maps))
        if self.sums is not None:
            self.sums.add(what.entering.flatten(0, 2), what.leaving.flatten(0, 2))


def fits(router: WindowRouter) -> tuple[BottleneckShortcut | None, Corrections | None]:
    """The shortcut to fit, and the corrections; None where there are none."""
    shortcut = router.shortcut
    fitted = shortcut if isinstance(shortcut, BottleneckShortcut) and router.settings.uses_shortcut else None
    return fitted, shortcut.corrections


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
    shortcut, corrections = fits(router)
    if shortcut is None and corrections is None:
        raise ModelStateError(
            "nothing to fit: the identity shortcut has no weights, the attention shortcut no closed form, and with "
            "span: tiles and early: 0 skipped windows reuse their last output; choose skipped.shortcut.type bottleneck "
            "or ffn, or stages.correction: patch"
        )
    device = next(router.shortcut.parameters()).device
    # Half-precision sums lose what a regression needs; MPS has no fp64, so there the sums live on the CPU.
    place = torch.device("cpu") if device.type == "mps" else device
    temporal = router.settings.skipped.temporal
    sums = ResidualRegression(shortcut.channels, temporal, place) if shortcut is not None else None
    stages = StageRegressions(corrections, place) if corrections is not None else None
    count = Counter(step, "closed form", sum(clip.tracked for clip in clips))
    with surgery.plain_parts():
        for clip in clips:
            for each in (sums, stages):
                if each is not None:
                    each.start()
            with surgery.observed_by(_Sums(sums, stages)):
                for _ in track(model, clip.video, clip.prompts):
                    count()
    result = FitResult()
    if shortcut is not None and sums is not None:
        result.explained = start_from(shortcut, *sums.summed(), sums.level, temporal)
    if stages is not None:
        result.stages = stages.solve()
    surgery.adapter = f"fitted on {len(clips)} clips"
    return result

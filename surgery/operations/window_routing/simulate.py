"""What routing settings would have done on a dense pass: candidates are stepped through its frames side by side.

Nothing is stored that grows with the clip: each candidate keeps its window ages and two running sums, the windows it
would have computed and the error it would have let through.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from surgery.core.evidence import Evidence, saliency_map
from surgery.core.frame import FrameContext
from surgery.core.observer import Prediction, Simulation
from surgery.operations.window_routing import router as rules
from surgery.operations.window_routing.bound import SpanSeen, WindowRouter
from surgery.operations.window_routing.matching import normed, reused_map
from surgery.operations.window_routing.policy import Seen, WindowState, by_rules
from surgery.operations.window_routing.settings import WindowSettings

DEEPEST = 12
"""Frames of the past that are held; a window that waited longer counts as having waited this long."""
BACKGROUND = 0.2
"""What an error in a window without an object counts for, against 1 in a window with one."""


@dataclass(eq=False)
class Candidate:
    """A routing setting under simulation.

    windows, risk: sums over tracked frames of the fraction of windows computed, and of the error of those skipped, and
    of the others through them (relative to the variance of the span's output, weighted by whether an object is there).
    """

    settings: WindowSettings
    windows: float = 0.0
    risk: float = 0.0
    frames: int = 0
    state: WindowState = field(default_factory=WindowState)


@dataclass(eq=False)
class _Facts:
    """What is known of one frame before it is encoded."""

    touched: dict[tuple[str, int], list[bool]]
    scores: list[float]
    objects: dict[int, Any]
    salient: dict[float, list[bool]]
    changes: list[list[float]]
    cut: float
    doubts: list[float]
    first: bool
    prompted: bool


def way_of(settings: WindowSettings) -> str:
    """What a skipped window is given besides what it last was: the change of a `shortcut`, that of its input and of
    what global blocks add (`dense`), or nothing (`last`)."""
    if settings.stages.globals == "dense":
        return "dense"
    return "shortcut" if settings.uses_shortcut else "last"


class WindowSimulation(Simulation):
    """Steps candidates through dense passes.

    Args:
        router: of a model under surgery. settings: the candidates'.
    """

    def __init__(self, router: WindowRouter, settings: Sequence[WindowSettings]) -> None:
        self._router, self._grid = router, router.grid
        self.candidates = {repr(each): Candidate(each) for each in settings}
        self._ways = {way_of(each) for each in settings}
        inner = [index for index in router.span.routed if not router.surgery.host.block_info(index).window]
        self._global = len(inner) / len(router.span.routed)
        self.start()

    def start(self) -> None:
        """See `Simulation.start`."""
        self._past: deque[tuple[dict[str, Tensor], Tensor, Tensor]] = deque(maxlen=DEEPEST)
        self._picture: Tensor | None = None
        self._small: Tensor | None = None
        self._facts: _Facts | None = None
        self._errors: dict[str, list[list[float]]] = {}
        self._levels: dict[str, list[float]] = {}
        for candidate in self.candidates.values():
            candidate.state = WindowState(ages=[0] * self._grid.count)

    def predict(self, settings: WindowSettings, lengths: Sequence[int]) -> Prediction:
        """See `Simulation.predict`."""
        candidate = self.candidates[repr(settings)]
        frames = max(1, candidate.frames)
        return Prediction(candidate.windows / frames, candidate.risk / frames)

    def frame(self, context: FrameContext, pixels: Tensor) -> None:
        """The frame before has its result now; this one is looked at. The last of a clip is not counted."""
        known = context.video.evidence
        evidence = list(known.values())
        if self._facts is not None:
            self._settle(evidence)
        grid = self._grid
        picture, small = context.picture(pixels, grid.height, grid.width), rules.thumbnail(pixels)
        kinds = {(each.settings.object.candidates, each.settings.object.dilation) for each in self.candidates.values()}
        looks = bool(evidence) and not context.dense
        self._facts = _Facts(
            touched={kind: self._touched(evidence, *kind) for kind in kinds} if looks else {},
            scores=[float(item.score) for item in evidence],
            objects=dict.fromkeys(known),
            salient=self._salient(evidence) if looks else {},
            changes=[rules.window_changes(picture, past[1], grid).tolist() for past in reversed(self._past)],
            cut=float(rules.scene_change(small, self._small)) if self._small is not None else 0.0,
            doubts=[doubt for item in evidence if (doubt := item.told().doubt) is not None],
            first=len(self._past) == 1,
            prompted=context.dense or not self._past,
        )
        self._picture, self._small = picture, small

    def noted(self, what: Any) -> None:
        """See `Observer.noted`."""
        if not isinstance(what, SpanSeen):
            return
        assert self._picture is not None
        inputs, output = what.entering.flatten(0, 2), what.leaving.flatten(0, 2).to(torch.float32)
        variance = output.var(0).mean().clamp_min(1e-12)
        changes, now = {way: self._old(way, inputs, output) for way in self._ways}, normed(inputs.to(torch.float32))
        for way, change in changes.items():
            self._errors[way] = [
                self._by_window((change - self._reused(past[0][way], past[2], now)).pow(2).mean(-1) / variance)
                for past in reversed(self._past)
            ]
            self._levels[way] = self._by_window(change.pow(2).mean(-1) / variance)
        self._past.append((changes, self._picture, now))

    def _reused(self, change: Tensor, then: Tensor, now: Tensor) -> Tensor:
        """`change` of an earlier frame, whose normed input was `then`, as this frame reuses it."""
        return reused_map(self._grid, now, then, change) if self._router.settings.skipped.temporal else change

    def _old(self, way: str, inputs: Tensor, output: Tensor) -> Tensor:
        """What of the span's output a skipped window would have as it last was, [H * W, C]; see `way_of`.

        Extra pieces follow the objects, whose windows weigh most, so with them the shortcut counts everywhere.
        """
        if way == "dense":
            return (output - inputs.to(torch.float32)) * (1 - self._global)
        if way == "last":
            return output
        return output - self._router.shortcut.whole(inputs, self._grid).to(torch.float32)

    def _by_window(self, values: Tensor) -> list[float]:
        return self._grid.means(values).tolist()

    def _touched(self, evidence: list[Evidence], candidates: str, dilation: int) -> list[bool]:
        """Windows that objects touch, by which mask candidates and how far around them."""
        masks = [item.mask if candidates == "all" or item.best is None else item.best for item in evidence]
        return rules.mask_windows(masks, self._grid, dilation).tolist()

    def _salient(self, evidence: list[Evidence]) -> dict[float, list[bool]]:
        maps = torch.stack([saliency_map(self._router.surgery.host, item) for item in evidence])
        masses = {each.settings.object.saliency_mass for each in self.candidates.values()}
        return {mass: rules.salient_windows(maps, self._grid, mass).tolist() for mass in masses}

    def _settle(self, evidence: list[Evidence]) -> None:
        """Step every candidate over the frame whose result is now known."""
        facts, self._facts = self._facts, None
        assert facts is not None
        there = self._touched(evidence, "best", 5) if evidence else [False] * self._grid.count
        weights = [1.0 if here else BACKGROUND for here in there]
        for candidate in self.candidates.values():
            if facts.prompted:
                candidate.state.ages, candidate.state.since_dense = [0] * self._grid.count, 0
            else:
                self._step(candidate, facts, weights)

    def _step(self, candidate: Candidate, facts: _Facts, weights: list[float]) -> None:
        settings, state, count = candidate.settings, candidate.state, self._grid.count
        candidate.frames += 1
        windows = self._choose(candidate, facts)
        candidate.windows += 1.0 if windows is None else len(windows) / count
        state.renewed(windows, count)
        way = way_of(settings)
        past, level = self._errors[way], self._levels[way]
        lost = [
            (past[min(age, len(past)) - 1] if settings.skipped.temporal and age else level)[window]
            for window, age in enumerate(state.ages)
        ]
        # What computed windows see of skipped ones, in inner global blocks alone: packed, nothing of them.
        unseen = level if settings.stages.globals == "packed" else lost
        blurred = self._global * sum(unseen[window] for window, age in enumerate(state.ages) if age) / count
        for window, age in enumerate(state.ages):
            candidate.risk += weights[window] * (lost[window] if age else blurred) / sum(weights)

    def _choose(self, candidate: Candidate, facts: _Facts) -> list[int] | None:
        settings, state = candidate.settings, candidate.state
        refresh = settings.refresh
        if (facts.first and refresh.start) or (refresh.every and state.since_dense >= refresh.every):
            return None
        changes = None
        if settings.budget < 1.0:
            deepest = len(facts.changes)
            changes = [facts.changes[min(age + 1, deepest) - 1][window] for window, age in enumerate(state.ages)]
        touched = facts.touched[settings.object.candidates, settings.object.dilation]
        seen = Seen(touched, facts.scores, changes, facts.cut, facts.doubts)
        return by_rules(settings, state, facts.objects, seen, lambda: facts.salient[settings.object.saliency_mass])[0]

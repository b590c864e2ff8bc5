"""One dense pass over a clip, and what every candidate setting would have done on it.

Candidates are stepped through the frames side by side, so nothing is stored that grows with the clip: each keeps its
window ages and two running sums, the windows it would have computed and the error it would have let through.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from surgery.calibration.clips import CalibrationClip
from surgery.core.host import HostView, ObjectStep
from surgery.hosts.choice import lost_object, saliency_maps
from surgery.hosts.watcher import Watcher
from surgery.operations import Precision, SparseWindowRouting
from surgery.operations.precision import tensors
from surgery.operations.memory_retrieval.saliency import kept_count
from surgery.routing.router import (
    allot,
    mask_windows,
    salient_windows,
    scene_change,
    thumbnail,
    token_picture,
    window_changes,
)
from surgery.core.windows import WindowGrid
from surgery.core.session import Evidence, VideoState
from surgery.tracking import track

DEEPEST = 12
"""Frames of the past that are held; a window that waited longer counts as having waited this long."""
BACKGROUND = 0.2
"""What an error in a window without an object counts for, against 1 in a window with one."""
BROKEN = 10.0
"""Relative error that stands for an output that is not finite."""


@dataclass(eq=False)
class Candidate:
    """A routing setting under simulation.

    windows, risk: sums over tracked frames of the fraction of windows computed, and of the error of those skipped
    (relative to the variance of the span's output, weighted by whether an object is there).
    """

    settings: SparseWindowRouting
    windows: float = 0.0
    risk: float = 0.0
    frames: int = 0
    ages: list[int] = field(default_factory=list)
    since_dense: int = 0
    state: VideoState = field(default_factory=lambda: VideoState(generation=None))


@dataclass(eq=False)
class _Facts:
    """What is known of one frame before it is encoded."""

    touched: dict[tuple[str, int], list[bool]]
    scores: list[float]
    objects: dict[int, Any]
    salient: dict[float, list[bool]]
    changes: list[list[float]]
    cut: float
    first: bool
    prompted: bool


class Observer(Watcher):
    """Steps candidates through a dense pass, and sums up how much attention the best tokens of a memory frame hold.

    Args:
        view: a model under surgery with window routing. candidates: settings to simulate. keeps: shares of tokens for
            which the attention held is measured. precisions: in which every part is run a second time; `errors` holds
            the relative errors of its outputs, by part and precision.
    """

    def __init__(
        self, view: HostView, candidates: Sequence[Candidate], keeps: Sequence[float],
        precisions: Sequence[Precision] = (),
    ) -> None:  # fmt: skip
        self.view, self.candidates, self.precisions = view, candidates, precisions
        self.errors: dict[tuple[str, Precision], list[float]] = {}
        self.held: dict[tuple[bool, float], list[float]] = {
            (conditioning, keep): [] for conditioning in (False, True) for keep in keeps
        }
        self.start()

    def start(self) -> None:
        """A new clip begins."""
        grid = self.view.binding.grid
        self._grid = grid if grid is not None else WindowGrid(1, 1, 1)  # without routing no frame is shown to us
        self._past: deque[tuple[Tensor, Tensor]] = deque(maxlen=DEEPEST)
        self._picture: Tensor | None = None
        self._small: Tensor | None = None
        self._facts: _Facts | None = None
        self._errors: list[list[float]] = []
        for candidate in self.candidates:
            candidate.ages, candidate.since_dense = [0] * self._grid.count, 0
            candidate.state = VideoState(generation=None)

    def frame(self, state: VideoState, frame: int, step: ObjectStep | None, pixels: Tensor) -> None:
        evidence = list(state.evidence.values())
        if self._facts is not None:
            self._settle(evidence)
        grid = self._grid
        picture = token_picture(pixels, grid)
        small = thumbnail(pixels)
        prompted = step is None or step.dense
        self._facts = _Facts(
            touched=self._touched(evidence) if evidence and not prompted else {},
            scores=[float(item.score) for item in evidence],
            objects=dict.fromkeys(state.evidence),
            salient=self._salient(evidence) if evidence and not prompted else {},
            changes=[window_changes(picture, past[1], grid).tolist() for past in reversed(self._past)],
            cut=float(scene_change(small, self._small)) if self._small is not None else 0.0,
            first=len(self._past) == 1,
            prompted=prompted or not self._past,
        )
        self._picture, self._small = picture, small

    def encoded(self, entering: Tensor, leaving: Tensor) -> None:
        assert self._picture is not None
        inputs, output = entering.flatten(0, 2), leaving.flatten(0, 2).to(torch.float32)
        branch = self._branch(inputs)
        variance = output.var(0).mean().clamp_min(1e-12)
        change = output - branch
        self._errors = [self._by_window((change - past[0]).pow(2).mean(-1) / variance) for past in reversed(self._past)]
        self._level = self._by_window(change.pow(2).mean(-1) / variance)
        self._past.append((change, self._picture))

    def _branch(self, inputs: Tensor) -> Tensor:
        """Shortcut output [H * W, C] in fp32; zero where skipped tiles reuse their last output as it is.

        Extra pieces follow the objects, whose windows weigh most, so with them the shortcut counts everywhere.
        """
        assert self.view.span_info is not None and self.view.binding.routing is not None
        if not self.view.binding.routing.uses_shortcut:
            return torch.zeros_like(inputs, dtype=torch.float32)
        grid, shortcut = self._grid, self.view.shortcut_module(self.view.span_info)
        if shortcut.pointwise:
            return shortcut(inputs).to(torch.float32)
        every = range(grid.count)
        ids = torch.from_numpy(grid.token_ids(every)).to(inputs.device)
        branch = shortcut(inputs.index_select(0, ids), grid.packing(every, inputs.device)).to(torch.float32)
        return torch.zeros_like(branch).index_copy(0, ids, branch)

    def saliency(self, conditioning: bool, layer: int, saliency: Tensor) -> None:
        cumulative = saliency.sort(descending=True).values.cumsum(-1)
        for (of_conditioning, keep), held in self.held.items():
            if of_conditioning == conditioning:
                held.append(float(cumulative[kept_count(len(saliency), keep) - 1]))

    def part(self, name: str, run: Callable[[Precision | None], Any]) -> Any:
        found = []
        for precision in self.precisions:
            with self.view.binding.aside():
                found.append(list(tensors(run(precision))))
        out = run(None)
        exact = list(tensors(out))
        for precision, rounded in zip(self.precisions, found, strict=True):
            error = max(_relative(one, other) for one, other in zip(rounded, exact, strict=True))
            self.errors.setdefault((name, precision), []).append(error)
        return out

    def _by_window(self, values: Tensor) -> list[float]:
        both = self._grid.mass(torch.stack([values, torch.ones_like(values)]))
        return (both[0] / both[1]).tolist()

    def _touched(self, evidence: list[Evidence]) -> dict[tuple[str, int], list[bool]]:
        kinds = {(candidate.settings.candidates, candidate.settings.dilation) for candidate in self.candidates}
        found: dict[tuple[str, int], list[bool]] = {}
        for which, dilation in kinds:
            masks = [item.mask if which == "all" or item.best is None else item.best for item in evidence]
            found[which, dilation] = mask_windows(masks, self._grid, dilation).tolist()
        return found

    def _salient(self, evidence: list[Evidence]) -> dict[float, list[bool]]:
        maps = saliency_maps(self.view, evidence)
        masses = {candidate.settings.saliency_mass for candidate in self.candidates}
        return {mass: salient_windows(maps, self._grid, mass).tolist() for mass in masses}

    def _settle(self, evidence: list[Evidence]) -> None:
        """Step every candidate over the frame whose result is now known."""
        facts, self._facts = self._facts, None
        assert facts is not None
        there = [False] * self._grid.count
        if evidence:
            masks = [item.mask if item.best is None else item.best for item in evidence]
            there = mask_windows(masks, self._grid, 5).tolist()
        weights = [1.0 if here else BACKGROUND for here in there]
        for candidate in self.candidates:
            if facts.prompted:
                candidate.ages, candidate.since_dense = [0] * self._grid.count, 0
            else:
                self._step(candidate, facts, weights)

    def _step(self, candidate: Candidate, facts: _Facts, weights: list[float]) -> None:
        settings, count = candidate.settings, self._grid.count
        candidate.frames += 1
        windows = self._choose(candidate, facts)
        if windows is None:
            candidate.windows += 1.0
            candidate.ages, candidate.since_dense = [0] * count, 0
            return
        chosen = set(windows)
        candidate.windows += len(chosen) / count
        ages = [0 if window in chosen else age + 1 for window, age in enumerate(candidate.ages)]
        candidate.ages, candidate.since_dense = ages, candidate.since_dense + 1
        for window, age in enumerate(ages):
            if age:
                error = (
                    self._errors[min(age, len(self._errors)) - 1][window] if settings.temporal else self._level[window]
                )
                candidate.risk += weights[window] * error / sum(weights)

    def _choose(self, candidate: Candidate, facts: _Facts) -> list[int] | None:
        settings = candidate.settings
        refresh = settings.refresh
        if (facts.first and refresh.start) or (refresh.every and candidate.since_dense >= refresh.every):
            return None
        if refresh.scene_cut is not None and facts.cut > refresh.scene_cut:
            return None
        if lost_object(settings, candidate.state, facts.objects, facts.scores):
            return None
        taken = facts.touched[settings.candidates, settings.dilation]
        if not any(taken) or any(not score >= settings.score_gate for score in facts.scores):
            taken = [a or b for a, b in zip(taken, facts.salient[settings.saliency_mass], strict=True)]
        changes = None
        if settings.budget < 1.0:
            deepest = len(facts.changes)
            changes = [facts.changes[min(age + 1, deepest) - 1][window] for window, age in enumerate(candidate.ages)]
        windows = allot(
            taken, candidate.ages, changes, settings.rolling, settings.round_to, settings.budget, settings.fill
        )
        return None if len(windows) == self._grid.count else windows


def _relative(rounded: Tensor, exact: Tensor) -> float:
    """|rounded - exact| / |exact|, at most BROKEN."""
    size = float(exact.float().norm().clamp_min(1e-12))
    error = float((rounded.float() - exact.float()).norm()) / size
    return min(error, BROKEN) if math.isfinite(error) else BROKEN


def observe(view: HostView, observer: Observer, clip: CalibrationClip, step: Callable[[], None] = lambda: None) -> None:
    """Track a clip dense with `observer` looking on. The last frame is not counted: no next one sees its result.
    `step` is called after every frame."""
    observer.start()
    view.binding.watcher = observer
    try:
        for _ in track(view.model, clip.video, clip.prompts):
            step()
    finally:
        view.binding.watcher = None

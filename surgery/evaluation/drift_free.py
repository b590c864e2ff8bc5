"""Drift-free fidelity: what k sparse frames lose, starting from the dense model's own state.

Over a whole video two trackers drift apart by chance, and few clips cannot tell a good setting from a lucky one. Here
every comparison starts anew: the dense model tracks the clip; from its state at frame t - k the sparse model runs k
frames; masks and features are compared with the dense ones at t. No labels are needed, and a weak model shows what a
strong one would. One frame cannot show staleness: decide by the longest k.
"""

from __future__ import annotations

import statistics
from collections import deque
from collections.abc import Generator, Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass
from itertools import islice
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from surgery.core.driver import Driver, resized
from surgery.core.host import HostView
from surgery.core.observer import Observer
from surgery.core.session import SessionStats
from surgery.engine import require_surgery
from surgery.errors import PromptError, VideoError
from surgery.evaluation.metrics import j_and_f
from surgery.tracking import LazyFrames, prompt
from surgery.video import Prompt, Video, check
from surgery.video.masks import Mask

STEPS = (1, 4, 8)
"""Sparse frames after which is compared."""


@dataclass(frozen=True)
class Comparison:
    """One sparse frame against the dense one.

    frame: in the video. steps: sparse frames run, this one included. masks: J&F of the dense masks, mean over objects.
    on_object, elsewhere: error of the encoder's stride-16 feature, norm of the difference over the norm of the dense
    one, over tokens under a dense mask and over the others; None where there are none. kept: shares computed on the
    frames run, by name.
    """

    frame: int
    steps: int
    masks: float
    on_object: float | None
    elsewhere: float | None
    kept: Mapping[str, float]


def drift_free(
    model: Any, video: Video, prompts: Sequence[Prompt], steps: Sequence[int] = STEPS, every: int | None = None
) -> Generator[Comparison, None, None]:
    """Compare sparse frames of `video` with dense ones, see above.

    Args:
        model: under surgery.
        video, prompts: what to track, from the first prompted frame on. All prompts must be on one frame.
        steps: numbers of sparse frames after which to compare, each at least 1.
        every: frames between two starts; default and least: the largest of `steps`, so that every frame is run once.

    Raises:
        PromptError: the prompts do not fit the video, or are on several frames.
        VideoError: a frame cannot be read, or fewer than `max(steps)` frames follow the prompts.
        ModelStateError: a stock model.
    """
    check(prompts, video.size, video.num_frames)
    first = min(each.frame for each in prompts)
    if max(each.frame for each in prompts) != first:
        raise PromptError("drift-free fidelity starts from one prompted frame; expected all prompts on one frame")
    if not steps or min(steps) < 1:
        raise PromptError(f"steps {tuple(steps)}: expected numbers of frames, each at least 1")
    run = _Run(model, video, steps, max(every or 1, *steps))
    yield from run.comparisons(prompts, first)
    follow = run.frames.reached - first - 1
    if follow < max(steps):
        raise VideoError(f"{video.name}: {follow} frames follow the prompts, expected at least {max(steps)}")


@dataclass(frozen=True)
class Summary:
    """Means over the comparisons after so many steps; errors are root mean squares over frames. kept: mean shares."""

    steps: int
    comparisons: int
    masks: float
    on_object: float | None
    elsewhere: float | None
    kept: dict[str, float]


def summarise(comparisons: Sequence[Comparison]) -> list[Summary]:
    """One summary for every number of steps, rising."""
    out = []
    for steps in sorted({each.steps for each in comparisons}):
        rows = [each for each in comparisons if each.steps == steps]
        names = sorted({name for row in rows for name in row.kept})
        kept = {name: statistics.fmean(row.kept[name] for row in rows if name in row.kept) for name in names}
        masks = statistics.fmean(row.masks for row in rows)
        errors = _rms([row.on_object for row in rows]), _rms([row.elsewhere for row in rows])
        out.append(Summary(steps, len(rows), masks, *errors, kept))
    return out


def _rms(values: Sequence[float | None]) -> float | None:
    squares = [value * value for value in values if value is not None]
    return statistics.fmean(squares) ** 0.5 if squares else None


class _Leader(Observer):
    """Every frame runs dense, and operations remember it as one on which everything was asked for."""

    leads = True


class _Run:
    """feature: the encoder's stride-16 feature of the last frame, fp32 [T, C]."""

    def __init__(self, model: Any, video: Video, steps: Sequence[int], every: int) -> None:
        self.surgery = require_surgery(model)
        self.view = self.surgery.host
        self.video, self.steps, self.every = video, steps, every
        self.frames = _Recent(video, self.view, max(steps) + 2)
        self.feature = torch.empty(0)

    def comparisons(self, prompts: Sequence[Prompt], first: int) -> Iterator[Comparison]:
        driver = self.view.drive(self.frames, self.video.size)
        prompt(driver, prompts)
        deepest, start = max(self.steps), first
        hook = self.view.image_encoder().register_forward_hook(self._keep)
        with hook, closing(self._dense(driver, first)) as dense:
            next(dense, None)
            stats = self.surgery.stats or SessionStats()  # of the dense pass; a twin has its own
            while True:
                twin, before = driver.twin(), stats.copied()
                wanted = {index: found for index, *found in islice(dense, deepest) if index - start in self.steps}
                if start + deepest not in wanted:
                    return
                yield from self._compare(twin, start, wanted, before)
                start += self.every
                # Those up to the next start.
                deque(islice(dense, self.every - deepest), maxlen=0)

    def _dense(self, driver: Driver, first: int) -> Generator[tuple[int, dict[int, Mask], Tensor], None, None]:
        index = first
        steps = driver.steps(first, len(self.frames) - 1)
        while self.frames.ahead(index) is not None:
            with self.surgery.observed_by(_Leader()):
                ids, logits = next(steps)
            yield index, self._masks(ids, logits), self.feature
            index += 1

    def _compare(
        self, twin: Driver, start: int, wanted: Mapping[int, Sequence[Any]], before: SessionStats
    ) -> Iterator[Comparison]:
        """wanted: masks by object and feature of the dense pass, by frame."""
        for index, (ids, logits) in enumerate(twin.steps(start + 1, start + max(self.steps)), start=start + 1):
            if index in wanted:
                (dense, feature), stats = wanted[index], self.surgery.stats
                assert stats is not None
                sparse = self._masks(ids, logits)
                scores = [j_and_f(sparse[each], dense[each]) for each in dense]
                errors = _errors(self.feature, feature, np.any(list(dense.values()), axis=0))
                yield Comparison(index, index - start, statistics.fmean(scores), *errors, stats.since(before))

    def _masks(self, ids: Sequence[int], logits: Tensor) -> dict[int, Mask]:
        arrays = (resized(logits, self.video.size)[:, 0] > 0).cpu().numpy()
        return {int(obj_id): array for obj_id, array in zip(ids, arrays, strict=True)}

    def _keep(self, module: Any, args: Any, output: Any) -> None:
        self.feature = self.view.stride16_of(output)[:, 0].to(torch.float32)


def _errors(found: Tensor, dense: Tensor, mask: Mask) -> tuple[float | None, float | None]:
    """Relative errors of [T, C] over tokens of a square map under a mask [H, W] of the video, and over the others."""
    side = round(len(dense) ** 0.5)
    under = F.adaptive_max_pool2d(torch.from_numpy(mask).float()[None], side).flatten().to(dense.device) > 0
    difference, size = (found - dense).square().sum(-1), dense.square().sum(-1)
    on, off = (
        float((difference[where].sum() / size[where].sum()).sqrt()) if bool(where.any()) else None
        for where in (under, ~under)
    )
    return on, off


class _Recent(LazyFrames):
    """The last `count` frames are held, and the length is what the video declares: it may be read only once."""

    def __init__(self, video: Video, view: HostView, count: int) -> None:
        super().__init__(video, view)
        self.count = count
        self._held: dict[int, Tensor] = {}

    def __len__(self) -> int:
        return 10**9 if self.video.num_frames is None else self.video.num_frames

    def __getitem__(self, index: int) -> Tensor:
        if index not in self._held:
            self._held[index] = super().__getitem__(index)
            self._held.pop(index - self.count, None)
        return self._held[index]

"""Everything in a video: the masks of its first frame tracked, and what comes later where no mask lies."""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator
from contextlib import closing
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from torch import Tensor

from surgery.core.driver import Driver
from surgery.core.pictures import Found
from surgery.errors import PromptError
from surgery.hosts import view_of
from surgery.pictures import bound_of, found_in
from surgery.tracking import LazyFrames, maps_by_id
from surgery.video import Video, labels_from_logits
from surgery.video.masks import MAX_ID, Labels, Mask
from surgery.video.source import Frame

FREE = 0.75
"""Share of a mask that must lie where nothing is tracked for it to be a new object."""


@dataclass(frozen=True)
class EverythingFrame:
    """One frame. labels: uint8 [H, W], 0 for nothing; no two objects overlap. new, ended: ids of objects that begin
    here, and of those that were given up before it. alive: tracked. seconds: model time of tracking and of looking for
    objects."""

    index: int
    frame: Frame
    labels: Labels
    new: tuple[int, ...]
    ended: tuple[int, ...]
    alive: int
    seconds: float


def track_everything(
    model: Any, video: Video, *, every: int = 16, max_objects: int = 50, patience: int = 32, least_area: float = 0.001
) -> Iterator[EverythingFrame]:
    """Find everything on the first frame and track it; every so many frames what lies where no mask is joins.

    Ids are stable, and none is used twice.

    Args:
        model: a video model under a recipe with `segment_everything`; whatever else is in the recipe runs in tracking.
        every: frames between two looks for new objects.
        max_objects: tracked at once, 1 to 255; the best are taken. A video has 255 ids.
        patience: an object that was not seen for so many frames ends at the next look.
        least_area: share of the picture that an object has at least when it begins.

    Raises:
        PromptError: an argument out of range.
        ModelStateError: the recipe has no segment_everything; and whatever `everything` raises.
        VideoError: a frame cannot be read.
    """
    for name, value, low, high in (
        ("every", every, 1, 10**6), ("max_objects", max_objects, 1, MAX_ID), ("patience", patience, 1, 10**6),
        ("least_area", least_area, 0.0, 1.0),
    ):  # fmt: skip
        if not low <= value <= high:
            raise PromptError(f"{name} {value} is not in {low} to {high}")
    bound_of(model)
    view = view_of(model)
    frames = LazyFrames(video, view)
    return _Everything(model, frames, view.drive(frames, video.size), every, max_objects, patience, least_area).run()


@dataclass(eq=False)
class _Everything:
    """seen: frame on which every tracked object was seen last, by id. used: ids so far."""

    model: Any
    frames: LazyFrames
    driver: Driver
    every: int
    most: int
    patience: int
    least_area: float
    seen: dict[int, int] = field(default_factory=dict)
    used: int = 0

    def run(self) -> Iterator[EverythingFrame]:
        start, looked = 0, 0.0
        new: tuple[int, ...] = ()
        ended: tuple[int, ...] = ()
        while (frame := self.frames.ahead(start)) is not None:
            if not self.seen:
                blank = np.zeros(frame.shape[:2], dtype=np.uint8)
                new, looked = self._look(start, frame, blank) if start % self.every == 0 else ((), 0.0)
                if not new:
                    yield EverythingFrame(start, frame, blank, (), ended, 0, looked)
                    start, ended = start + 1, ()
                    continue
            stop = (start // self.every + 1) * self.every
            with closing(self.driver.steps(start, stop)) as steps:
                for index in range(start, stop + 1):
                    frame = self.frames.ahead(index)
                    if frame is None:
                        return
                    began = time.perf_counter()
                    ids, logits = next(steps)
                    labels = self._labels(ids, logits, index)
                    seconds = time.perf_counter() - began + looked
                    if index == stop:
                        break
                    yield EverythingFrame(index, frame, labels, new, ended, len(self.seen), seconds)
                    new, ended, looked = (), (), 0.0
            ended = self._end(stop)
            new, looked = self._look(stop, frame, labels)
            if new:
                start = stop  # once more, with the new ones
                looked += seconds
            else:
                yield EverythingFrame(stop, frame, labels, (), ended, len(self.seen), seconds + looked)
                start, ended, looked = stop + 1, (), 0.0

    def _labels(self, ids: Iterable[int], logits: Tensor, index: int) -> Labels:
        labels = labels_from_logits(maps_by_id(ids, logits, self.frames.video.size))
        self.seen.update({int(obj_id): index for obj_id in np.unique(labels) if obj_id})
        return labels

    def _look(self, index: int, frame: Frame, labels: Labels) -> tuple[tuple[int, ...], float]:
        """Prompt what lies where nothing is tracked; its ids, and seconds."""
        began = time.perf_counter()
        room = min(self.most - len(self.seen), MAX_ID - self.used)
        new = []
        if room > 0:
            for mask in apart(found_in(self.model, frame), labels > 0, self.least_area)[:room]:
                self.used += 1
                self.driver.add_mask(index, self.used, mask)
                self.seen[self.used] = index
                new.append(self.used)
        return tuple(new), time.perf_counter() - began

    def _end(self, index: int) -> tuple[int, ...]:
        """Give up what was not seen for long."""
        ended = tuple(obj_id for obj_id, last in self.seen.items() if index - last >= self.patience)
        for obj_id in ended:
            self.driver.remove(obj_id)
            del self.seen[obj_id]
        return ended


def apart(found: Found, taken: Mask, least_area: float = 0.0) -> list[Mask]:
    """Masks that do not overlap each other nor `taken`, best first: of every one what is left, where that is most of
    it."""
    taken, kept = taken.copy(), []
    for mask in found.masks[found.worth.argsort(descending=True, stable=True)].cpu().numpy():
        free = mask & ~taken
        area = int(free.sum())
        if area and area >= least_area * mask.size and area >= FREE * mask.sum():
            kept.append(free)
            taken |= free
    return kept

"""Which frames of which object count, and the scores of one sequence, fed frame by frame."""

from __future__ import annotations

import statistics as stats
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from surgery.errors import DatasetError, nearest
from surgery.evaluation.dataset import Annotated, Sequence, frame_number
from surgery.evaluation.metrics import TOLERANCE, boundary_f, region_j, statistics
from surgery.video.masks import Mask

FIELDS = ("j", "f", "j_and_f", "j_recall", "f_recall", "j_decay", "f_decay")


@dataclass(frozen=True)
class Convention:
    """A benchmark's choice of what counts; docs/evaluation.md has the table with the code each one follows.

    trim: leave out an object's first and last annotated frame. first_frame_only: only objects of the sequence's first
    annotated frame. when_seen: from the first of these frames on which the object is in the truth or the prediction,
    and only if the truth shows it on one of them. after_prompt: only frames after the prompted one. span: only frames
    of the object's range in the meta file.
    """

    trim: bool = False
    first_frame_only: bool = False
    when_seen: bool = False
    after_prompt: bool = False
    span: bool = False


CONVENTIONS: dict[str, Convention] = {
    "davis2017": Convention(trim=True, first_frame_only=True),
    "vos-benchmark": Convention(trim=True, when_seen=True),
    "sav": Convention(trim=True, when_seen=True),
    "lvos": Convention(span=True),
    "after-prompt": Convention(after_prompt=True),
}


def convention_named(name: str) -> Convention:
    """The convention of this name. Raises DatasetError for an unknown one."""
    if name not in CONVENTIONS:
        raise DatasetError(f"convention {name!r}{nearest(name, CONVENTIONS)}; known: {', '.join(CONVENTIONS)}")
    return CONVENTIONS[name]


class Scorer:
    """Scores of one sequence under one convention.

    Args:
        sequence, objects: see `Sequence.annotated`. convention: name. tolerance: of F, share of the image diagonal.

    Raises:
        DatasetError: an unknown convention, or `lvos` without frame ranges.
    """

    def __init__(
        self, sequence: Sequence, objects: list[Annotated], convention: str, tolerance: float = TOLERANCE
    ) -> None:
        self.rule, self.tolerance = convention_named(convention), tolerance
        self.frames = {thing.name: _frames_that_count(sequence, thing, self.rule) for thing in objects}
        self.reasons: dict[str, str] = {}
        # Where every annotated frame is one on which an object is prompted, no truth was published.
        prompts = {thing.first for thing in objects}
        hidden = all(set(thing.frames) <= prompts for thing in objects)
        start = min(thing.frames[0] for thing in objects)
        for thing in objects:
            if hidden:
                self._skip(thing, "no masks besides those it was prompted with")
            elif self.rule.first_frame_only and thing.first != start:
                self._skip(thing, "not in the first annotated frame, as the davis2017 convention wants")
            elif not self.frames[thing.name]:
                self._skip(thing, f"no annotated frame counts under convention {convention!r}")
        # J and F of every object so far, and the objects that count.
        self._values: dict[str, list[tuple[float, float]]] = {thing.name: [] for thing in objects}
        self._counted: set[str] = set()

    def wanted(self, index: int) -> set[str]:
        """Names of the objects for which frame `index` counts."""
        return {name for name, frames in self.frames.items() if index in frames}

    def feed(self, name: str, guess: Mask, truth: Mask) -> None:
        """Add one frame of one object, both masks bool [H, W]; frames in order."""
        values = self._values[name]
        if self.rule.when_seen and not values and not truth.any() and not guess.any():
            return
        if truth.any() or not self.rule.when_seen:
            self._counted.add(name)
        values.append((region_j(guess, truth), boundary_f(guess, truth, self.tolerance)))

    def result(self) -> tuple[dict[str, Any], dict[str, str]]:
        """Scores (`FIELDS`, and `objects` by name), `None` where nothing was scored; and why, per object left out."""
        objects: dict[str, dict[str, Any]] = {}
        reasons = dict(self.reasons)
        for name, values in self._values.items():
            if name in self._counted:
                (j, j_recall, j_decay), (f, f_recall, f_decay) = map(statistics, zip(*values, strict=True))
                scores = dict(zip(FIELDS, (j, f, (j + f) / 2, j_recall, f_recall, j_decay, f_decay), strict=True))
                objects[name] = {"frames": len(values), **scores}
            else:
                reasons.setdefault(name, "the truth shows it on none of the frames that count")
        return {**mean_of(objects.values()), "objects": objects}, reasons

    def _skip(self, thing: Annotated, reason: str) -> None:
        self.reasons[thing.name], self.frames[thing.name] = reason, frozenset()


def mean_of(rows: Iterable[Mapping[str, Any]]) -> dict[str, float | None]:
    """Mean of every score over `rows`; rows without a score are left out, and `None` when none has one."""
    scored = [row for row in rows if row["j"] is not None]
    return {name: stats.fmean(row[name] for row in scored) if scored else None for name in FIELDS}


def _frames_that_count(sequence: Sequence, thing: Annotated, rule: Convention) -> frozenset[int]:
    frames = list(thing.frames)
    if rule.trim:
        frames = frames[1:-1]
    if rule.after_prompt:
        frames = [index for index in frames if index > thing.first]
    if rule.span:
        if thing.span is None:
            raise DatasetError(
                f"{sequence.name}: object {thing.name!r} has no frame range, expected one in an LVOS meta file: choose "
                f"another convention ({', '.join(name for name, one in CONVENTIONS.items() if not one.span)})"
            )
        start, end = thing.span
        frames = [index for index in frames if start <= frame_number(sequence.frames[index]) < end]
    return frozenset(frames)

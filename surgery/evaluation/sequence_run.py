"""One sequence through one or two models: track in turn, write predictions, score, record."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from surgery.api import status
from surgery.errors import DatasetError, VideoError, about
from surgery.evaluation.dataset import Sequence
from surgery.evaluation.drift_free import STEPS, drift_free
from surgery.evaluation.scoring import FIELDS, Scorer
from surgery.evaluation.trace import Trace
from surgery.tracking import TrackedFrame, track
from surgery.video import MaskPrompt, Video, first_frames, labels_from_logits, write_label_png
from surgery.video.masks import Mask

STATED = ("windows_kept", "keys_kept", "dense_frames", "widened_frames", "restored_frames")
"""Of `Status`, what a row holds of each model."""

Found = dict[str, Any]
"""Of one sequence: see `SequenceRun.run`."""


@dataclass(frozen=True)
class Asked:
    """A sequence to run. places: folders for the predictions of each arm, or None; the rest as of `evaluate`."""

    sequence: Sequence
    places: dict[str, Path] | None
    convention: str
    tolerance: float
    max_frames: int | None = None
    drift_free: bool = False
    record: bool = False

    @property
    def frames(self) -> int:
        """How many are looked at."""
        return min(len(self.sequence.frames), self.max_frames or len(self.sequence.frames))


class SequenceRun:
    """One sequence, its objects and what is kept of it.

    arms: models by name, "dense" and "sparse".

    Raises:
        DatasetError: frames or masks that cannot be read or do not fit each other.
    """

    def __init__(self, asked: Asked, arms: dict[str, Any]) -> None:
        self.asked, self.sequence, self.arms, self.count = asked, asked.sequence, arms, asked.frames
        self.objects = self.sequence.annotated(self.count)
        self.by_id = {thing.id: thing for thing in self.objects}
        self.scorers = {arm: Scorer(self.sequence, self.objects, asked.convention, asked.tolerance) for arm in arms}
        self.ms: dict[str, list[float]] = {arm: [] for arm in arms}

    @torch.no_grad()
    def run(self, step: Callable[[], None]) -> Found:
        """Track all frames; returns `row` (as in eval.json), `not_scored` and `trace` (None unless it is recorded).

        step: called after every frame.
        """
        video, prompts = first_frames(self.sequence.video, self.count), self._prompts()
        prompted = {prompt.frame for prompt in prompts}
        names = [thing.name for thing in self.objects]
        trace = Trace(self.sequence.name, video.size, self.sequence.fps, names, self.arms.get("sparse"))
        runs = {arm: track(model, video, prompts) for arm, model in self.arms.items()}
        try:
            for index in range(self.count):
                results = self._advance(runs, index) if index >= min(prompted) else {}
                masks = {arm: self._masks(results.get(arm)) for arm in self.arms}
                self._score(index, masks)
                for arm in self.arms:
                    if self.asked.places is not None:
                        self._write(self.asked.places[arm], video.name_of(index), masks[arm])
                    if results and index not in prompted:
                        self.ms[arm].append(1000 * results[arm].seconds)
                if self.asked.record and results:
                    trace.add(index, video.name_of(index), masks, results, index in prompted)
                step()
        except VideoError as error:
            raise DatasetError(about(self.sequence.name, error)) from error
        finally:
            for one in runs.values():
                one.close()  # type: ignore[attr-defined]
        found = {**self._row(), "trace": trace.data if self.asked.record else None}
        if self.asked.drift_free:
            found["row"]["drift_free"] = self._compared(video, prompts)
        return found

    def _compared(self, video: Video, prompts: list[MaskPrompt]) -> list[dict[str, Any]]:
        """Nothing of a sequence that is too short."""
        first = prompts[0].frame
        if self.count - first <= max(STEPS):
            return []
        together = [prompt for prompt in prompts if prompt.frame == first]
        return [asdict(each) for each in drift_free(self.arms["sparse"], video, together)]

    def _prompts(self) -> list[MaskPrompt]:
        prompts = []
        for index in sorted({thing.first for thing in self.objects}):
            new = [thing for thing in self.objects if thing.first == index]
            prompts += [MaskPrompt(mask, thing.id, index) for thing, mask in self.sequence.truth(index, new)]
        return prompts

    def _advance(self, runs: dict[str, Iterator[TrackedFrame]], index: int) -> dict[str, TrackedFrame]:
        """One frame of every arm, in turn; who goes first changes with every frame."""
        results = {}
        for arm in list(runs) if index % 2 else list(runs)[::-1]:
            result = next(runs[arm], None)
            if result is None:
                raise DatasetError(
                    f"{self.sequence.name}: the video ended at frame {index}, expected {self.count} frames"
                )
            results[arm] = result
        return results

    def _masks(self, result: TrackedFrame | None) -> dict[str, Mask]:
        """Masks by object name; disjoint unless the data set's may overlap. Objects not yet prompted are absent."""
        if result is None:
            return {}
        if self.sequence.per_object:
            return {self.by_id[number].name: logits > 0 for number, logits in result.logits.items()}
        labels = labels_from_logits(result.logits)
        return {self.by_id[number].name: labels == number for number in result.logits}

    def _score(self, index: int, masks: dict[str, dict[str, Mask]]) -> None:
        nothing = np.zeros(self.sequence.size, dtype=bool)
        wanted = set().union(*(scorer.wanted(index) for scorer in self.scorers.values()))
        for thing, truth in self.sequence.truth(index, [thing for thing in self.objects if thing.name in wanted]):
            for arm, scorer in self.scorers.items():
                scorer.feed(thing.name, masks[arm].get(thing.name, nothing), truth)

    def _write(self, folder: Path, name: str, masks: dict[str, Mask]) -> None:
        labels = np.zeros(self.sequence.size, dtype=np.uint8)
        for thing in self.objects:
            mask = masks.get(thing.name, np.zeros(self.sequence.size, dtype=bool))
            if self.sequence.per_object:
                (folder / thing.name).mkdir(exist_ok=True)
                write_label_png(folder / thing.name / f"{name}.png", mask.astype(np.uint8))
            labels[mask] = thing.id
        if not self.sequence.per_object:
            write_label_png(folder / f"{name}.png", labels)

    def _row(self) -> dict[str, Any]:
        row: dict[str, Any] = {
            "sequence": self.sequence.name,
            "frames": self.count,
            "size": list(self.sequence.size),
            "objects": len(self.objects),
        }
        not_scored = []
        for arm, model in self.arms.items():
            scores, reasons = self.scorers[arm].result()
            objects = scores.pop("objects")
            state = status(model)
            row[arm] = {
                **scores,
                "ms": statistics.median(self.ms[arm]) if self.ms[arm] else None,
                "frame_ms": [round(value, 3) for value in self.ms[arm]],
                **{name: getattr(state, name) for name in STATED},
                "objects": objects,
            }
            not_scored += [
                {"sequence": self.sequence.name, "object": name, "arm": arm, "reason": reason}
                for name, reason in reasons.items()
            ]
        if len(self.arms) > 1:
            scored = row["dense"]["j"] is not None and row["sparse"]["j"] is not None
            changes = {name: row["sparse"][name] - row["dense"][name] for name in FIELDS[:3]} if scored else None
            row["difference"] = changes
        row |= {name: row.get("sparse", {}).get(name) for name in ("windows_kept", "keys_kept")}
        row["ms"] = {**{arm: row[arm]["ms"] for arm in self.arms}, "alternating": len(self.arms) > 1}
        return {"row": row, "not_scored": not_scored}

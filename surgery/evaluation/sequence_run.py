"""One sequence through one or two models: track in turn, write predictions, score, record."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from surgery.api import current_view, status
from surgery.errors import DatasetError, VideoError, about
from surgery.evaluation.dataset import Annotated, Sequence
from surgery.evaluation.scoring import FIELDS, Scorer
from surgery.evaluation.trace import Trace
from surgery.evaluation.truth import Mask
from surgery.session import SessionStats
from surgery.tracking import TrackedFrame, track
from surgery.video import MaskPrompt, Video, first_frames, labels_from_logits, open_video, write_label_png

Logits = dict[int, npt.NDArray[np.float32]]


class SequenceRun:
    """One sequence, its objects and what is kept of it.

    Args:
        sequence: to track. arms: models by name, "dense" and "sparse". convention, tolerance: see `Scorer`.
        max_frames: look at the first frames only, or None.

    Raises:
        DatasetError: frames or masks that cannot be read or do not fit each other.
    """

    def __init__(
        self, sequence: Sequence, arms: dict[str, Any], convention: str, tolerance: float, max_frames: int | None
    ) -> None:
        self.sequence, self.arms = sequence, arms
        self.count = min(len(sequence.frames), max_frames or len(sequence.frames))
        self.objects = sequence.annotated(self.count)
        self.by_id = {thing.id: thing for thing in self.objects}
        self.scorers = {arm: Scorer(sequence, self.objects, convention, tolerance) for arm in arms}
        self.ms: dict[str, list[float]] = {arm: [] for arm in arms}

    @torch.no_grad()
    def run(self, places: dict[str, Path] | None, record: bool, step: Callable[[], None]) -> dict[str, Any]:
        """Track all frames; returns `row` (as in eval.json), `not_scored` and `trace` (None unless `record`).

        Args:
            places: folder for the predictions of each arm, or None to write none. step: called after every frame.
        """
        video, prompts = self._video(), self._prompts()
        prompted = {prompt.frame for prompt in prompts}
        trace = Trace(self.sequence.name, video.size, self.sequence.fps, [thing.name for thing in self.objects])
        runs = {arm: track(model, video, prompts) for arm, model in self.arms.items()}
        try:
            for index in range(self.count):
                truth = self._truth(index)
                if index < min(prompted):
                    results: dict[str, TrackedFrame] = {}
                    kept: dict[str, float | None] = {}
                else:
                    results, kept = self._advance(runs, index)
                masks = {arm: self._masks(results.get(arm)) for arm in self.arms}
                for arm in self.arms:
                    self._score(arm, masks[arm], truth)
                    if places is not None:
                        self._write(places[arm], index, masks[arm])
                    if results and index not in prompted:
                        self.ms[arm].append(1000 * results[arm].seconds)
                if record and results:
                    ms = {arm: 1000 * result.seconds for arm, result in results.items()}
                    name = self.sequence.frames[index].stem
                    sparse = results.get("sparse")
                    trace.add(index, name, masks, ms, index in prompted, sparse.record if sparse else None, kept)
                    tokens = _tokens_kept(self.arms.get("sparse"), index - 1)
                    if tokens is not None:
                        trace.keep(index - 1, *tokens)
                step()
        except VideoError as error:
            raise DatasetError(about(self.sequence.name, error)) from error
        finally:
            for one in runs.values():
                one.close()  # type: ignore[attr-defined]
        return {**self._row(), "trace": trace.result() if record else None}

    def _video(self) -> Video:
        folder = self.sequence.frames[0].parent
        try:
            whole = open_video(folder)
        except VideoError as error:
            raise DatasetError(str(error)) from error
        if whole.size != self.sequence.size or whole.num_frames != len(self.sequence.frames):
            raise DatasetError(
                f"{folder}: read as {whole.num_frames} frames of {whole.size[0]}x{whole.size[1]}, expected "
                f"{len(self.sequence.frames)} of {self.sequence.size[0]}x{self.sequence.size[1]} (height x width, EXIF "
                "rotation not applied)"
            )
        return whole if self.count == len(self.sequence.frames) else first_frames(whole, self.count)

    def _prompts(self) -> list[MaskPrompt]:
        prompts = []
        for index in sorted({thing.first for thing in self.objects}):
            new = [thing for thing in self.objects if thing.first == index]
            prompts += [MaskPrompt(mask, thing.id, index) for thing, mask in self.sequence.truth(index, new)]
        return prompts

    def _truth(self, index: int) -> list[tuple[Annotated, Mask]]:
        wanted = set().union(*(scorer.wanted(index) for scorer in self.scorers.values()))
        return list(self.sequence.truth(index, [thing for thing in self.objects if thing.name in wanted]))

    def _advance(
        self, runs: dict[str, Iterator[TrackedFrame]], index: int
    ) -> tuple[dict[str, TrackedFrame], dict[str, float | None]]:
        """One frame of every arm, in turn; who goes first changes with every frame. And what the sparse arm kept."""
        results = {}
        before = _totals(self.arms.get("sparse"))
        for arm in list(runs) if index % 2 else list(runs)[::-1]:
            result = next(runs[arm], None)
            if result is None:
                raise DatasetError(
                    f"{self.sequence.name}: the video ended at frame {index}, expected {self.count} frames"
                )
            results[arm] = result
        after = _totals(self.arms.get("sparse"))
        kept: dict[str, float | None] = {}
        for name, (total, calls) in after[1].items():
            total, calls = total - before[1][name][0], calls - before[1][name][1]
            # Another session's totals start anew.
            kept[name] = total / calls if after[0] == before[0] and calls else None
        return results, kept

    def _masks(self, result: TrackedFrame | None) -> dict[str, Mask]:
        """Masks by object name; disjoint unless the data set's may overlap. Objects not yet prompted are absent."""
        if result is None:
            return {}
        if self.sequence.per_object:
            return {self.by_id[number].name: logits > 0 for number, logits in result.logits.items()}
        labels = labels_from_logits(result.logits)
        return {self.by_id[number].name: labels == number for number in result.logits}

    def _score(self, arm: str, masks: dict[str, Mask], truth: list[tuple[Annotated, Mask]]) -> None:
        nothing = np.zeros(self.sequence.size, dtype=bool)
        for thing, mask in truth:
            self.scorers[arm].feed(thing.name, masks.get(thing.name, nothing), mask)

    def _write(self, folder: Path, index: int, masks: dict[str, Mask]) -> None:
        stem, size = self.sequence.frames[index].stem, self.sequence.size
        if self.sequence.per_object:
            for thing in self.objects:
                place = folder / thing.name
                place.mkdir(exist_ok=True)
                mask = masks.get(thing.name, np.zeros(size, dtype=bool))
                write_label_png(place / f"{stem}.png", mask.astype(np.uint8))
            return
        labels = np.zeros(size, dtype=np.uint8)
        for thing in self.objects:
            if thing.name in masks:
                labels[masks[thing.name]] = thing.id
        write_label_png(folder / f"{stem}.png", labels)

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
                "windows_kept": state.windows_kept,
                "keys_kept": state.keys_kept,
                "dense_frames": state.dense_frames,
                "objects": objects,
            }
            not_scored += [
                {"sequence": self.sequence.name, "object": name, "arm": arm, "reason": reason}
                for name, reason in reasons.items()
            ]
        both = "dense" in row and "sparse" in row
        if both and row["dense"]["j"] is not None and row["sparse"]["j"] is not None:
            row["difference"] = {name: row["sparse"][name] - row["dense"][name] for name in FIELDS[:3]}
        elif both:
            row["difference"] = None
        sparse = row.get("sparse", {})
        row["windows_kept"], row["keys_kept"] = sparse.get("windows_kept"), sparse.get("keys_kept")
        row["ms"] = {**{arm: row[arm]["ms"] for arm in self.arms}, "alternating": len(self.arms) > 1}
        return {"row": row, "not_scored": not_scored}


def _totals(model: Any) -> tuple[int, dict[str, tuple[float, int]]]:
    """Which session the model ran last, and its totals: fractions kept, and calls of memory attention they are over."""
    view = current_view(model)
    found = view.binding.stats if view is not None else None
    known, stats = id(found), found or SessionStats()
    return known, {
        "keys_kept": (stats.keys_kept, stats.key_calls),
        "queries_kept": (stats.queries_kept, stats.query_calls),
    }


def _tokens_kept(model: Any, frame: int) -> tuple[list[int], int] | None:
    """Tokens of `frame` that the first layer of memory attention keeps, over all objects, and the side of their grid.

    A frame is measured when it is first read, one frame later. None where it was not.
    """
    view = current_view(model)
    if view is None:
        return None
    state = next((state for state in view.binding.states if state.stats is view.binding.stats), None)
    memories = state.memories.items() if state is not None else ()
    found = [memory.frames[frame][0] for (_, reverse), memory in memories if not reverse and frame in memory.frames]
    if not found:
        return None
    return sorted({token for ids in found for token in ids.tolist()}), view.image_size() // 16

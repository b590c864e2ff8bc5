"""The outcome of an evaluation: rows per sequence, their summary with intervals, and the files they are written to."""

from __future__ import annotations

import csv
import io
import json
import statistics
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from functools import cached_property
from itertools import chain
from pathlib import Path
from typing import Any

from surgery.bench.figures import speedup
from surgery.evaluation.bootstrap import mean_interval
from surgery.evaluation.drift_free import Comparison, Summary, summarise
from surgery.evaluation.scoring import FIELDS, mean_of
from surgery.evaluation.store import write_text

ARMS = ("dense", "sparse")
COLUMNS = ("level", "arm", "sequence", "object", "frames", *FIELDS, "ms", "windows_kept", "keys_kept")
_CONFIDENCE = 0.95


@dataclass(frozen=True)
class Scores:
    """What `evaluate` found.

    head: everything of eval.json that is not scores. sequences: one row each. not_scored: sequence, object,
    arm and reason. Formats: docs/evaluation.md.
    """

    head: dict[str, Any]
    sequences: list[dict[str, Any]]
    not_scored: list[dict[str, Any]]

    @property
    def arms(self) -> list[str]:
        """Which models were run: "dense", "sparse" or both."""
        return [arm for arm in ARMS if arm in self.sequences[0]]

    @cached_property
    def summary(self) -> dict[str, Any]:
        """Scores averaged over objects, ratios over sequences, and differences with their intervals."""
        both = len(self.arms) == len(ARMS)
        found: dict[str, Any] = {
            "sequences": len(self.sequences),
            "objects": sum(row["objects"] for row in self.sequences),
            "frames": sum(row["frames"] for row in self.sequences),
            "alternating": both,
        }
        for arm in self.arms:
            rows = [row[arm] for row in self.sequences]
            objects = [thing for row in rows for thing in row["objects"].values()]
            found[arm] = {
                **mean_of(objects),
                "ms": _over(statistics.median, [value for row in rows for value in row["frame_ms"]]),
                "windows_kept": _over(statistics.fmean, [row["windows_kept"] for row in rows]),
                "keys_kept": _over(statistics.fmean, [row["keys_kept"] for row in rows]),
            }
        if both:
            scored = [row["difference"] for row in self.sequences if row["difference"]]
            changes = {name: [each[name] for each in scored] for name in FIELDS[:3]}
            times = [row["ms"] for row in self.sequences if row["ms"]["dense"] is not None]
            changes["ms"] = [each["sparse"] - each["dense"] for each in times]
            found["difference"] = {name: _interval(values) for name, values in changes.items()}
            found["speedup"] = self._speedup()
        compared = [[Comparison(**each) for each in row.get("drift_free", ())] for row in self.sequences]
        if any(compared):
            found["drift_free"] = [_drift(summary, compared) for summary in summarise([*chain(*compared)])]
        return found

    def as_dict(self) -> dict[str, Any]:
        """The content of eval.json."""
        return {**self.head, "sequences": self.sequences, "summary": self.summary, "not_scored": self.not_scored}

    def csv(self) -> str:
        """The content of eval.csv."""
        text = io.StringIO()
        writer = csv.DictWriter(text, COLUMNS, restval="", extrasaction="ignore", lineterminator="\n")
        writer.writeheader()
        writer.writerows(self._rows())
        return text.getvalue()

    def write(self, out: Path) -> None:
        """Write `out`/eval.json and `out`/eval.csv, atomically. Raises DatasetError when that is not possible."""
        write_text(out / "eval.json", json.dumps(self.as_dict(), indent=1) + "\n")
        write_text(out / "eval.csv", self.csv())

    def _speedup(self) -> dict[str, Any] | None:
        """The ratio (`mean`, by an older name) over the frames of all sequences; None for fewer than two frames."""
        clips = [(row["dense"]["frame_ms"], row["sparse"]["frame_ms"]) for row in self.sequences]
        if sum(len(dense) for dense, _ in clips) < 2:
            return None
        ratio, interval = speedup(*clips)
        assert interval is not None
        return _spread(ratio, interval, len(clips))

    def _rows(self) -> Iterator[dict[str, Any]]:
        for row in self.sequences:
            for arm in self.arms:
                shared = {"arm": arm, "sequence": row["sequence"]}
                for name, thing in row[arm]["objects"].items():
                    yield {"level": "object", "object": name, **shared, **thing}
                yield {"level": "sequence", **shared, "frames": row["frames"], **row[arm]}
        summary = self.summary
        for arm in self.arms:
            yield {"level": "summary", "arm": arm, "frames": summary["frames"], **summary[arm]}


def _drift(summary: Summary, sequences: list[list[Comparison]]) -> dict[str, Any]:
    """Means after so many steps, and how much sequences differ in their masks."""
    rows = [[each.masks for each in one if each.steps == summary.steps] for one in sequences]
    return {**asdict(summary), "interval": _interval([statistics.fmean(row) for row in rows if row])}


def _over(average: Any, values: list[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return average(known) if known else None


def _interval(values: list[float]) -> dict[str, Any] | None:
    """None for fewer than two sequences: one says nothing of how much they differ."""
    interval = mean_interval(values, _CONFIDENCE) if values else None
    return None if interval is None else _spread(statistics.fmean(values), interval, len(values))


def _spread(mean: float, interval: tuple[float, float], sequences: int) -> dict[str, Any]:
    return {"mean": mean, "low": interval[0], "high": interval[1], "confidence": _CONFIDENCE, "sequences": sequences}

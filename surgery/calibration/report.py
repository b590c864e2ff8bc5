"""What a calibration found, as data and as text."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from surgery.adapters.record import CalibrationRecord
from surgery.calibration.clips import SkippedClip
from surgery.calibration.search import SearchResult, Setting
from surgery.core.promise import CalibrationSettings
from surgery.recipe import Recipe

SCHEMA = 1
_WORST = 8
_ONE_CLIP = "Measured on one held-out clip: how other clips would do is not known. Give more clips."


@dataclass
class CalibrationReport:
    """The result of `calibrate`.

    recipe: the chosen one, which the model now runs unless the promise was missed and nothing applied. kept: whether
    the promise is met. record: what an adapter carries. search: every setting, predicted and measured. skipped: clips
    of no use. explained: see `FitResult`. sensitivity: drop of every layer quantised alone, most harmful first.
    seconds: wall time by phase.
    """

    recipe: Recipe
    promise: CalibrationSettings
    kept: bool
    applied: bool
    record: CalibrationRecord
    search: SearchResult
    skipped: list[SkippedClip] = field(default_factory=list)
    explained: float | None = None
    sensitivity: dict[str, float] = field(default_factory=dict)
    seconds: dict[str, float] = field(default_factory=dict)
    model: str = ""

    def as_dict(self) -> dict[str, Any]:
        """Plain data, the content of `calibration.json`; docs/calibration.md describes every key."""
        from surgery import __version__

        return {
            "kind": "calibration",
            "schema": SCHEMA,
            "library_version": __version__,
            "model": self.model,
            "recipe": self.recipe.to_dict(),
            "promise": {"max_drop": self.promise.max_drop, "max_clip_drop": self.promise.max_clip_drop},
            "kept": self.kept,
            "applied": self.applied,
            "record": self.record.model_dump(mode="json"),
            "candidates": [self._candidate(setting) for setting in self.search.settings],
            "clips": [
                *({"name": name, "role": "fit", "drop": None} for name in self.record.fit_clips),
                *({"name": score.name, "role": "held-out", "drop": score.drop, "truth_drop": score.truth_drop}
                  for score in self.search.chosen.whole),
            ],
            "skipped": [{"name": clip.name, "reason": clip.reason} for clip in self.skipped],
            "explained": self.explained,
            "sensitivity": self.sensitivity,
            "seconds": {phase: round(seconds, 2) for phase, seconds in self.seconds.items()},
        }  # fmt: skip

    def _candidate(self, setting: Setting) -> dict[str, Any]:
        found, whole, truth = setting.from_state, setting.against_dense, setting.against_truth
        predicted = {name: setting.kept.get(name, 1.0) for name in ("windows", "keys")}
        measured = {name: setting.measured(f"{name}_kept") for name in predicted}
        return {
            "settings": setting.values,
            **{f"{name}_predicted": share for name, share in predicted.items()},
            **{f"{name}_kept": predicted[name] if share is None else share for name, share in measured.items()},
            "predicted_cost": setting.cost,
            "predicted_drop": setting.predicted_drop,
            "risk": setting.risks,
            "drop": found.drop if found is not None else None,
            "interval": list(found.interval) if found is not None and found.interval is not None else None,
            "worst_drop": found.worst_drop if found is not None else None,
            "whole_drop": whole.drop if whole is not None else None,
            "truth_drop": truth.drop if truth is not None else None,
            "run": found is not None,
            "chosen": setting is self.search.chosen,
        }  # fmt: skip

    def _refuted(self) -> list[str]:
        """Settings that kept the promise from the dense state and not over whole clips."""
        return [
            ", ".join(f"{key}={value}" for key, value in setting.values.items()) or "as in the recipe"
            for setting in self.search.settings
            if setting.against_dense is not None and setting.keeps(self.promise) and setting.refuted(self.promise)
        ]

    def as_markdown(self) -> str:
        """The report as text."""
        record = self.record
        verdict = "met" if self.kept else "**not met**" + ("" if self.applied else "; nothing was applied")
        skipped = [f"Skipped {len(self.skipped)}:", *(f"- {clip}" for clip in self.skipped)]
        worst = ", ".join(f"`{name}` {drop:.4f}" for name, drop in list(self.sensitivity.items())[:_WORST])
        seconds = ", ".join(f"{name} {value:.0f}" for name, value in self.seconds.items())
        paragraphs = [
            f"# Calibration of {self.model or 'a model'}, recipe `{self.recipe.metadata.name}`",
            self.recipe.metadata.description,
            f"Promise: mean drop at most {self.promise.max_drop:.3f}, worst clip at most "
            f"{self.promise.max_clip_drop:.3f} (1 - J&F against the dense model's own masks, a few sparse frames from "
            f"its own state): {verdict}." + "".join(f"\nWhole clips refute {words}." for words in self._refuted()),
            "\n".join(record.table()),
            _ONE_CLIP if len(record.held_out_clips) == 1 else "",
            f"Windows computed: {_percent(record.windows_kept)}. Memory keys read: {_percent(record.keys_kept)}.\n"
            f"Predicted GFLOP of encoder and memory attention: {self.search.chosen.cost:.0%} of the dense model's.",
            f"Fitted on {_listed(record.fit_clips, record.fit_frames)}\n"
            f"Held out: {_listed(record.held_out_clips, record.held_out_frames)}",
            "\n".join(skipped) if self.skipped else "",
            f"{len(self.sensitivity)} layers, each quantised alone; those that lose most: {worst}." if worst else "",
            "\n".join(self._table()),
            f"{sum(self.seconds.values()):.0f} s: {seconds}.\n",
        ]
        return "\n\n".join(filter(None, paragraphs))

    def _table(self) -> Iterator[str]:
        """Settings that were run, in markdown."""
        yield "| setting | windows | keys | cost | drop | worst | whole clips | against truth | |"
        yield "|---|---|---|---|---|---|---|---|---|"
        for row in self.as_dict()["candidates"]:
            if row["run"]:
                values = ", ".join(f"{key.split('.', 1)[1]}={value}" for key, value in row["settings"].items())
                truth = "" if row["truth_drop"] is None else f"{row['truth_drop']:+.4f}"
                whole = "" if row["whole_drop"] is None else f"{row['whole_drop']:.4f}"
                yield (
                    f"| {values or 'as in the recipe'} | {row['windows_kept']:.0%} | {row['keys_kept']:.0%} | "
                    f"{row['predicted_cost']:.0%} | {row['drop']:.4f} | {row['worst_drop']:.4f} | {whole} | {truth} | "
                    f"{'chosen' if row['chosen'] else ''} |"
                )

    def save(self, folder: str | Path) -> list[Path]:
        """Write `calibration.json` and `calibration.md` into `folder`; return their paths."""
        target = Path(folder)
        target.mkdir(parents=True, exist_ok=True)
        texts = {"calibration.json": json.dumps(self.as_dict(), indent=2) + "\n", "calibration.md": self.as_markdown()}
        for name, text in texts.items():
            (target / name).write_text(text, encoding="utf-8")
        return [target / name for name in texts]


def _listed(clips: Sequence[str], frames: int) -> str:
    return f"{len(clips)} clips, {frames} frames: {', '.join(clips) or 'none'}."


def _percent(value: float | None) -> str:
    return "all (not routed)" if value is None else f"{value:.1%}"

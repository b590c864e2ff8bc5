"""Which windows, what inner global blocks see and which memory is read, on real clips: drift-free, embedded model.

    python -m benchmarks.real_video CLIPS --rows windows     # real-windows-demo.json
    python -m benchmarks.real_video CLIPS --rows memory      # real-memory-demo.json

CLIPS holds one folder per clip with `frames/` and `masks/`. Every row runs the same weights and shortcut, those of the
adapter `demo-balanced`. Rows of `windows` keep every memory key, rows of `memory` compute every window. Only numbers
are written.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch

import surgery.demo as demo
from benchmarks.demo_adapters import ROOT, clip_of
from benchmarks.head import head
from surgery import Recipe, sparsify
from surgery.calibration import CalibrationClip, gather_clips
from surgery.core.cost import gflop
from surgery.core.parts import ENCODER
from surgery.digests import weights_digest
from surgery.engine import require_surgery
from surgery.evaluation.bootstrap import mean_interval
from surgery.evaluation.drift_free import Comparison, drift_free, summarise

ADAPTER = ROOT / "adapters" / "demo-balanced"
TUNED = ("blackswan", "car-shadow", "rollerblade")
SYNTHETIC = 600_000
"""First of the held-out seeds of the synthetic clips: used for nothing else."""
_WHOLE = {"retrieval.keep": 1.0, "retrieval.keep_conditioning": 1.0, "retrieval.unsure": None}
_BEFORE = _WHOLE | {
    "routing.fill": True, "routing.budget": 0.39, "routing.stages.globals": "packed",
    "routing.object.max_wait": None, "routing.object.background": 0.5,
}  # fmt: skip
_OBJECT = {"routing.object.max_wait": 1, "routing.object.background": 0.2}
_CACHED = {"routing.stages.globals": "cached"}
_ALL = {"routing.budget": 1.0, "routing.object.max_wait": None}
ROWS: dict[str, dict[str, dict[str, Any]]] = {
    "windows": {
        "before: most changed, packed globals, 39 %": _BEFORE,
        "object first, packed, 39 %": _BEFORE | _OBJECT,
        "most changed, cached, 39 %": _BEFORE | _CACHED,
        "object first, cached, 39 %": _BEFORE | _OBJECT | _CACHED,
        "object first, cached, 33 %": _BEFORE | _OBJECT | _CACHED | {"routing.budget": 0.33},
        "object first, cached, 26 %": _BEFORE | _OBJECT | _CACHED | {"routing.budget": 0.26},
    },
    "memory": {
        f"{saliency}, keep {keep:g}, conditioning {first:g}"
        + ("" if unsure is None else f", whole while unsure over {unsure:g}"): _ALL
        | {
            "retrieval.keep": keep, "retrieval.keep_conditioning": first, "retrieval.saliency": saliency,
            "retrieval.unsure": unsure,
        }
        for saliency, keep, first, unsure in (
            ("mean", 0.1, 0.33, None), ("object", 0.1, 0.33, None), ("mean", 0.2, 0.4, None),
            ("object", 0.2, 0.4, None), ("object", 0.1, 0.33, 0.9),
        )
    },
}  # fmt: skip


def row(label: str, values: dict[str, Any], groups: dict[str, Sequence[CalibrationClip]], host: str) -> dict[str, Any]:
    """One setting on every group of clips."""
    model = demo.load(host)
    sparsify(model, Recipe.load(ADAPTER / "recipe.yaml").with_values(values), adapter=ADAPTER)
    counted = gflop(require_surgery(model), ENCODER, {"windows": values["routing.budget"]})
    return {"row": label, "values": values, "encoder_gflop": counted} | compared(model, groups)


def compared(model: Any, groups: Mapping[str, Sequence[CalibrationClip]]) -> dict[str, Any]:
    """Drift-free figures after 1, 4 and 8 frames, by group of clips, of a model under surgery."""
    found: dict[str, Any] = {}
    for name, clips in groups.items():
        with torch.inference_mode():
            rows = [list(drift_free(model, clip.video, clip.prompts)) for clip in clips]
        found[name] = [_summed(steps, rows) for steps in range(3)]
    return found


def _summed(place: int, rows: list[list[Comparison]]) -> dict[str, Any]:
    every = summarise([each for one in rows for each in one])[place]
    clips = [summarise(one)[place] for one in rows if one]
    return {
        **asdict(every),
        "clips": len(clips),
        "masks_interval": mean_interval([each.masks for each in clips]),
        "on_object_interval": mean_interval([each.on_object or 0.0 for each in clips]),
    }


def main(arguments: list[str] | None = None) -> None:
    """Measure and write."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.real_video", description=__doc__.splitlines()[0])
    parser.add_argument("clips", type=Path)
    parser.add_argument("--rows", default="windows", choices=list(ROWS))
    parser.add_argument("--frames", type=int, default=41, help="first frames of every real clip")
    parser.add_argument("--synthetic", type=int, default=12, help="synthetic clips of 25 frames")
    parser.add_argument("--host", default="transformers", choices=["sam2", "transformers"])
    parser.add_argument("--out", type=Path, help="default: benchmarks/results/real-ROWS-demo.json")
    given = parser.parse_args(arguments)
    torch.set_num_threads(1)
    real, skipped = gather_clips([given.clips], given.frames)
    groups: dict[str, Sequence[CalibrationClip]] = {
        "real, tuned on": [clip for clip in real if clip.name in TUNED],
        "real, shown": [clip for clip in real if clip.name not in TUNED],
        "synthetic": [clip_of(SYNTHETIC + number, 25) for number in range(given.synthetic)],
    }
    rows = []
    for label, values in ROWS[given.rows].items():
        rows.append(row(label, values, {name: clips for name, clips in groups.items() if clips}, given.host))
        print(label, {name: rows[-1][name][2]["masks"] for name in groups if name in rows[-1]}, flush=True)
    result = {
        **head("real video", "real_video", arguments),
        "weights": weights_digest(demo.load(given.host).state_dict()),
        "clips": {name: [clip.name for clip in clips] for name, clips in groups.items()},
        "skipped": [str(clip) for clip in skipped],
        "rows": rows,
    }
    out = given.out or ROOT / "benchmarks" / "results" / f"real-{given.rows}-demo.json"
    out.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()

"""Does drift-free fidelity rank settings as J&F does? Embedded model, synthetic clips.

    python -m benchmarks.agreement                   # agreement-demo.json

Settings from next to nothing lost to a lot, of windows, of memory and of both. Each runs the same clips twice: 8 frames
from the dense model's own state at a time, and whole. Then rank correlations (Spearman) over the settings, with
intervals from drawing clips anew.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import numpy as np
import torch

import surgery.demo as demo
from benchmarks.demo_adapters import ROOT, clip_of
from benchmarks.head import head
from surgery import Recipe, sparsify
from surgery.calibration.fidelity import Reference, drift_of, reference_of, score_clip
from surgery.digests import weights_digest

ADAPTER = ROOT / "adapters" / "demo-balanced"
FIRST = 650_000
"""First of the held-out seeds of the clips: used for nothing else."""
SETTINGS: tuple[dict[str, Any], ...] = tuple(
    {"routing.budget": budget, "retrieval.keep": keep, "retrieval.keep_conditioning": first, "retrieval.unsure": unsure}
    for budget, keep, first, unsure in (
        (0.8, 1.0, 1.0, None), (0.5, 1.0, 1.0, None), (0.33, 1.0, 1.0, None), (0.2, 1.0, 1.0, None),
        (0.125, 1.0, 1.0, None), (1.0, 0.3, 1.0, None), (1.0, 0.1, 0.4, None), (1.0, 0.03, 0.1, None),
        (1.0, 0.1, 0.4, 0.7), (0.33, 0.1, 0.4, 0.7), (0.5, 0.3, 1.0, 0.5), (0.2, 0.05, 0.3, None),
    )
)  # fmt: skip

MEASURES = ("from_state", "dense_masks", "truth")


def ranks(values: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    """Mean ranks along the first axis, ties shared: [n] -> [n]."""
    return np.asarray([(values < each).sum() + ((values == each).sum() - 1) / 2 for each in values])


def correlation(left: np.ndarray[Any, Any], right: np.ndarray[Any, Any]) -> float:
    """Spearman's, of two [n]."""
    return float(np.corrcoef(ranks(left), ranks(right))[0, 1])


def correlated(left: np.ndarray[Any, Any], right: np.ndarray[Any, Any], draws: int = 2000) -> dict[str, Any]:
    """Correlation of mean losses over clips, [settings, clips] each, with a 95 % interval over clips."""
    draw, clips = np.random.default_rng(0), left.shape[1]
    chosen = [draw.integers(0, clips, clips) for _ in range(draws)]
    found = [correlation(left[:, each].mean(1), right[:, each].mean(1)) for each in chosen]
    low, high = np.nanquantile(found, [0.025, 0.975])
    return {"spearman": correlation(left.mean(1), right.mean(1)), "interval": [float(low), float(high)]}


def main(arguments: list[str] | None = None) -> None:
    """Measure and write."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.agreement", description=__doc__.splitlines()[0])
    parser.add_argument("--clips", type=int, default=16, help="synthetic clips of 25 frames, medium difficulty")
    parser.add_argument("--host", default="sam2", choices=["sam2", "transformers"])
    parser.add_argument("--out", type=Path, default=ROOT / "benchmarks" / "results" / "agreement-demo.json")
    given = parser.parse_args(arguments)
    torch.set_num_threads(1)
    model = demo.load(given.host)
    recipe = Recipe.load(ADAPTER / "recipe.yaml")
    digest = weights_digest(model.state_dict())
    sparsify(model, recipe, adapter=ADAPTER, progress=False)
    references: list[Reference] = [reference_of(model, clip_of(FIRST + number, 25)) for number in range(given.clips)]
    rows = []
    for values in SETTINGS:
        sparsify(model, recipe.with_values(values), adapter=ADAPTER, progress=False)
        whole = [score_clip(model, each) for each in references]
        found = {
            "from_state": [drift_of(model, each.clip).drop for each in references],
            "dense_masks": [each.drop for each in whole],
            "truth": [each.truth_drop for each in whole],
        }
        rows.append({"values": values, **found})
        print(values, {name: round(float(np.mean(np.asarray(found[name]))), 4) for name in MEASURES}, flush=True)
    table = {name: np.asarray([each[name] for each in rows], dtype=float) for name in MEASURES}
    result = {
        **head("agreement of measures", "agreement", arguments),
        "weights": digest,
        "clips": [each.clip.name for each in references],
        "rows": rows,
        "spearman": {
            "drift-free and dense masks": correlated(table["from_state"], table["dense_masks"]),
            "drift-free and ground truth": correlated(table["from_state"], table["truth"]),
            "dense masks and ground truth": correlated(table["dense_masks"], table["truth"]),
        },
    }
    print(json.dumps(result["spearman"], indent=1))
    given.out.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()

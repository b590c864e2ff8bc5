"""What global layers should see on SAM 3, and its `balanced` beside SAM 2's: drift-free, the two miniatures.

    python -m benchmarks.sam3_quality --rows globals --real CLIPS      # sam3-globals.json
    python -m benchmarks.sam3_quality --rows balanced --real CLIPS     # sam3-balanced.json

Rows of `globals` keep every memory key and have a shortcut fitted for them, so that they differ in window routing
alone. Rows of `balanced` are the calibrated adapters. CLIPS holds one folder per real clip with `frames/` and `masks/`;
only numbers are written.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch

from benchmarks.demo_adapters import FIRST, clip_of
from benchmarks.head import head
from benchmarks.miniatures import MINIATURES, ROOT
from benchmarks.real_video import compared
from surgery import Recipe, load_adapter, sparsify
from surgery.calibration import CalibrationClip, fit_shortcut, gather_clips
from surgery.core.cost import gflop
from surgery.core.parts import ENCODER
from surgery.digests import weights_digest
from surgery.engine import require_surgery

SYNTHETIC = 610_000
"""First of the held-out seeds of the synthetic clips: used for nothing else."""
KINDS = ("packed", "cached", "dense")
BUDGETS = {"2 of 9": 0.22, "3 of 9": 0.33, "4 of 9": 0.44}
_WHOLE = {"retrieval.keep": 1.0, "retrieval.keep_conditioning": 1.0, "retrieval.unsure": None}


def of_globals(kind: str, budget: float, fit: Sequence[CalibrationClip]) -> Any:
    """The SAM 3 miniature under window routing alone, its shortcut fitted where it has one."""
    values = _WHOLE | {"routing.budget": budget, "routing.stages.globals": kind, "routing.object.unsure": None}
    model = MINIATURES["sam3"].load("")
    sparsify(model, Recipe.load("balanced").with_values(values))
    if kind != "dense":  # which has none
        fit_shortcut(model, fit)
    return model


def models(rows: str, fit: Sequence[CalibrationClip], budgets: Sequence[str]) -> Iterator[tuple[dict[str, Any], Any]]:
    """The label of every row, and its model under surgery."""
    if rows == "balanced":
        for name, miniature in MINIATURES.items():
            model = miniature.load(miniature.hosts[-1])
            load_adapter(model, miniature.adapter("balanced"))
            yield {"row": name}, model
        return
    for budget in budgets:
        for kind in KINDS:
            model = of_globals(kind, BUDGETS[budget], fit)
            counted = gflop(require_surgery(model), ENCODER, {"windows": int(budget[0]) / 9})
            yield {"row": f"{kind}, {budget}", "encoder_gflop": counted}, model


def main(arguments: list[str] | None = None) -> None:
    """Measure and write."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.sam3_quality", description=__doc__.splitlines()[0])
    parser.add_argument("--rows", default="globals", choices=["globals", "balanced"])
    parser.add_argument("--real", type=Path, help="folder of real clips")
    parser.add_argument("--frames", type=int, default=41, help="first frames of every real clip")
    parser.add_argument("--synthetic", type=int, default=12, help="synthetic clips of 25 frames")
    parser.add_argument("--fit", type=int, default=4, help="synthetic clips that shortcuts are fitted on")
    parser.add_argument("--budgets", nargs="+", default=list(BUDGETS), choices=list(BUDGETS))
    parser.add_argument("--out", type=Path, help="default: benchmarks/results/sam3-ROWS.json")
    given = parser.parse_args(arguments)
    torch.set_num_threads(1)
    groups: dict[str, Sequence[CalibrationClip]] = {}
    if given.real is not None:
        groups["real"] = gather_clips([given.real], given.frames)[0]
    if given.synthetic:
        groups["synthetic"] = [clip_of(SYNTHETIC + number, 25) for number in range(given.synthetic)]
    fit = [clip_of(FIRST + number) for number in range(given.fit)]
    rows = []
    for label, model in models(given.rows, fit, given.budgets):
        rows.append({**label, **compared(model, groups)})
        print(label["row"], {name: rows[-1][name][1] for name in groups}, flush=True)
    result = {
        **head("quality of the SAM 3 miniature", "sam3_quality", arguments),
        "weights": {name: weights_digest(each.load(each.hosts[-1]).state_dict()) for name, each in MINIATURES.items()},
        "clips": {name: [clip.name for clip in clips] for name, clips in groups.items()},
        "rows": rows,
    }
    out = given.out or ROOT / "benchmarks" / "results" / f"sam3-{given.rows}.json"
    out.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()

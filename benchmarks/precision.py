"""What half precision costs in quality, on the demo model: `python -m benchmarks.precision --clips 20`.

Every row runs the same held-out synthetic clips, prompted by masks on the first frame; J&F against ground truth. The
drop is against the stock model in fp32. For times see `surgery bench`.
"""

from __future__ import annotations

import argparse
import copy
import json
import platform
import time
from pathlib import Path
from typing import Any

import torch

import surgery.demo as demo
from benchmarks.parts import score
from surgery import Recipe, __version__, sparsify
from surgery.demo.clips import HELD_OUT, make_clip
from surgery.demo.show import calibrated
from surgery.evaluation.bootstrap import mean_interval
from surgery.operations import Precision
from surgery.recipe import Metadata

ROWS: dict[str, tuple[str | None, Precision | None]] = {
    "bf16 by autocast": (None, Precision()),
    "bf16 by weights": (None, Precision(cast="weights")),
    "bf16 by autocast, mask decoder fp32": (None, Precision(keep_fp32=("mask_decoder",))),
    "balanced": ("balanced", None),
    "balanced, bf16 by autocast": ("balanced", Precision()),
    "balanced, bf16 by autocast, mask decoder fp32": ("balanced", Precision(keep_fp32=("mask_decoder",))),
    "fp16 by autocast": (None, Precision(dtype="fp16")),
    "fp16 by weights": (None, Precision(dtype="fp16", cast="weights")),
}
"""Recipe with its shipped adapter, or none, and precision."""


def main() -> None:
    """Run the rows and write the JSON after each."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--clips", type=int, default=20)
    parser.add_argument("--host", default="sam2", choices=["sam2", "transformers"])
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results" / "precision-demo.json")
    options = parser.parse_args()
    torch.set_num_threads(1)
    clips = [make_clip(HELD_OUT + number, 24, difficulty="medium") for number in range(options.clips)]
    stock = demo.load(options.host)
    base, base_clips, _ = score(stock, clips)
    print(f"stock fp32 J&F {base.j_and_f():.4f}", flush=True)
    rows: list[dict[str, Any]] = []
    for name, (recipe, precision) in ROWS.items():
        chosen, adapter = calibrated(recipe) if recipe is not None else (None, None)
        operations = (
            *(chosen.operations if chosen is not None else ()),
            *((precision,) if precision is not None else ()),
        )
        made = Recipe(metadata=Metadata(name="precision", description=name), operations=operations)
        found, per_clip, _ = score(sparsify(copy.deepcopy(stock), made, adapter=adapter), clips)
        drops = [a - b for a, b in zip(base_clips, per_clip, strict=True)]
        rows.append({
            "name": name, "j_and_f": found.j_and_f(), "drop": base.j_and_f() - found.j_and_f(),
            "interval_of_mean_clip_drop": mean_interval(drops), "worst_clip_drop": max(drops),
        })  # fmt: skip
        print(f"{name:48} drop {rows[-1]['drop']:+.4f} worst clip {max(drops):+.4f}", flush=True)
        result = {
            "kind": "precision", "schema": 1,
            "command": f"python -m benchmarks.precision --clips {options.clips} --host {options.host}",
            "date": time.strftime("%Y-%m-%d"), "machine": f"{platform.platform()}, {platform.machine()}",
            "versions": {"surgery": __version__, "torch": torch.__version__}, "clips": options.clips, "frames": 24,
            "difficulty": "medium", "stock_j_and_f": base.j_and_f(), "rows": rows,
        }  # fmt: skip
        options.out.write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()

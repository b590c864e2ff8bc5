"""What each operation beyond the published method saves in time, one after another: the rows of `curve.py --beyond`.

    python -m benchmarks.beyond_times --model base-plus --threads 1

All rows and the stock model track the same clip in one process, frame by frame in rotating order; processor time.
"""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path
from typing import Any

import torch

from benchmarks.arms import Arms, model_spec
from benchmarks.curve import beyond
from surgery.bench import Settings
from surgery.bench.machine import machine
from surgery.loading import load_model


def main() -> None:
    """Measure and write the JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="base-plus")
    parser.add_argument("--host", default="sam2")
    parser.add_argument("--share", type=float, default=0.25)
    parser.add_argument("--frames", type=int, default=3)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--out", type=Path, default=None)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    recipes = beyond()
    settings = Settings(frames=options.frames, warm=8, module_frames=0, clock="processor")
    model = load_model(model_spec(options.model), options.host, "cpu")
    arms = Arms(model, list(recipes.values()), settings, step=lambda: print(end="."))
    found: list[dict[str, Any]] = []
    arms.run([options.share], lambda _, rows: found.extend(rows))
    rows = [{"name": name, **row, "model": options.model} for name, row in zip(recipes, found, strict=True)]
    document = {
        "kind": "beyond-times",
        "schema": 1,
        "command": f"python -m benchmarks.beyond_times --model {options.model} --host {options.host} "
        f"--frames {options.frames} --threads {options.threads}",
        "date": time.strftime("%Y-%m-%d"),
        "machine": machine(torch.device("cpu")),
        "rows": rows,
    }
    out = options.out or Path(__file__).parent / "results" / f"beyond-times-{options.model}-cpu.json"
    out.write_text(json.dumps(document, indent=1) + "\n", encoding="utf-8")
    for row in rows:
        print(f"{row['whole_frame_speedup']:.2f}x {row['interval']} FLOPs {row['predicted']:.2f}x  {row['name']}")


if __name__ == "__main__":
    main()

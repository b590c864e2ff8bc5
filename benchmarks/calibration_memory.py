"""Peak memory of a calibration against the length of its clips: `python -m benchmarks.calibration_memory`.

Each length is calibrated in a process of its own on two clips written to disk; the stock model tracking the same clips
in another says how much of the growth is the host's own (it keeps every frame's output).
"""

from __future__ import annotations

import argparse
import json
import platform
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import torch

from surgery import __version__
from surgery.demo.clips import HELD_OUT, make_clip, write_davis

_CHILD = """
import resource, sys, torch
torch.set_num_threads(1)
import surgery.cli, surgery.demo as demo
from surgery import Recipe, calibrate
from surgery.calibration import gather_clips
from surgery.tracking import track
what, folder = sys.argv[1:]
model = demo.load("transformers")
if what == "stock":
    for clip in gather_clips([folder])[0]:
        for _ in track(model, clip.video, clip.prompts):
            pass
else:
    data = Recipe.load("fast").to_dict()
    data["calibration"] = {"max_drop": 1.0, "max_clip_drop": 1.0, "search": {"routing.budget": [0.19, 0.25]}}
    calibrate(model, [folder], Recipe.from_dict(data), runs=1, progress=False)
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / (1 if sys.platform != "darwin" else 1024) / 1024)
"""


def main() -> None:
    """Measure and write the JSON."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--frames", type=int, nargs="+", default=[24, 240])
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results" / "calibration-memory.json")
    options = parser.parse_args()
    rows = []
    for frames in options.frames:
        with tempfile.TemporaryDirectory() as folder:
            seeds = (HELD_OUT + 210_000, HELD_OUT + 210_001)
            clips = [make_clip(seed, frames, difficulty="easy", objects=1) for seed in seeds]
            write_davis(clips, Path(folder))
            del clips
            row = {"frames": frames}
            for what in ("stock", "calibrate"):
                done = subprocess.run(
                    [sys.executable, "-c", _CHILD, what, folder], capture_output=True, text=True, check=True
                )
                row[f"{what}_peak_mb"] = round(float(done.stdout.split()[-1]))
            rows.append(row)
            print(row, flush=True)
    result = {
        "kind": "calibration-memory", "schema": 1, "command": "python -m benchmarks.calibration_memory",
        "date": time.strftime("%Y-%m-%d"), "machine": f"{platform.platform()}, CPU, one thread",
        "versions": {"surgery": __version__, "torch": torch.__version__}, "host": "transformers, streaming",
        "rows": rows,
    }  # fmt: skip
    options.out.write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()

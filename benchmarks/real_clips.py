"""J&F of demo weights on real clips, dense, mask prompts: `python -m benchmarks.real_clips CLIPS --weights FILE`.

CLIPS holds one folder per clip with `frames/` and `masks/`, as `surgery eval --dataset folder` takes it. Only numbers
are written.
"""

from __future__ import annotations

import argparse
import json
import shlex
import sys
from pathlib import Path
from typing import Any

import torch

from surgery.demo.model import WEIGHTS, load
from surgery.evaluation.run import evaluate


def real_clips(model: Any, folder: Path, name: str | None = None, command: str | None = None) -> dict[str, Any]:
    """Return the scores of a model on a folder of clips, as `eval.json` holds them."""
    return evaluate(model, "folder", folder, name=name, command=command).as_dict()


def main(arguments: list[str] | None = None) -> None:
    """Score, print a line per clip, write the JSON."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.real_clips", description=__doc__.splitlines()[0])
    parser.add_argument("clips", type=Path)
    parser.add_argument("--weights", type=Path, default=WEIGHTS, help="safetensors with stock key names")
    parser.add_argument("--host", default="sam2", choices=["sam2", "transformers"])
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results" / "real-clips-demo.json")
    given = parser.parse_args(arguments)
    torch.set_num_threads(1)
    words = sys.argv[1:] if arguments is None else arguments
    command = f"python -m benchmarks.real_clips {shlex.join(words)}"
    result = real_clips(load(given.host, weights=given.weights), given.clips, given.weights.name, command)
    given.out.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    print(json.dumps(result["summary"], indent=1))


if __name__ == "__main__":
    main()

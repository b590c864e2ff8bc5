"""Many objects: stock sam2 against a recipe, both continuing the same video with full memory banks.

    python -m benchmarks.objects --model base-plus --objects 16 --threads 1

The bank is filled once, by the sparse model, and the session copied for the stock model: speed does not depend on what
the memory holds. Then both track the same frames in turn. Random weights, fp32; a quarter of the windows is forced.
"""

from __future__ import annotations

import argparse
import copy
import json
import time
from pathlib import Path
from typing import Any

import torch

from benchmarks.arms import model_spec
from surgery import Recipe, sparsify, status
from surgery.bench.clip import LoopingClip
from surgery.bench.clock import Clock
from surgery.bench.figures import latency, speedup
from surgery.bench.machine import machine
from surgery.bench.modules import fixed_windows
from surgery.bench.pair import twin
from surgery.core.cost import CostModel
from surgery.core.parts import ATTENTION, ENCODER
from surgery.core.surgery import Surgery
from surgery.engine import require_surgery
from surgery.hosts.sam2.driver import frames_instead_of_files, without_bar
from surgery.loading import load_model

BANK = 7
"""Frames after which the memory bank of seven is full."""


def main() -> None:
    """Measure and write the JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="base-plus")
    parser.add_argument("--objects", type=int, default=16)
    parser.add_argument("--frames", type=int, default=3)
    parser.add_argument("--recipe", default="balanced")
    parser.add_argument("--override", action="append", default=[])
    parser.add_argument("--share", type=float, default=0.25)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--out", type=Path, default=None)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    place = torch.device("cpu")
    stock = load_model(model_spec(options.model), "sam2", "cpu")
    recipe = Recipe.load(options.recipe, options.override)
    sparse: Any = sparsify(twin(stock), recipe)
    surgery = require_surgery(sparse)
    side = surgery.host.image_size()
    clip = LoopingClip(side, BANK + options.frames + 2, options.objects, place)
    clock = Clock(place, processor=True)
    times: tuple[list[float], list[float]] = ([], [])
    with torch.inference_mode(), without_bar(), fixed_windows(surgery, options.share):
        with frames_instead_of_files(clip, (side, side)):
            state = sparse.init_state("memory")
        for obj_id, mask in clip.masks.items():
            sparse.add_new_mask(state, 0, obj_id, torch.from_numpy(mask))
        for index, *_ in sparse.propagate_in_video(state, 0, BANK - 1):
            print(f"bank: frame {index}", flush=True)
        other = copy.deepcopy({key: value for key, value in state.items() if key != "surgery"})
        first = BANK
        runs = [
            model.propagate_in_video(session, first, options.frames)
            for model, session in ((stock, other), (sparse, state))
        ]
        for number in range(options.frames + 1):
            for which in (0, 1) if number % 2 else (1, 0):
                _, ms = clock.timed(lambda run=runs[which]: (next(run)[2] > 0).cpu())  # type: ignore[misc]
                if number:  # the first frame of a new pass is not like the others
                    times[which].append(ms)
                print(("stock", "sparse")[which], round(ms), flush=True)
    ratio, interval = speedup((times[0], times[1]))
    document = {
        "command": f"python -m benchmarks.objects --model {options.model} --objects {options.objects} "
        f"--recipe {options.recipe} {' '.join(f'--override {each}' for each in options.override)} "
        f"--frames {options.frames} --threads {options.threads}",
        "date": time.strftime("%Y-%m-%d"),
        "machine": machine(place),
        "rows": [
            row(options, recipe, ratio, interval, times, status(sparse).keys_kept, predicted(surgery, options)),
        ],
    }
    out = options.out or Path(__file__).parent / "results" / f"objects-{options.model}-cpu.json"
    out.write_text(json.dumps(document, indent=1) + "\n", encoding="utf-8")
    print(f"{ratio:.2f}x {interval}; {out}")


def row(
    options: argparse.Namespace, recipe: Recipe, ratio: float, interval: tuple[float, float] | None,
    times: tuple[list[float], list[float]], keys: float | None, counted: float,
) -> dict[str, Any]:  # fmt: skip
    """One row, with the fields of the speed matrix."""
    return {
        "model": options.model, "host": "sam2", "device": "cpu", "precision": "fp32", "objects": options.objects,
        "recipe": recipe.to_dict(), "windows_share": options.share, "keys_read": keys, "clock": "processor",
        "whole_frame_speedup": ratio, "interval": list(interval or ()),
        "predicted_encoder_and_memory_attention": counted,
        "dense": latency(times[0]), "sparse": latency(times[1]),
    }  # fmt: skip


def predicted(surgery: Surgery, options: argparse.Namespace) -> float:
    """Ratio of counted operations of encoder and memory attention, every object with its own memory attention."""
    costs = CostModel(surgery)
    dense, sparse = costs.stock, costs.parts({"windows": options.share})
    whole, ours = (each[ENCODER] + options.objects * each[ATTENTION] for each in (dense, sparse))
    return whole / ours


if __name__ == "__main__":
    main()

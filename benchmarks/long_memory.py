"""Memory over a long stream of several objects, stock, sparse, and sparse with trimmed caches.

Run as `python -m benchmarks.long_memory`. Each case is a process of its own, so that none takes what another freed. Two
figures are sampled: the resident set, and the bytes of every tensor storage the session holds, each storage once. On
transformers frames are streamed, on stock sam2 they come from a sequence that keeps a dozen.
"""

from __future__ import annotations

import argparse
import gc
import json
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch

import surgery.demo.model as architecture
from benchmarks.arms import give_back
from benchmarks.work import held_bytes
from surgery import Recipe, sparsify
from surgery.bench.clip import LoopingClip
from surgery.bench.machine import machine
from surgery.hosts.sam2.driver import frames_instead_of_files, without_bar
from surgery.hosts.transformers.driver import new_processor, new_session

CPU = torch.device("cpu")
HOSTS = ("sam2", "transformers")
VARIANTS = ("stock", "sparse", "trimmed")
MB = 1024 * 1024


def resident_mb() -> float:
    """Resident set of this process in MB (Linux)."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("VmRSS:")) / 1024


def main() -> None:
    """Run every case and write the JSON, after each case anew."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--frames", type=int, default=2000)
    parser.add_argument("--objects", type=int, default=3)
    parser.add_argument("--side", type=int, default=128, help="pixels; the demo model's weights fit any multiple of 64")
    parser.add_argument("--every", type=int, default=20, help="frames between two samples")
    parser.add_argument("--recipe", default="balanced")
    parser.add_argument("--kept", type=int, default=16, help="caches.frames of the trimmed runs")
    parser.add_argument("--case", nargs=2, metavar=("HOST", "VARIANT"), help="run one case here and print its samples")
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results" / "long-memory-demo.json")
    options = parser.parse_args()
    if options.case:
        host, variant = options.case
        print(json.dumps(run(host, variant, options)))
        return
    rows: list[dict[str, Any]] = []
    given = [f"--{name}={getattr(options, name)}" for name in ("frames", "objects", "side", "every", "recipe", "kept")]
    torch.set_num_threads(1)
    for host in HOSTS:
        for variant in VARIANTS:
            done = subprocess.run(
                [sys.executable, "-m", "benchmarks.long_memory", *given, "--case", host, variant],
                stdout=subprocess.PIPE, check=True, text=True,
            )  # fmt: skip
            rows.append(json.loads(done.stdout.splitlines()[-1]))
            options.out.write_text(json.dumps(document(rows, given, options.side), indent=1) + "\n")
            shown = {name: rows[-1][name] for name in ("host", "variant", "resident_growth_mb", "held_growth_mb")}
            print(json.dumps(shown), flush=True)


def document(rows: list[dict[str, Any]], given: list[str], side: int) -> dict[str, Any]:
    """What is written."""
    return {
        "kind": "long-memory",
        "schema": 1,
        "command": " ".join(["python -m benchmarks.long_memory", *given]),
        "date": time.strftime("%Y-%m-%d"),
        "machine": machine(CPU),
        "model": f"embedded demo model built for {side} px, fp32",
        "growth": "from frame 200 (or a tenth of the frames, if fewer than 2,000) to the last",
        "rows": rows,
    }


def run(host: str, variant: str, options: argparse.Namespace) -> dict[str, Any]:
    """Track one case; samples of resident MB above the start and of MB held by the session, by frame."""
    torch.set_num_threads(1)
    architecture.IMAGE_SIZE = side = options.side
    model = architecture.load(host)
    if variant != "stock":
        data = Recipe.load(options.recipe).to_dict()
        if variant == "trimmed":
            caches = {"type": "trim_caches", "frames": options.kept, "images": host == "transformers"}
            data["operations"] = [*data["operations"], caches]
        sparsify(model, Recipe.from_dict(data))
    clip = LoopingClip(side, options.frames, options.objects, CPU)
    gc.collect()
    give_back(CPU)
    start, began = resident_mb(), time.perf_counter()
    frames, resident, held = [], [], []
    for frame, session in (stock if host == "sam2" else streamed)(model, clip):
        if frame % options.every == 0 or frame == options.frames - 1:
            give_back(CPU)
            frames.append(frame)
            resident.append(round(resident_mb() - start, 2))
            held.append(round(held_bytes(session) / MB, 3))
    early = min(200, options.frames // 10)
    first = next(place for place, frame in enumerate(frames) if frame >= early)
    return {
        "host": host, "variant": variant, "frames": options.frames, "objects": options.objects,
        "seconds": round(time.perf_counter() - began, 1),
        "resident_growth_mb": round(resident[-1] - resident[first], 2),
        "held_growth_mb": round(held[-1] - held[first], 3),
        "frame": frames, "resident_mb": resident, "held_mb": held,
    }  # fmt: skip


def stock(model: Any, clip: LoopingClip) -> Iterator[tuple[int, Any]]:
    """Every frame, with the session."""
    side = clip[0].shape[-1]
    with frames_instead_of_files(clip, (side, side)):
        session = model.init_state("memory")
    for number, mask in clip.masks.items():
        model.add_new_mask(session, 0, number, torch.from_numpy(mask))
    with without_bar():
        for frame, _, _ in model.propagate_in_video(session, 0, len(clip)):
            yield frame, session


def streamed(model: Any, clip: LoopingClip) -> Iterator[tuple[int, Any]]:
    """Every frame, with the session, each frame a tensor of its own as a camera would give it."""
    side = clip[0].shape[-1]
    session = new_session((side, side), CPU, torch.float32)
    new_processor(side).add_inputs_to_inference_session(
        session, frame_idx=0, obj_ids=list(clip.masks), original_size=(side, side),
        input_masks=[torch.from_numpy(mask) for mask in clip.masks.values()],
    )  # fmt: skip
    for frame in range(len(clip)):
        model(session, frame=clip[frame][None].clone())
        yield frame, session


if __name__ == "__main__":
    main()

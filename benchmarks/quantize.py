"""What int8 layers gain in time and cost in quality.

    python -m benchmarks.quantize speed --model base-plus
    python -m benchmarks.quantize quality --clips 100
    python -m benchmarks.quantize layers

`speed`: whole frames of stock, int8 alone, `turbo`, `turbo` with a bf16 encoder and `cpu`, alternating in one process.
`quality`: the embedded model on held-out synthetic clips, each clip by all models in turn; J&F against ground truth.
`layers`: single layers of SAM 2.1 large in fp32, bf16 and by every int8 backend that is here, alternating.
"""

from __future__ import annotations

import argparse
import copy
import json
import shlex
import statistics
import sys
import time
import warnings
from collections.abc import Callable, Sequence
from contextlib import suppress
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

import surgery.demo as demo
from benchmarks.arms import Arms, model_spec
from benchmarks.parts import score
from surgery import Recipe, sparsify
from surgery.bench import Settings, figures
from surgery.bench.machine import machine
from surgery.demo.clips import HELD_OUT, make_clip
from surgery.demo.show import calibrated
from surgery.errors import MissingLibraryError
from surgery.evaluation.bootstrap import mean_interval
from surgery.hosts import builders
from surgery.loading import load_model
from surgery.operations import Precision, Quantize
from surgery.operations.quantize import backends
from surgery.recipe import Metadata

RESULTS = Path(__file__).parent / "results"
HALF = Precision(keep_fp32=("memory_attention", "memory_encoder", "mask_decoder"))
LAYERS = (
    (4096, 144, 576), (4096, 576, 144), (2048, 288, 1152), (1024, 576, 1728), (1024, 576, 2304), (1024, 2304, 576),
    (512, 1152, 4608), (1024, 256, 2048), (1024, 2048, 256),
)  # fmt: skip
"""Tokens, channels in and out: of the stages of the encoder, a part of their tokens, and of memory attention."""


def alone(operation: Any) -> Recipe:
    """A recipe of one operation."""
    return Recipe(metadata=Metadata(name=operation.type, description="One operation."), operations=(operation,))


def speed(options: argparse.Namespace) -> dict[str, Any]:
    """A row for each recipe against stock, and `cpu` against `turbo`."""
    turbo = Recipe.load("turbo")
    recipes = {
        "int8 encoder": alone(Quantize()), "turbo": turbo, "turbo, bf16 encoder": turbo.with_operation(HALF),
        "cpu": Recipe.load("cpu"),
    }  # fmt: skip
    if options.arms:
        recipes = {name: recipes[name] for name in options.arms}
    settings = Settings(frames=options.frames, warm=options.warm, module_frames=1, objects=1, clock="processor")
    model = load_model(model_spec(options.model), options.host, "cpu")
    arms = Arms(model, list(recipes.values()), settings, step=lambda: print(end=".", flush=True))
    found: list[dict[str, Any]] = []
    arms.run([options.share], lambda _, rows: found.extend(rows))
    print()
    rows = [{"name": name, **row, "model": options.model} for name, row in zip(recipes, found, strict=True)]
    series = {row["name"]: row["latency"][1]["ms"] for row in rows}
    pairs = []
    for one, other in (("turbo", "cpu"), ("turbo", "turbo, bf16 encoder"), ("turbo, bf16 encoder", "cpu")):
        if one in series and other in series:
            ratio, interval = figures.speedup((series[one], series[other]))
            pairs.append({"name": f"{one} / {other}", "whole_frame_speedup": ratio, "interval": list(interval or ())})
    for row in (*rows, *pairs):
        print(f"{row['whole_frame_speedup']:.3f}x {row['interval']} {row['name']}")
    return {"rows": rows, "pairs": pairs, "weights": "random"}


def quality(options: argparse.Namespace, save: Callable[[dict[str, Any]], None]) -> dict[str, Any]:
    """J&F of every clip by every model, and what quantising changes, with an interval over clips."""
    stock = demo.load(options.host)
    balanced, adapter = calibrated("balanced")
    arms = {
        "stock": stock,
        "int8 encoder": sparsify(copy.deepcopy(stock), alone(Quantize())),
        "int8 encoder and memory attention": sparsify(
            copy.deepcopy(stock), alone(Quantize(parts=("encoder", "memory_attention")))
        ),
        "balanced": sparsify(copy.deepcopy(stock), balanced, adapter=adapter),
        "balanced, int8 encoder": sparsify(copy.deepcopy(stock), balanced.with_operation(Quantize()), adapter=adapter),
    }
    pairs = (("stock", "int8 encoder"), ("stock", "int8 encoder and memory attention"),
             ("balanced", "balanced, int8 encoder"))  # fmt: skip
    found: dict[str, list[float]] = {name: [] for name in arms}
    result: dict[str, Any] = {}
    for number in range(options.clips):
        clip = make_clip(HELD_OUT + number, 24, difficulty="medium")
        for name, model in arms.items():
            found[name] += score(model, [clip])[1]
        changes = []
        for one, other in pairs:
            each = [b - a for a, b in zip(found[one], found[other], strict=True)]
            changes.append({
                "name": f"{other} - {one}", "mean": statistics.fmean(each), "interval": mean_interval(each),
                "mean_of_absolute": statistics.fmean(map(abs, each)), "worst": min(each), "best": max(each),
            })  # fmt: skip
        result = {
            "clips": number + 1, "frames": 24, "difficulty": "medium", "changes": changes,
            "j_and_f": {name: statistics.fmean(values) for name, values in found.items()},
            "by_clip": {name: [round(value, 5) for value in values] for name, values in found.items()},
        }  # fmt: skip
        save(result)
        print(number + 1, *(f"{each['name']} {each['mean']:+.4f} {each['interval']};" for each in changes), flush=True)
    return result


def layers(options: argparse.Namespace) -> dict[str, Any]:
    """Times of one layer each way, as ratios to fp32, and errors."""
    rows, about = [], {"unit": "processor time, the least of each way's runs"}
    for tokens, channels, width in LAYERS:
        layer, given = nn.Linear(channels, width).requires_grad_(False), torch.randn(tokens, channels)
        weight, bias = layer.weight.bfloat16(), layer.bias.bfloat16()
        ways: dict[str, Callable[[Tensor], Tensor]] = {
            "fp32": layer,
            "bf16, cast in and out": lambda x, w=weight, b=bias: F.linear(x.bfloat16(), w, b).float(),  # type: ignore[misc]
        }
        ways |= {name: backends.packed(layer, "int8_dynamic", name) for name in backends.engines()}
        with suppress(MissingLibraryError):
            ways["torchao"] = backends.packed(
                layer, "int8_dynamic", backends.chosen("int8_dynamic", "torchao", given.device)
            )
        exact = layer(given)
        times: dict[str, list[float]] = {name: [] for name in ways}
        for _ in range(options.frames):
            for name, run in ways.items():
                began = time.process_time()
                run(given)
                times[name].append(time.process_time() - began)
        least = min(times["fp32"])
        rows.append({
            "tokens": tokens, "in": channels, "out": width, "fp32_ms": 1000 * least,
            "speedup": {name: round(least / min(each), 2) for name, each in times.items()},
            "relative_error": {name: float((run(given) - exact).norm() / exact.norm()) for name, run in ways.items()},
        })  # fmt: skip
        print(rows[-1]["tokens"], channels, width, rows[-1]["speedup"], flush=True)
    with suppress(PackageNotFoundError):
        about["torchao"] = version("torchao")
    return {**about, "rows": rows}


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure one kind and write its JSON."""
    typed = sys.argv[1:] if arguments is None else list(arguments)
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("kind", choices=["speed", "quality", "layers"])
    add("--model", default="base-plus", help="of speed: a size, or anything `surgery bench` takes")
    add("--host", choices=[*builders()], default="sam2")
    add("--share", type=float, default=0.25, help="of speed: of the stage-3 windows")
    add("--frames", type=int, default=4, help="of speed: measured per model; of layers: runs")
    add("--warm", type=int, default=8, help="of speed: frames that fill the memory bank of seven")
    add("--arms", action="append", help="of speed: only this recipe; several times for several")
    add("--clips", type=int, default=100, help="of quality")
    add("--out", type=Path, help="default: benchmarks/results/quantize-KIND-MODEL.json")
    options = parser.parse_args(typed)
    torch.set_num_threads(1)
    warnings.filterwarnings("ignore", category=DeprecationWarning)
    model = {"quality": "demo", "layers": "large", "speed": options.model}[options.kind].replace(":", "-")
    out: Path = options.out or RESULTS / f"quantize-{options.kind}-{model}-cpu.json"

    def save(found: dict[str, Any]) -> None:
        document = {
            "kind": f"quantize-{options.kind}", "schema": 1, "date": time.strftime("%Y-%m-%d"),
            "command": shlex.join(["python", "-m", "benchmarks.quantize", *typed]),
            "machine": {**machine(torch.device("cpu")), "vnni": backends.vnni()}, "host": options.host, **found,
        }  # fmt: skip
        out.write_text(json.dumps(document, indent=1) + "\n", encoding="utf-8")

    save(
        quality(options, save)
        if options.kind == "quality"
        else {"speed": speed, "layers": layers}[options.kind](options)
    )
    print(out)


if __name__ == "__main__":
    main()

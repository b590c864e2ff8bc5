"""What part of a speed-up is the exact savings' and what part the method's.

    python -m benchmarks.savings --model base-plus --recipe balanced --threads 1

Four models track the same clip in one process, frame by frame in rotating order: stock, the exact savings alone, the
recipe with `savings: []`, and the recipe as it is. Strips are taken only where masks may differ anyway, so the savings
alone are without them.
"""

from __future__ import annotations

import argparse
import json
import os
import shlex
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from benchmarks.arms import Arms, model_spec
from surgery.bench import Settings, figures
from surgery.bench.machine import machine
from surgery.errors import SurgeryError
from surgery.hosts import builders
from surgery.loading import load_model
from surgery.operations import ExactSavings
from surgery.recipe import Metadata, Recipe

ALONE, WITHOUT, WHOLE = "exact savings alone", "recipe without savings", "recipe"


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure and write the JSON. 2 when something cannot be done."""
    typed = sys.argv[1:] if arguments is None else list(arguments)
    options = _parser().parse_args(typed)
    try:
        recipe = Recipe.load(options.recipe, options.override)
        name = f"savings-{recipe.metadata.name}-{options.model.replace(':', '-')}-{options.host}-{options.device}.json"
        out = options.out or Path(__file__).parent / "results" / name
        if options.threads:
            torch.set_num_threads(options.threads)
        document = measured(options, recipe)
    except SurgeryError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    document["command"] = shlex.join(["python", "-m", "benchmarks.savings", *typed])
    out.write_text(json.dumps(document, indent=1) + "\n", encoding="utf-8")
    for row in (*document["rows"], document["savings_of_recipe"]):
        print(f"{row['whole_frame_speedup']:.3f}x {row['interval']} {row['name']}")
    print(out)
    return 0


def arms_of(recipe: Recipe) -> dict[str, Recipe]:
    """The recipes that are compared with stock, by name."""
    alone = Recipe(metadata=Metadata(name="exact-savings", description=ALONE), operations=(ExactSavings(),))
    return {ALONE: alone, WITHOUT: recipe.with_operation(ExactSavings(savings=())), WHOLE: recipe}


def measured(options: argparse.Namespace, recipe: Recipe) -> dict[str, Any]:
    """The document: a row for each arm, against stock, and what the savings add to the recipe."""
    clock = "processor" if options.device == "cpu" else "wall"
    settings = Settings(
        frames=options.frames, warm=options.warm, module_frames=options.module_frames, objects=options.objects,
        clock=clock,
    )  # fmt: skip
    recipes = arms_of(recipe)
    model = load_model(model_spec(options.model), options.host, options.device)
    arms = Arms(model, list(recipes.values()), settings, step=lambda: print(end=".", flush=True))
    found: list[dict[str, Any]] = []
    arms.run([options.share], lambda _, rows: found.extend(rows))
    print()
    rows = [{"name": name, **row, "model": options.model} for name, row in zip(recipes, found, strict=True)]
    _, without, whole = (row["latency"][1]["ms"] for row in rows)
    ratio, interval = figures.speedup((without, whole))
    return {
        "kind": "savings",
        "schema": 2,
        "date": time.strftime("%Y-%m-%d"),
        "machine": machine(torch.device(options.device)),
        "allocator": {name: value for name, value in os.environ.items() if name.startswith("MALLOC_")},
        "recipe": recipe.to_dict(),
        "rows": rows,
        "savings_of_recipe": {
            "name": f"{WITHOUT} / {WHOLE}", "whole_frame_speedup": ratio, "interval": list(interval or ()),
        },
    }  # fmt: skip


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("--model", default="base-plus", help="a size, or anything `surgery bench` takes")
    add("--host", choices=[*builders()], default="sam2")
    add("--recipe", default="balanced", help="name or YAML file")
    add("--override", action="append", default=[], help="of the recipe, such as routing.budget=0.25")
    add("--share", type=float, default=0.25, help="of the stage-3 windows, where the recipe routes any")
    add("--objects", type=int, default=1)
    add("--frames", type=int, default=4, help="measured per model")
    add("--warm", type=int, default=8, help="frames that fill the memory bank of seven")
    add("--module-frames", type=int, default=1, help="frames timed part by part")
    add("--device", default="cpu", help="on cpu processor time is measured, else wall time")
    add("--threads", type=int, help="CPU threads; default: torch's")
    add("--out", type=Path, help="default: benchmarks/results/savings-RECIPE-MODEL-HOST-DEVICE.json")
    return parser


if __name__ == "__main__":
    sys.exit(main())

"""Speed of SAM 2.1 at its real sizes: stock against several recipes at forced shares of the windows.

    python -m benchmarks.speed --models tiny,base-plus --hosts sam2,transformers --frames 10 --threads 2
    python -m benchmarks.speed --device cuda --precision fp32,bf16 --compile none,graphs,all --baseline stock,vos
    python -m benchmarks.speed --page benchmarks/README.md --plot benchmarks/images/speed.svg

One process, one session per model, frame by frame in rotating order; the memory banks are filled once per combination
of model, host, baseline, precision, compile and objects, and all shares are measured on the same running sessions.
Weights are random: speed does not depend on them. Rows are written as soon as a share is done, and the same command
goes on where it was stopped. benchmarks/README.md says what the columns mean.
"""

from __future__ import annotations

import argparse
import itertools
import json
import shlex
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.progress import Progress

from benchmarks.arms import Arms, give_back, model_spec, rounds
from benchmarks.matrix import KIND, Matrix, case_id, read_matrix
from benchmarks.tables import filled, plot, sections, speed_table
from surgery.bench import BenchmarkError, Settings
from surgery.errors import SurgeryError
from surgery.hosts import builders
from surgery.hosts.sam21 import SIZES
from surgery.loading import load_model
from surgery.operations import SparseWindowRouting
from surgery.recipe import Recipe

HERE = Path(__file__).resolve().parent
RESULTS = HERE / "results"
RECIPES = ("published-large", str(HERE / "recipes" / "tiles-queries.yaml"))
BASELINES = ("stock", "vos")


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure, or with --table, --page or --plot only read what was measured. 2 when something cannot be done."""
    options = _parser().parse_args(arguments)
    try:
        if options.table or options.page or options.plot:
            show(options)
        else:
            measure(options, sys.argv[1:] if arguments is None else list(arguments))
    except SurgeryError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


def measure(options: argparse.Namespace, typed: list[str]) -> None:
    """Run every case of the options that the file does not hold."""
    if options.threads:
        torch.set_num_threads(options.threads)
    device = torch.device(options.device or ("cuda" if torch.cuda.is_available() else "cpu"))
    out = options.out or RESULTS / f"speed-matrix-{device.type}.json"
    matrix = Matrix(out, device, shlex.join(["python", "-m", "benchmarks.speed", *typed]))
    recipes = [Recipe.load(name) for name in options.recipes]
    for recipe in recipes:
        if recipe.find(SparseWindowRouting) is None:
            raise BenchmarkError(f"recipe {recipe.metadata.name!r} routes no windows; there is nothing to force")
    if options.clock == "processor" and device.type != "cpu":
        raise BenchmarkError(f"clock processor needs device cpu, not {device.type}: its work is not the processor's")
    common = {
        "frames": options.frames, "warm": options.warm, "module_frames": options.module_frames, "clock": options.clock,
    }  # fmt: skip
    groups = [
        (model, host, baseline, Settings(precision=kind, compile=scope, objects=count, **common))
        for model, host, baseline, kind, scope, count in itertools.product(
            options.models, options.hosts, options.baseline, options.precision, options.compile, options.objects
        )
        # Only sam2 has a predictor that compiles itself.
        if not (baseline == "vos" and host != "sam2")
    ]
    if not groups:
        raise BenchmarkError("baseline vos needs host sam2; nothing is left to measure")
    with Progress(console=Console(stderr=True), transient=True) as bar:
        for model, host, baseline, settings in groups:
            group(matrix, device, recipes, options.shares, bar, model, host, baseline, settings)
            give_back(device)
    print(speed_table(matrix.rows))
    print(f"\n{out}")


def group(
    matrix: Matrix, device: torch.device, recipes: list[Recipe], shares: list[float], bar: Progress, model: str,
    host: str, baseline: str, settings: Settings,
) -> None:  # fmt: skip
    """Measure the missing shares of one combination, and save after each."""

    def cases(share: float) -> list[str]:
        return [case_id(model, host, baseline, recipe, share, settings) for recipe in recipes]

    missing = [share for share in shares if not all(matrix.has(case) for case in cases(share))]
    if not missing:
        return
    title = f"{model} {host} {baseline} {settings.precision} {settings.compile} {settings.objects}"
    task = bar.add_task(title, total=rounds(settings, len(missing)))
    loaded = load_model(model, host, str(device))
    compiling = load_model(model, host, str(device), vos=True) if baseline == "vos" else None
    arms = Arms(loaded, recipes, settings, compiling, step=lambda: bar.advance(task))

    def save(share: float, rows: list[dict[str, Any]]) -> None:
        matrix.add([(case, {**row, "model": model}) for case, row in zip(cases(share), rows, strict=True)])

    arms.run(missing, save)
    bar.remove_task(task)


def show(options: argparse.Namespace) -> None:
    """Print the generated sections, write them into a page, or draw the plot."""
    paths = [options.out] if options.out else matrices(RESULTS)
    documents = [(f"benchmarks/results/{path.name}", read_matrix(path)) for path in paths]
    made = sections(documents)
    if options.table:
        print("\n\n".join(made.values()))
    if options.plot:
        plot(documents, options.plot)
    if options.page:
        options.page.write_text(filled(options.page.read_text(encoding="utf-8"), made), encoding="utf-8")


def matrices(folder: Path) -> list[Path]:
    """The files of this script among the results."""
    kinds = ((path, json.loads(path.read_text(encoding="utf-8")).get("kind")) for path in sorted(folder.glob("*.json")))
    return [path for path, kind in kinds if kind == KIND]


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    models = [f"random:{size}" for size in SIZES]
    add("--models", type=_models, default=models, help="sizes, or anything `surgery bench` takes")
    add("--hosts", type=_among([*builders()]), default=[*builders()])
    add("--baseline", type=_among(BASELINES), default=["stock"], help="vos: sam2's compiling predictor")
    add("--precision", type=_among(("fp32", "bf16", "fp16")), default=["fp32"])
    add(
        "--compile",
        type=_among(("none", "encoder", "all", "graphs")),
        default=["none"],
        help="of stock and sparse models",
    )
    add("--objects", type=_numbers(int), default=[1])
    add("--shares", type=_numbers(float), default=[0.125, 0.25, 0.5], help="of the stage-3 windows")
    add("--recipes", type=_split, default=list(RECIPES), help="names or YAML files")
    add("--frames", type=int, default=10, help="measured per model and share")
    add("--warm", type=int, default=10, help="frames that fill the memory bank of seven")
    add("--module-frames", type=int, default=2, help="frames timed part by part, per share")
    add(
        "--clock",
        choices=("wall", "processor"),
        default="wall",
        help="processor: of this process; for machines that others use",
    )
    add("--device", help="default: cuda when there is one, else cpu")
    add("--threads", type=int, help="CPU threads; default: torch's")
    add("--out", type=Path, help="default: benchmarks/results/speed-matrix-DEVICE.json")
    add("--miniature", action=_Miniature, nargs=0, help="the embedded model and two frames: whether all of this works")
    add("--table", action="store_true", help="print the tables of what was measured, in markdown")
    add("--page", type=Path, help="write them between the markers of this page")
    add("--plot", type=Path, help="draw them (SVG or PNG)")
    return parser


class _Miniature(argparse.Action):
    """Sets the options of a run of seconds; options after it may change them again."""

    def __call__(self, parser: Any, namespace: Any, values: Any, option_string: Any = None) -> None:
        namespace.models, namespace.frames, namespace.warm, namespace.module_frames = ["demo"], 2, 8, 1


def _split(text: str) -> list[str]:
    return [part.strip() for part in text.split(",")]


def _models(text: str) -> list[str]:
    return [model_spec(part) for part in _split(text)]


def _among(known: Sequence[str]) -> Any:
    def read(text: str) -> list[str]:
        parts = _split(text)
        for part in parts:
            if part not in known:
                raise argparse.ArgumentTypeError(f"{part!r}: expected {', '.join(known)}")
        return parts

    return read


def _numbers(kind: Any) -> Any:
    def read(text: str) -> list[Any]:
        try:
            return [kind(part) for part in _split(text)]
        except ValueError:
            raise argparse.ArgumentTypeError(f"{text!r}: expected numbers with commas between") from None

    return read


if __name__ == "__main__":
    sys.exit(main())

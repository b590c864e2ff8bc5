"""`surgery bench`: a model against itself under surgery, case by case, and its results on disk."""

from __future__ import annotations

import itertools
import shlex
import sys
from pathlib import Path
from typing import Any

import click

from surgery.cli.common import Command, OutPath, counted, err, out, print_json, shown
from surgery.cli.options import Asked, asking, json_option, listed
from surgery.cli.tables import print_table


@click.command(cls=Command)
@click.argument("model")
@asking()
@click.option("--objects", default="1", show_default=True, help="Objects tracked at once; several: 1,4,16.")
@click.option(
    "--windows", default="routed", show_default=True,
    help="Share of windows computed, or 'routed' for the router's own choice; several: 0.25,0.5,routed.",
)  # fmt: skip
@click.option(
    "--precision",
    default="fp32",
    show_default=True,
    help="fp32, bf16 or fp16, of both models, or of the stock one when the recipe has its own; several: fp32,bf16.",
)
@click.option("--cast", default="autocast", show_default=True, help="Reach the precision by 'autocast' or 'weights'.")
@click.option("--compile", default="none", show_default=True, help="none, encoder, all or graphs.")
@click.option(
    "--compile-mode", "mode", default="default", show_default=True, help="Of torch.compile, such as max-autotune."
)
@click.option("--frames", default=20, show_default=True, help="Measured frames a model.")
@click.option("--warm", default=10, show_default=True, help="Frames tracked before them.")
@click.option("--module-frames", default=3, show_default=True, help="Frames timed module by module; 0: none.")
@click.option("--seed", default=0, show_default=True, help="Of the synthetic clip.")
@click.option("--threads", type=click.IntRange(1), help="CPU threads; default: torch's.")
@click.option("--out", "folder", default="bench", show_default=True, type=OutPath(file_okay=False))
@click.option("--again", is_flag=True, help="Measure cases that are in the folder already again.")
@json_option
def bench(
    asked: Asked, objects: str, windows: str, precision: str, threads: int | None, folder: str, again: bool,
    as_json: bool, **settings: Any,
) -> None:  # fmt: skip
    """Time MODEL against itself under RECIPE, in one process, on a synthetic clip.

    Every combination of --objects, --windows and --precision is a case. A finished case is kept in the folder under a
    digest of all that it depends on; the same command goes on where it was stopped.
    """
    import torch

    from surgery.adapters import open_adapter
    from surgery.bench import Settings, benchmark, frame_count
    from surgery.bench.machine import machine, not_measured
    from surgery.bench.settings import digest
    from surgery.bench.store import CaseStore
    from surgery.digests import code_digest, weights_digest
    from surgery.recipe import Recipe

    cases = [
        Settings(objects=count, windows=share, precision=kind, **settings)
        for kind, count, share in itertools.product(
            listed("--precision", precision, str, "a precision"),
            listed("--objects", objects, int, "a whole number"),
            listed("--windows", windows, lambda text: None if text == "routed" else float(text), "a share or 'routed'"),
        )
    ]
    chosen = Recipe.load(str(asked.recipe), asked.overrides)
    opened = open_adapter(asked.adapter) if asked.adapter is not None else None
    fitted = weights_digest(opened.tensors) if opened is not None else None
    if threads:
        torch.set_num_threads(threads)
    store = CaseStore(Path(folder))
    loaded = asked.load()
    place = next(loaded.parameters()).device
    facts = machine(place)
    about = [asked.model, weights_digest(loaded.state_dict()), chosen.to_dict(), fitted, facts, code_digest()]
    keys = [digest(case.model_dump(), *about) for case in cases]
    rows = [None if again else store.get(key) for key in keys]
    command = shlex.join(["surgery", *sys.argv[1:]])

    def save() -> dict[str, Any]:
        finished = [row for row in rows if row is not None]
        return store.write_document(finished, len(cases), command, facts, not_measured(place))

    document = save()
    try:
        for number, case in enumerate(cases):
            if rows[number] is not None:
                continue
            with shown(_title(case), frame_count(case)) as step:
                timings = benchmark(loaded, chosen, adapter=opened, settings=case, step=step)
            row = {**timings.row, "model": asked.model}
            store.put(keys[number], row)
            rows[number] = row
            document = save()
    except KeyboardInterrupt:
        done = sum(row is not None for row in rows)
        err.print(f"stopped: {done} of {len(cases)} cases are in {folder}; the same command goes on")
        raise
    if as_json:
        print_json(document)
        return
    _print(document, store.document)


def _title(case: Any) -> str:
    share = "routed" if case.windows is None else f"{case.windows:g} of windows"
    return f"{case.precision}, {counted(case.objects, 'object')}, {share}"


def _print(document: dict[str, Any], path: Path) -> None:
    facts, rows = document["machine"], document["rows"]
    out.print(f"{facts['cpu']}, {facts['threads']} threads, {facts['device']}")
    print_table(_HEAD, [_cells(row) for row in rows])
    out.print(_LEGEND, style="dim")
    if len(rows) == 1 and rows[0]["modules"]:
        _print_modules(rows[0])
    for missing in document["not_measured"]:
        out.print(f"{missing['device']}: {missing['reason']}")
    out.print(f"  {path}")


_HEAD = ("type", "objects", "windows", "stock ms", "sparse ms", "p95 ms", "faster", "95 %", "FLOPs", "ratio", "MB")
_LEGEND = (
    "type a/b: stock a, sparse b. stock, sparse: median frame; p95: of sparse. faster: stock / sparse, measured, with "
    "its interval. FLOPs: predicted; ratio: measured / predicted. MB: peak."
)


def _cells(row: dict[str, Any]) -> list[str]:
    kept, predicted, interval = row.get("windows"), row["predicted"], row["interval"]
    share = "all" if kept is None else f"{kept['share']:.0%}{'' if kept['forced'] else ' (routed)'}"
    return [
        _types(row), str(row["objects"]), share, f"{row['dense']['median']:.1f}",
        f"{row['sparse']['median']:.1f}", f"{row['sparse']['p95']:.1f}", f"{row['whole_frame_speedup']:.2f}x",
        "-".join(f"{end:.2f}" for end in interval) or "one pass", "-" if predicted is None else f"{predicted:.2f}x",
        "-" if predicted is None else f"{row['measured_over_predicted']:.2f}", f"{row['peak_memory_mb']:.0f}",
    ]  # fmt: skip


def _types(row: dict[str, Any]) -> str:
    """The precision of both models, or of the stock one and of the sparse one."""
    own = row.get("sparse_precision")
    return f"{row['settings']['precision']}/{own['dtype']}" if own else row["precision"]


_MODULES = ("module", "ms", "sparse", "GFLOP", "sparse")


def _print_modules(row: dict[str, Any]) -> None:
    keys = ("dense_ms", "sparse_ms", "dense_gflop", "sparse_gflop")
    print_table(_MODULES, [[part["name"], *(f"{part[key]:.2f}" for key in keys)] for part in row["modules"]])

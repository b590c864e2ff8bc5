"""`surgery bench`: a model against itself under surgery, case by case, and its results on disk."""

from __future__ import annotations

import itertools
import shlex
import sys
from pathlib import Path
from typing import Any

import click

from surgery.cli.common import Command, OutPath, counted, err, out, print_json, print_table, shown
from surgery.cli.options import Asked, Listed, asking, json_option, set_threads

_COUNTS = Listed(int, "a whole number")
_SHARES = Listed(lambda text: None if text == "routed" else float(text), "a share or 'routed'")


@click.command(cls=Command)
@click.argument("model")
@asking()
@click.option("--objects", type=_COUNTS, default="1", help="Objects tracked at once; several: 1,4,16.")
@click.option(
    "--windows", type=_SHARES, default="routed",
    help="Share of windows computed, or 'routed' for the router's own choice; several: 0.25,0.5,routed.",
)  # fmt: skip
@click.option(
    "--precision",
    type=Listed(str, "a precision"),
    default="fp32",
    help="fp32, bf16 or fp16, of both models, or of the stock one when the recipe has its own; several: fp32,bf16.",
)
@click.option("--cast", default="autocast", help="Reach the precision by 'autocast' or 'weights'.")
@click.option("--compile", default="none", help="none, encoder, all or graphs.")
@click.option("--compile-mode", "mode", default="default", help="Of torch.compile, such as max-autotune.")
@click.option("--frames", default=20, help="Measured frames a model.")
@click.option("--warm", default=10, help="Frames tracked before them.")
@click.option("--module-frames", default=3, help="Frames timed module by module; 0: none.")
@click.option("--seed", default=0, help="Of the synthetic clip.")
@click.option(
    "--threads", type=click.IntRange(1), callback=set_threads, expose_value=False, help="CPU threads; default: torch's."
)
@click.option("--out", "folder", default="bench", type=OutPath(file_okay=False))
@click.option("--again", is_flag=True, help="Measure cases that are in the folder already again.")
@json_option
def bench(
    asked: Asked, objects: list[int], windows: list[float | None], precision: list[Any], folder: str, again: bool,
    as_json: bool, **settings: Any,
) -> None:  # fmt: skip
    """Time MODEL against itself under RECIPE, in one process, on a synthetic clip.

    Every combination of --objects, --windows and --precision is a case. A finished case is kept in the folder under a
    digest of all that it depends on; the same command goes on where it was stopped.
    """
    from surgery.adapters import open_adapter
    from surgery.bench import Settings, benchmark, frame_count
    from surgery.bench.machine import machine, not_measured
    from surgery.bench.settings import digest
    from surgery.bench.store import CaseStore
    from surgery.digests import code_digest, weights_digest
    from surgery.recipe import Recipe

    cases = [
        Settings(objects=count, windows=share, precision=kind, **settings)
        for kind, count, share in itertools.product(precision, objects, windows)
    ]
    chosen = Recipe.load(str(asked.recipe), asked.overrides)
    opened = open_adapter(asked.adapter) if asked.adapter is not None else None
    fitted = weights_digest(opened.tensors) if opened is not None else None
    store = CaseStore(Path(folder))
    loaded = asked.load()
    place = next(loaded.parameters()).device
    facts = machine(place)
    about = [asked.model, weights_digest(loaded.state_dict()), chosen.to_dict(), fitted, facts, code_digest()]
    keys = [digest(case.model_dump(), *about) for case in cases]
    rows = {key: row for key in keys if not again and (row := store.get(key)) is not None}
    command = shlex.join(["surgery", *sys.argv[1:]])

    def save() -> dict[str, Any]:
        finished = [rows[key] for key in keys if key in rows]
        return store.write_document(finished, len(cases), command, facts, not_measured(place))

    document = save()
    try:
        for key, case in zip(keys, cases, strict=True):
            if key in rows:
                continue
            with shown(_title(case), frame_count(case)) as step:
                timings = benchmark(loaded, chosen, adapter=opened, settings=case, step=step)
            rows[key] = {**timings.row, "model": asked.model}
            store.put(key, rows[key])
            document = save()
    except KeyboardInterrupt:
        err.print(f"stopped: {len(rows)} of {len(cases)} cases are in {folder}; the same command goes on")
        raise
    print_json(document) if as_json else _print(document, store.document)


def _title(case: Any) -> str:
    share = "routed" if case.windows is None else f"{case.windows:g} of windows"
    return f"{case.precision}, {counted(case.objects, 'object')}, {share}"


def _print(document: dict[str, Any], path: Path) -> None:
    facts, rows = document["machine"], document["rows"]
    out.print(f"{facts['cpu']}, {facts['threads']} threads, {facts['device']}")
    print_table(_HEAD, [_cells(row) for row in rows])
    out.print(_LEGEND, style="dim")
    if len(rows) == 1 and rows[0]["modules"]:
        keys = ("dense_ms", "sparse_ms", "dense_gflop", "sparse_gflop")
        parts = [[part["name"], *(f"{part[key]:.2f}" for key in keys)] for part in rows[0]["modules"]]
        print_table(("module", "ms", "sparse", "GFLOP", "sparse"), parts)
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
    own = row.get("sparse_precision")
    types = f"{row['settings']['precision']}/{own['dtype']}" if own else row["precision"]
    return [
        types, str(row["objects"]), share, f"{row['dense']['median']:.1f}",
        f"{row['sparse']['median']:.1f}", f"{row['sparse']['p95']:.1f}", f"{row['whole_frame_speedup']:.2f}x",
        "-".join(f"{end:.2f}" for end in interval) or "one pass", "-" if predicted is None else f"{predicted:.2f}x",
        "-" if predicted is None else f"{row['measured_over_predicted']:.2f}", f"{row['peak_memory_mb']:.0f}",
    ]  # fmt: skip

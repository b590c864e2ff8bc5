"""`surgery eval`: J and F on an annotated data set, dense and sparse side by side."""

from __future__ import annotations

import shlex
import sys
from pathlib import Path
from typing import Any

import click

from surgery.cli.common import SCORES, Command, OutPath, counted, err, noted, out, print_json, print_table, score_cells
from surgery.cli.options import Asked, asking, json_option, on_ray
from surgery.evaluation import CONVENTIONS, DATASETS, evaluate, open_dataset
from surgery.progress import progress_bar

_ERRORS = {"on_object": "on objects", "elsewhere": "elsewhere"}


@click.command(cls=Command, name="eval")
@click.argument("model")
@click.argument("root", type=click.Path())
@click.option("--dataset", required=True, type=click.Choice(DATASETS), help="Layout of ROOT.")
@click.option("--split", help="Part of the data set; default val or valid.")
@click.option("--sequences", multiple=True, metavar="NAME[,NAME]", help="Only these sequences; repeatable.")
@asking(stock=True)
@click.option("--compare", "--dense-too", "dense_too", is_flag=True, help="Run the stock model beside it, in turn.")
@click.option("--max-frames", type=click.IntRange(min=1), help="Only the first frames of every sequence.")
@click.option("--convention", type=click.Choice(CONVENTIONS), help="Which frames count; default the data set's.")
@on_ray
@click.option("--record", is_flag=True, help="Also write a trace of every sequence, for a player.")
@click.option(
    "--drift-free", is_flag=True, help="Also compare sparse frames with dense ones from the dense model's own state."
)
@click.option("--out", "folder", required=True, type=OutPath(file_okay=False), help="Folder for the results.")
@json_option
def evaluate_command(
    asked: Asked, root: str, dataset: str, split: str | None, sequences: tuple[str, ...], dense_too: bool,
    ray: str | None, actors: int | None, threads: int | None, tries: int, folder: str, as_json: bool, **how: Any,
) -> None:  # fmt: skip
    """Score MODEL on the annotated data set in ROOT: semi-supervised video object segmentation, J and F.

    Without --recipe the model runs under "balanced" (or the adapter's own recipe); "--recipe none" runs it stock.
    Finished sequences are kept in --out: the same command goes on where it was stopped. With --ray sequences run side
    by side; times are then those of processes that disturb each other.

    \b
    surgery eval demo clips/ --dataset folder --recipe balanced --dense-too --out eval
    surgery eval facebook/sam2.1-hiera-large DAVIS/ --dataset davis2017 --dense-too --out eval
    """
    opened = open_dataset(dataset, root, split)
    names = [part for text in sequences for part in text.split(",") if part] or None
    chosen = asked.chosen()
    how |= {"sequences": names, "out": folder, "name": asked.model, "command": shlex.join(["surgery", *sys.argv[1:]])}
    with progress_bar(err.is_terminal) as bars:
        how["progress"] = lambda done, total, name: bars("tracking", done, total, name)
        if ray is not None:
            from surgery import jobs

            setup = jobs.Setup(asked.model, chosen, asked.adapter, asked.host, asked.device)
            pool = jobs.PoolSettings(ray, actors, threads, tries)
            scores = jobs.evaluate(opened, setup, pool, dense_too=dense_too, **how)
        else:
            model, adapter = asked.load(bars), asked.adapter
            if not dense_too:
                # Nothing else needs the stock model, so it need not be copied.
                model, chosen, adapter = asked.operate(model, chosen), None, None
            scores = evaluate(model, opened, recipe=chosen, adapter=adapter, dense_too=dense_too, **how)
    print_json(scores.as_dict()) if as_json else _say(scores, Path(folder))


def _say(scores: Any, folder: Path) -> None:
    rows = []
    for row in scores.sequences:
        rows += _lines(row["sequence"], scores.arms, row, (row.get("difference") or {}).get("j_and_f"))
    summary = scores.summary
    found = (summary.get("difference") or {}).get("j_and_f") or {}
    rows += _lines(counted(summary["objects"], "object"), scores.arms, summary, found.get("mean"))
    print_table(("", "", *SCORES, "difference"), rows)
    if faster := summary.get("speedup"):
        out.print(
            f"{faster['mean']:.2f} times as fast as stock, 95 % interval {faster['low']:.2f} to {faster['high']:.2f}: "
            f"median {summary['dense']['ms']:.1f} -> {summary['sparse']['ms']:.1f} ms over all frames"
        )
    if found:
        out.print(
            f"J&F of sparse minus dense, mean over {found['sequences']} sequences: {found['mean']:+.4f}, "
            f"95 % interval {found['low']:+.4f} to {found['high']:+.4f}"
        )
    elif summary["sequences"] == 1 and scores.sequences[0].get("difference"):
        change = scores.sequences[0]["difference"]["j_and_f"]
        out.print(f"J&F of sparse minus dense: {change:+.4f}; one sequence gives no interval")
    for each in summary.get("drift_free", ()):
        errors = [f"{each[name]:.1%} {label}" for name, label in _ERRORS.items() if each[name] is not None]
        spread = f" ({each['interval']['low']:.3f} to {each['interval']['high']:.3f})" if each["interval"] else ""
        out.print(
            f"{counted(each['steps'], 'sparse frame')} from the dense state: J&F of the dense masks {each['masks']:.3f}"
            f"{spread}; feature error {', '.join(errors)}; {counted(each['comparisons'], 'comparison')}"
        )
    if not summary["alternating"]:
        out.print("ms of a single model, measured beside nothing: not for comparing", style="dim")
    for reason in dict.fromkeys(item["reason"] for item in scores.not_scored):
        left = {(item["sequence"], item["object"]) for item in scores.not_scored if item["reason"] == reason}
        out.print(f"without a score: {counted(len(left), 'object')} ({reason})")
    for name in ("eval.json", "eval.csv"):
        out.print(f"  {folder / name}")
    for arm, place in scores.head["predictions"].items():
        out.print(noted(f"  {folder / place}", f"masks, {arm}"))
    if scores.head["traces"] is not None:
        out.print(noted(f"  {folder / scores.head['traces']}", "traces; a page that plays them: surgery report"))


def _lines(label: str, arms: list[str], rows: dict[str, Any], difference: float | None) -> list[list[str]]:
    shown = "" if difference is None else f"{difference:+.3f}"
    return [
        [label if arm == arms[0] else "", arm, *score_cells(rows[arm]), shown if arm == "sparse" else ""]
        for arm in arms
    ]

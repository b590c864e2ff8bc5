"""Markdown and a plot of benchmark matrices, so that no figure of a page is typed by hand."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from surgery.bench.settings import BenchmarkError

Row = dict[str, Any]
Document = dict[str, Any]
SECTIONS = ("speed-cpu", "speed-cuda", "limits")
_ORDER = ("tiny", "small", "base-plus", "large")
_SHOWN = 6


def sections(documents: Sequence[tuple[str, Document]]) -> dict[str, str]:
    """The generated sections of the page by name, see `SECTIONS`.

    Args:
        documents: (file name, document) as `Matrix` wrote them.
    """
    made = {}
    for kind in ("cpu", "cuda"):
        parts = [
            f"{_machine(document)} File: `{name}`.\n\n{speed_table(rows)}"
            for name, document in documents
            if (rows := [row for row in document["rows"] if row["device"] == kind])
        ]
        made[f"speed-{kind}"] = "\n\n".join(parts) or _nothing(kind)
    rows = [row for _, document in documents for row in document["rows"]]
    made["limits"] = limits(rows) if any(row["modules"] for row in rows) else "Not measured with this script yet."
    return made


def speed_table(rows: Sequence[Row]) -> str:
    """One line per row: what was kept, the measured ratio with its interval, what FLOPs predict, times per frame."""
    head = (
        "model", "host", "baseline", "precision", "compile", "objects", "recipe", "windows", "queries", "keys",
        "whole frame", "95 %", "FLOPs predict", "measured / predicted", "p50 ms", "p95 ms", "p95 / p50",
    )  # fmt: skip
    return _table(head, [_cells(row) for row in sorted(rows, key=_place)])


def _cells(row: Row) -> list[str]:
    low, high = row["interval"]
    sides = row["dense"], row["sparse"]
    pairs = [
        " -> ".join(form.format(value) for value in values)
        for form, values in (
            ("{:.1f}", [side["median"] for side in sides]),
            ("{:.1f}", [side["p95"] for side in sides]),
            ("{:.2f}", [side["p95"] / side["median"] for side in sides]),
        )
    ]
    return [
        row["model"].removeprefix("random:"), row["host"], row["baseline"], row["precision"], row["compile"],
        str(row["objects"]), f"`{row['recipe']}`",
        *(_share(row[what]) for what in ("windows", "queries", "keys")),
        f"{row['whole_frame_speedup']:.2f}x", f"{low:.2f} to {high:.2f}", f"{row['predicted']:.2f}x",
        f"{row['measured_over_predicted']:.2f}", *pairs,
    ]  # fmt: skip


def limits(rows: Sequence[Row]) -> str:
    """Of the smallest and the largest model, for every host and recipe, at the share next to a quarter of the windows:
    the parts that take longest."""
    chosen: dict[tuple[str, ...], Row] = {}
    ordered = sorted(rows, key=_place)
    extremes = {ordered[0]["model"], ordered[-1]["model"]} if ordered else set()
    for row in (row for row in ordered if row["model"] in extremes):
        key = tuple(str(row[name]) for name in ("model", "host", "device", "precision", "compile", "objects", "recipe"))
        held = chosen.get(key)
        if row["modules"] and (held is None or _from_quarter(row) < _from_quarter(held)):
            chosen[key] = row
    made = []
    for row in chosen.values():
        total = sum(part["sparse_ms"] for part in row["modules"])
        parts = sorted(row["modules"], key=lambda part: -part["sparse_ms"])[:_SHOWN]
        title = f"{row['model'].removeprefix('random:')}, {row['host']}, {row['device']}, {row['precision']}"
        if row["compile"] != "none":
            title += f", compiled: {row['compile']}"
        title += f", {row['objects']} object{'s' * (row['objects'] > 1)}, `{row['recipe']}`"
        lines = [
            [
                part["name"], f"{part['dense_ms']:.1f}", f"{part['sparse_ms']:.1f}",
                f"{part['sparse_ms'] / total:.0%}",
                _ratio(part["dense_ms"], part["sparse_ms"]), _ratio(part["dense_gflop"], part["sparse_gflop"]),
            ]
            for part in parts
        ]  # fmt: skip
        head = ("part", "stock ms", "sparse ms", "of the sparse frame", "measured", "FLOPs predict")
        made.append(f"{title}, {_share(row['windows'])} of the windows:\n\n{_table(head, lines)}")
    return "\n\n".join(made)


def plot(documents: Sequence[tuple[str, Document]], path: Path) -> None:
    """Draw measured (points with intervals) and predicted (dashes) ratio over the share of windows, a panel per model.

    Raises:
        BenchmarkError: no document has rows.
    """
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    rows = sorted((row for _, document in documents for row in document["rows"]), key=_place)
    if not rows:
        raise BenchmarkError("nothing to draw: none of the files has rows")
    panels: dict[str, dict[str, list[Row]]] = {}
    for row in rows:
        title = f"{row['model'].removeprefix('random:')}, {row['host']}, {row['device']}, {row['precision']}"
        label = row["recipe"] + (f", {row['objects']} objects" if row["objects"] > 1 else "")
        label += f", compiled: {row['compile']}" if row["compile"] != "none" else ""
        label += ", against VOS" if row["baseline"] == "vos" else ""
        panels.setdefault(title, {}).setdefault(label, []).append(row)
    columns = min(4, len(panels))
    lines = -(-len(panels) // columns)
    with plt.rc_context({"svg.hashsalt": "surgery", "font.size": 8}):
        figure, axes = plt.subplots(lines, columns, figsize=(3.2 * columns, 2.8 * lines), squeeze=False, sharey=True)
        for axis in axes.flat[len(panels) :]:
            axis.set_visible(False)
        for axis, (title, arms) in zip(axes.flat, panels.items(), strict=False):
            for label, found in arms.items():
                shares = [100 * row["windows"]["share"] for row in found]
                ratios = [row["whole_frame_speedup"] for row in found]
                spread = [
                    [ratio - row["interval"][0] for ratio, row in zip(ratios, found, strict=True)],
                    [row["interval"][1] - ratio for ratio, row in zip(ratios, found, strict=True)],
                ]
                drawn = axis.errorbar(shares, ratios, yerr=spread, marker="o", capsize=2, label=label)
                axis.plot(shares, [row["predicted"] for row in found], "--", color=drawn[0].get_color(), linewidth=1)
            axis.axhline(1, color="0.6", linewidth=0.8)
            axis.set_title(title)
            axis.set_xlabel("stage-3 windows computed, %")
            axis.legend(loc="upper right")
        for axis in axes[:, 0]:
            axis.set_ylabel("whole frame, stock / sparse")
        figure.suptitle("Points: measured, with 95 % interval. Dashes: predicted by FLOPs.")
        figure.tight_layout()
        figure.savefig(path, metadata={"Date": None} if path.suffix == ".svg" else None, dpi=150)
        plt.close(figure)


def filled(page: str, made: dict[str, str]) -> str:
    """The page with the text between each pair of markers replaced.

    Raises:
        BenchmarkError: a pair of markers is missing.
    """
    for name, text in made.items():
        begin, end = f"<!-- {name}: written by benchmarks/speed.py -->", f"<!-- /{name} -->"
        found = re.search(re.escape(begin) + ".*?" + re.escape(end), page, flags=re.DOTALL)
        if found is None:
            raise BenchmarkError(f"the page lacks the markers {begin} and {end}")
        page = page[: found.start()] + f"{begin}\n{text}\n{end}" + page[found.end() :]
    return page


def _table(head: Sequence[str], lines: Sequence[Sequence[str]]) -> str:
    return "\n".join("| " + " | ".join(line) + " |" for line in (head, ["---"] * len(head), *lines))


def _place(row: Row) -> tuple[Any, ...]:
    size = row["model"].removeprefix("random:")
    at = _ORDER.index(size) if size in _ORDER else len(_ORDER)
    asked = row["settings"]["precision"], row["compile"], row["objects"], row["baseline"]
    return at, size, row["host"], *asked, row["recipe"], row["windows_share"]


def _from_quarter(row: Row) -> float:
    return abs(float(row["windows"]["share"]) - 0.25)


def _share(kept: Row | None) -> str:
    return "all" if kept is None else f"{100 * kept['share']:.3g} %"


def _ratio(dense: float, sparse: float) -> str:
    return f"{dense / sparse:.2f}x" if dense > 0 and sparse > 0 else ""


def _machine(document: Document) -> str:
    facts, rows = document["machine"], document["rows"]
    versions = ", ".join(f"{name} {number}" for name, number in facts["versions"].items())
    dates = sorted({row["date"] for row in rows})
    when = dates[0] if len(dates) == 1 else f"{dates[0]} to {dates[-1]}"
    place = facts["cpu"] if facts["device"] == "cpu" else f"{facts['device']}, {facts['cpu']}"
    return f"{place}, {facts['threads']} of {facts['cores']} cores; {versions}; {when}."


def _nothing(kind: str) -> str:
    return "Not measured: no GPU was at hand." if kind == "cuda" else "Not measured with this script yet."

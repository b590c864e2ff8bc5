"""A report made of result files: the outcome first, then the clips, then the details of every file."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from surgery.report import charts
from surgery.report.frames import embedded
from surgery.report.page import at, write_page
from surgery.report.read import ReportError, read_result

_KINDS = ("eval", "bench", "calibration", "trace")
"""In the order of the page, the traces apart."""


def write_report(
    files: Sequence[str | Path], out: str | Path, *, frames: str | Path | None = None, title: str = "surgery report"
) -> Path:
    """Write one self-contained HTML file from result files of `surgery eval`, `bench`, `calibrate`, and traces.

    Args:
        files: JSON of any of these kinds, at least one. out: the page. frames: folder with the pictures of the traces,
            as FRAMES/SEQUENCE/NAME.jpg or FRAMES/NAME.jpg (or .jpeg, .png); they are embedded, at most 480 px wide.
        title: of the page.

    Raises:
        ReportError: no file, a file that is not such a result (the message names file and key), no pictures of any
            trace in `frames`, or `out` cannot be written.
    """
    if not files:
        raise ReportError("no result file was given; expected at least one of eval, bench, calibration or trace JSON")
    results = [read_result(Path(file)) for file in files]
    of_kind = {kind: [result for result in results if result.kind == kind] for kind in _KINDS}
    traces = of_kind.pop("trace")
    pictures = embedded(traces, Path(frames)) if frames is not None else {}
    for result in of_kind["bench"]:
        for row in result.data["rows"]:
            row["case"] = _case_name(row)
    target = Path(out)
    try:
        write_page(
            target,
            title,
            "report.html.j2",
            ordered=[result for found in of_kind.values() for result in found],
            traces=traces,
            pictures=pictures,
            compromises=charts.compromises([result.data for result in of_kind["eval"]]),
            files=[{**result.data, "file": result.path.name} for result in results],
            arms=_arms,
            worst_first=_worst_first,
            by_drop=_by_drop,
            charts=charts,
        )
    except OSError as error:
        raise ReportError(f"{target}: cannot be written ({error.strerror})") from error
    return target


def _arms(summary: dict[str, Any]) -> list[dict[str, Any]]:
    return [{**summary[arm], "run": name} for arm, name in charts.ARMS.items() if summary.get(arm)]


def _worst_first(sequences: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """By the change where both arms ran, else by the score itself; clips without a score come last."""
    keys = ("difference.j_and_f", "sparse.j_and_f", "dense.j_and_f")
    by = next((key for key in keys if any(at(row, key) is not None for row in sequences)), keys[-1])
    rows = []
    for row in sorted(sequences, key=lambda row: (at(row, by) is None, at(row, by) or 0.0)):
        whole = at(row, "sparse.dense_frames")
        reasons = ", ".join(f"{reason}: {count}" for reason, count in whole.items()) if isinstance(whole, dict) else ""
        rows.append({**row, "whole": reasons or None})
    return rows


def _by_drop(rows: list[dict[str, Any]], sign: int = 1) -> list[dict[str, Any]]:
    """The least drop first, with a `sign` of -1 the largest; rows without one come last."""
    return sorted(rows, key=lambda row: (row.get("drop") is None, sign * (row.get("drop") or 0.0)))


def _case_name(row: dict[str, Any]) -> str:
    kept = row.get("windows")
    share = f"{kept['share']:.0%} of windows" if kept else "all windows"
    if kept and row.get("windows_share") is None:
        share += " (routed)"
    objects = f"{row['objects']} object{'s' * (row['objects'] != 1)}"
    parts = [row["model"], row["precision"], objects, share, row["device"]]
    if row.get("compile") not in (None, "none"):
        parts.append(f"compile {row['compile']}")
    return ", ".join([*parts, row["host"]])

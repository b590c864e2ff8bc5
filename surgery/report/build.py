"""A report made of result files: the outcome first, then the clips, then the details of every file."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from surgery.report.document import Document
from surgery.report.frames import embedded
from surgery.report.headline import bench_headline, calibration_headline, eval_headline
from surgery.report.read import ReportError, Result, read_result
from surgery.report.sections import bench_section, calibration_section, compromise, eval_section, trace_part


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
    traces = [result for result in results if result.kind == "trace"]
    pictures = embedded(traces, Path(frames)) if frames is not None else {}
    target = Path(out)
    try:
        _document(results, pictures, title).write(target)
    except OSError as error:
        raise ReportError(f"{target}: cannot be written ({error.strerror})") from error
    return target


def _document(results: Sequence[Result], pictures: dict[Path, list[str | None]], title: str) -> Document:
    """The page of checked results; `pictures` has data URIs by trace file."""
    document = Document(title)
    kinds = {
        "eval": (eval_headline, eval_section),
        "bench": (bench_headline, bench_section),
        "calibration": (calibration_headline, calibration_section),
    }
    ordered = [result for kind in kinds for result in results if result.kind == kind]
    for result in ordered[:1]:
        document.section("Result")
        kinds[result.kind][0](document, result.data)
    traces = [result for result in results if result.kind == "trace"]
    if traces:
        document.section("Stock and sparse side by side")
        cases = document.cases("Clip", [result.data["sequence"] for result in traces])
        for result in traces:
            with cases:
                trace_part(document, result.data, f"From {result.path.name}.", pictures.get(result.path, []))
    compromise(document, [result.data for result in results if result.kind == "eval"])
    for place, result in enumerate(ordered):
        kinds[result.kind][1](document, result, place > 0)
    document.section("Files")
    document.table(
        "What this page was made of",
        [("file", ""), ("kind", ""), ("date", ""), ("processor", ""), ("command", "")],
        [
            [
                result.path.name, result.kind, result.data.get("date"), (result.data.get("machine") or {}).get("cpu"),
                result.data.get("command"),
            ]
            for result in results
        ],
    )  # fmt: skip
    return document

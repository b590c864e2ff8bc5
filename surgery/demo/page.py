"""The page of a demo run: what was done, how much faster, at what cost; then a clip to look at."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from PIL import Image

from surgery.bench.figures import speedup
from surgery.demo.show import DemoRun
from surgery.report.document import Document
from surgery.report.frames import encoded
from surgery.report.headline import quality_tile, speed_tile, tracked_twice, work_tile
from surgery.report.sections import trace_part


def arms(summary: dict[str, Any]) -> list[tuple[str, dict[str, Any]]]:
    """Name and figures of every model that ran, stock first; `summary` as in summary.json."""
    own = summary["recipe"] if summary["adapter"] else f"{summary['recipe']}, not calibrated"
    names = {"dense": "stock", "published": "published, identity shortcut", "sparse": own}
    return [(name, summary[key]) for key, name in names.items()]


def write_page(path: Path, summary: dict[str, Any], run: DemoRun) -> None:
    """Write the page of a run that has a trace; `summary` as in summary.json. Raises OSError."""
    stock, sparse, clips = summary["dense"], summary["sparse"], summary["clips"]
    ratio, interval = speedup((run.dense.ms, run.sparse.ms))
    document = Document("SAM 2 under surgery: the demo")
    document.section("Result")
    document.headline(
        tracked_twice("A miniature SAM 2", f"{clips} synthetic clip{'s' * (clips != 1)}", summary["recipe"]),
        [
            speed_tile(ratio, interval or (), stock["ms_per_frame"], sparse["ms_per_frame"]),
            quality_tile(sparse["j_and_f"] - stock["j_and_f"], (), stock["j_and_f"], sparse["j_and_f"]),
            work_tile(sparse["windows_kept"], sparse["keys_kept"]),
        ],
    )
    if not summary["trained"]:
        document.text("The model has random weights: speed and work are real, quality is not.")
    document.section("Stock and sparse side by side")
    trace_part(
        document, run.trace, "The first of the clips.", [encoded(Image.fromarray(frame)) for frame in run.frames]
    )
    document.section("All runs")
    columns = {
        "j_and_f": ".3f",
        "j": ".3f",
        "f": ".3f",
        "ms_per_frame": ".1f",
        "windows_kept": ".0%",
        "keys_kept": ".0%",
    }
    names = ("J&F", "J", "F", "ms per frame", "windows computed", "memory keys read")
    document.table(
        "Quality, time and work",
        [("", ""), *zip(names, columns.values(), strict=True)],
        [[name, *(figures[key] for key in columns)] for name, figures in arms(summary)],
    )
    document.text(
        "J&F: agreement with the exact masks, mean over objects. Time: median on this machine, all models in turn on "
        "every frame. A dash: all of it.",
        "note",
    )
    document.text(
        "A miniature at 256 px has little to save: what every frame costs anyway weighs more than the skipped windows. "
        "Full models at 1024 px gain more.",
        "note",
    )
    if summary["dense_frames"]:
        reasons = list(summary["dense_frames"].items())
        document.table("Why some frames were computed whole", [("reason", ""), ("frames", "d")], reasons)
    document.write(path)

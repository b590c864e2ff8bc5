"""The page of a demo run: what was done, how much faster, at what cost; then a clip to look at."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from PIL import Image

from surgery.bench.figures import speedup
from surgery.demo.show import DemoRun
from surgery.report import charts, page
from surgery.report.frames import encoded


def arms(summary: dict[str, Any]) -> list[tuple[str, dict[str, Any]]]:
    """Name and figures of every model that ran, stock first; `summary` as in summary.json."""
    own = summary["recipe"]["metadata"]["name"] + ("" if summary["adapter"] else ", not calibrated")
    names = {"dense": "stock", "published": "published, identity shortcut", "sparse": own}
    return [(name, summary[key]) for key, name in names.items()]


def write_page(path: Path, summary: dict[str, Any], run: DemoRun) -> None:
    """Write the page of a run that has a trace; `summary` as in summary.json. Raises OSError."""
    ratio, interval = speedup((run.scores["dense"].ms, run.scores["sparse"].ms))
    page.write_page(
        path,
        "SAM 2 under surgery: the demo",
        "demo.html.j2",
        summary=summary,
        ratio=ratio,
        interval=interval,
        arms=arms(summary),
        trace=run.trace,
        pictures=[encoded(Image.fromarray(frame)) for frame in run.frames],
        charts=charts,
    )

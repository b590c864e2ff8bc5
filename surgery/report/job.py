"""The page of a job of many videos."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from surgery.report.page import write_page


def write_job(path: Path, summary: dict[str, Any]) -> None:
    """Write the page of a job; `summary` as in summary.json. Raises OSError."""
    frames = summary["frames_there"] or 1
    dense = sorted(summary["dense_frames"].items(), key=lambda item: -item[1])
    write_page(
        path,
        "Many videos",
        "job.html.j2",
        summary=summary,
        slowest=[{**row, "speed": row["frames"] / row["seconds"]} for row in summary["slowest"]],
        dense=[{"reason": reason, "frames": count, "share": count / frames} for reason, count in dense],
    )

"""The page of `surgery segment --compare`: masks of pictures beside stock's."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from surgery.report.page import write_page


def write_segments(path: Path, summary: dict[str, Any], pictures: list[tuple[str, str]]) -> None:
    """Write the page; raises OSError.

    summary: as in summary.json. pictures: of every one, masks under surgery and masks of stock as data URIs.
    """
    rows = [{**row, "pictures": both} for row, both in zip(summary["pictures"], pictures, strict=True)]
    write_page(path, "Everything in pictures", "segments.html.j2", summary=summary, rows=rows)

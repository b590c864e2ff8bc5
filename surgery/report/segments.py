"""The page of `surgery segment --compare`: masks of pictures beside stock's."""

from __future__ import annotations

import statistics
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from surgery.report.page import write_page


def write_segments(path: Path, summary: dict[str, Any], pictures: list[tuple[str, str]]) -> None:
    """Write the page; raises OSError.

    summary: as in summary.json. pictures: of every one, masks under surgery and masks of stock as data URIs.
    """
    rows = [{**row, "pictures": both} for row, both in zip(summary["pictures"], pictures, strict=True)]

    def mean(values: Iterable[float | None]) -> float | None:
        known = [value for value in values if value is not None]
        return statistics.fmean(known) if known else None

    write_page(
        path,
        "Everything in pictures",
        "segments.html.j2",
        summary=summary,
        rows=rows,
        recall=mean(row["recall"] for row in rows),
        prompts=mean(row["prompts"] for row in rows),
        masks=mean(row["masks"] for row in rows),
        stock_prompts=mean(row["stock"]["prompts"] for row in rows),
        stock_masks=mean(row["stock"]["masks"] for row in rows),
    )

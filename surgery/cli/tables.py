"""Tables of figures for a terminal of any width."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from rich.cells import cell_len, set_cell_size
from rich.text import Text

from surgery.cli.common import out

SCORES = ("J&F", "J", "F", "ms", "windows", "keys")


def print_table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    """Print rows of plain text under a head. No figure is ever cut: a narrow terminal folds the lines."""
    widths = [max(map(cell_len, column)) for column in zip(head, *rows, strict=True)]
    for row in (head, *rows):
        cells = [set_cell_size(cell, width) for cell, width in zip(row, widths, strict=True)]
        out.print(Text("  ".join(cells).rstrip(), style="bold" if row is head else ""), soft_wrap=True)


def score_cells(values: Mapping[str, Any]) -> list[str]:
    """The figures under `SCORES`."""
    scores = ["-" if values[name] is None else f"{values[name]:.3f}" for name in ("j_and_f", "j", "f")]
    ms = "-" if values["ms"] is None else f"{values['ms']:.1f}"
    kept = ["all" if values[name] is None else f"{values[name]:.0%}" for name in ("windows_kept", "keys_kept")]
    return [*scores, ms, *kept]

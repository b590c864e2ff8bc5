"""Tables of figures for a terminal of any width."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from rich.cells import cell_len
from rich.table import Column, Table
from rich.text import Text

from surgery.cli.common import out

_GAP = 2
SCORES = ("J&F", "J", "F", "ms", "windows", "keys")


def print_table(head: Sequence[str], rows: Sequence[Sequence[str]], names: int = 1) -> None:
    """Print a table where it fits the terminal, and a few lines per row where it does not: no figure is ever cut.

    Args:
        head: title of every column. rows: plain text, never markup. names: leading columns that name a row; the others
            are figures. A name left empty is that of the row above.
    """
    widths = [max(map(cell_len, column)) for column in zip(head, *rows, strict=True)]
    if sum(widths) + _GAP * (len(widths) - 1) <= out.width:
        columns = [Column(Text(title), no_wrap=True) for title in head]
        table = Table(*columns, box=None, pad_edge=False, padding=(0, _GAP, 0, 0))
        for row in rows:
            table.add_row(*map(Text, row))
        out.print(table)
        return
    for row in rows:
        named = [f"{title} {cell}".strip() for title, cell in zip(head[:names], row, strict=False) if cell]
        out.print(Text(", ".join(named)), soft_wrap=True)
        for line in _folded([f"{title} {cell}" for title, cell in zip(head, row, strict=True) if cell][len(named) :]):
            out.print(Text(line), soft_wrap=True)


def score_cells(values: Mapping[str, Any]) -> list[str]:
    """The figures under `SCORES`."""
    scores = ["-" if values[name] is None else f"{values[name]:.3f}" for name in ("j_and_f", "j", "f")]
    ms = "-" if values["ms"] is None else f"{values['ms']:.1f}"
    kept = ["all" if values[name] is None else f"{values[name]:.0%}" for name in ("windows_kept", "keys_kept")]
    return [*scores, ms, *kept]


def _folded(figures: Sequence[str]) -> list[str]:
    """Figures joined to indented lines of the terminal's width; one that is wider has a line of its own."""
    lines: list[str] = []
    for figure in figures:
        if lines and cell_len(lines[-1]) + _GAP + cell_len(figure) <= out.width:
            lines[-1] += " " * _GAP + figure
        else:
            lines.append("  " + figure)
    return lines

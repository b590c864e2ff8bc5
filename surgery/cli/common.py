"""What the commands share: consoles, tables, progress, and turning our errors into one line and an exit code."""

from __future__ import annotations

import json
import os
import signal
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import click
from rich.cells import cell_len, set_cell_size
from rich.console import Console
from rich.text import Text

from surgery.cli.stops import Stopped, stoppable
from surgery.errors import SurgeryError
from surgery.progress import progress_bar

# What is printed holds names and paths of the user's, brackets and colons included: no markup, no emoji, anywhere.
out = Console(markup=False, emoji=False, highlight=False, soft_wrap=True)
err = Console(stderr=True, markup=False, emoji=False, highlight=False, soft_wrap=True)

SCORES = ("J&F", "J", "F", "ms", "windows", "keys")
"""Heads of the columns of `score_cells`."""


def note(message: Warning | str, *_: Any, **__: Any) -> None:
    """A warning as one line on stderr, in the place of `warnings.showwarning`."""
    err.print(Text.assemble(("note:", "yellow"), f" {message}"))


class Failure(click.ClickException):
    """A `SurgeryError` as the command line shows it: exit code 1, one message on stderr."""

    def show(self, file: Any = None) -> None:
        err.print(Text.assemble(("error:", "bold red"), f" {self.message}"))


class Command(click.Command):
    """A command whose `SurgeryError`s become a `Failure`, as do files that cannot be read or written, and which a
    signal ends with exit code 128 + its number."""

    def invoke(self, context: click.Context) -> Any:
        try:
            with stoppable():
                return super().invoke(context)
        except SurgeryError as error:
            raise Failure(str(error)) from error
        except KeyboardInterrupt as stop:
            number = stop.number if isinstance(stop, Stopped) else signal.SIGINT
            err.print(f"stopped by {signal.Signals(number).name}")
            raise click.exceptions.Exit(128 + number) from stop
        except OSError as error:
            # A pipe that nobody reads any more has no name.
            if error.filename is None or error.strerror is None:
                raise
            raise Failure(f"{error.filename}: {error.strerror}, expected a path that can be used") from error


class OutPath(click.Path):
    """What a command writes, refused before the work and not after it when it cannot lie there."""

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        """The path, when everything above it is, or can become, a folder."""
        try:
            found = super().convert(value, param, ctx)
            place = Path(os.fsdecode(found)).absolute()
            there = place.exists()  # raises for a name that no file system takes
            above = next(above for above in place.parents if above.exists())
            if not above.is_dir():
                self.fail(f"{str(value)!r}: {str(above)!r} is a file, expected a folder.", param, ctx)
            if not os.access(place if there and place.is_dir() else above, os.W_OK | os.X_OK):
                self.fail(f"{str(value)!r}: cannot be written, expected a folder with permission.", param, ctx)
        except OSError as error:
            self.fail(f"{str(value)!r}: {error.strerror}, expected a name that can be written.", param, ctx)
        return found


@contextmanager
def shown(text: str, total: int | None = None) -> Iterator[Callable[[], None]]:
    """One stage of work as a bar on a terminal, and nothing elsewhere; see `Bars.stage`."""
    with progress_bar(err.is_terminal) as bars, bars.stage(text, total) as step:
        yield step


def noted(path: object, note: str) -> Text:
    """A path and, dimmed, what is there."""
    return Text.assemble(f"{path}  ", (note, "dim"))


def print_json(data: Any) -> None:
    """One JSON document on stdout."""
    click.echo(json.dumps(data, indent=2))


def counted(number: int, thing: str) -> str:
    """As in "1 object", "2 objects"."""
    return f"{number} {thing}{'s' * (number != 1)}"


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

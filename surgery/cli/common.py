"""What the commands share: consoles, progress, and turning our errors into one line and an exit code."""

from __future__ import annotations

import json
import os
import signal
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import click
from rich.console import Console
from rich.text import Text

from surgery.cli.stops import Stopped, stoppable
from surgery.errors import SurgeryError
from surgery.progress import progress_bar

# What is printed holds names and paths of the user's, brackets and colons included: no markup, no emoji, anywhere.
out = Console(markup=False, emoji=False, highlight=False, soft_wrap=True)
err = Console(stderr=True, markup=False, emoji=False, highlight=False, soft_wrap=True)


def note(message: Warning | str, *_: Any, **__: Any) -> None:
    """A warning as one line on stderr, in the place of `warnings.showwarning`."""
    err.print(Text.assemble(("note:", "yellow"), f" {message}"))


class Failure(click.ClickException):
    """A `SurgeryError` as the command line shows it: exit code 1, one message on stderr."""

    exit_code = 1

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
        except BrokenPipeError:
            raise
        except OSError as error:
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
    json.dump(data, sys.stdout, indent=2)
    sys.stdout.write("\n")


def counted(number: int, thing: str) -> str:
    """As in "1 object", "2 objects"."""
    return f"{number} {thing}{'s' * (number != 1)}"

"""What the commands share: options, consoles, and turning our errors into one line and an exit code."""

from __future__ import annotations

import json
import os
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import click
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.status import Status
from rich.text import Text

from surgery.cli.stops import Stopped, stoppable
from surgery.errors import SurgeryError
from surgery.hosts import builders
from surgery.loading import saved_forms

F = TypeVar("F", bound=Callable[..., Any])

# What is printed holds names and paths of the user's, brackets and colons included: no markup, no emoji, anywhere.
out = Console(markup=False, emoji=False)
err = Console(stderr=True, markup=False, emoji=False)


class Failure(click.ClickException):
    """A `SurgeryError` as the command line shows it: exit code 1, one message on stderr."""

    exit_code = 1

    def show(self, file: Any = None) -> None:
        err.print(Text.assemble(("error:", "bold red"), f" {self.message}"), soft_wrap=True)


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
            err.print(f"stopped by {signal.Signals(number).name}", highlight=False)
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
            place.exists()  # raises for a name that no file system takes
            for above in place.parents:
                if above.exists():
                    if not above.is_dir():
                        self.fail(f"{str(value)!r}: {str(above)!r} is a file, expected a folder.", param, ctx)
                    return found
        except OSError as error:
            self.fail(f"{str(value)!r}: {error.strerror}, expected a name that can be written.", param, ctx)
        return found


def loading(name: str) -> Status:
    """A spinner while a model is loaded."""
    return err.status(Text(f"loading {name}"))


def noted(path: object, note: str) -> Text:
    """A path and, dimmed, what is there."""
    return Text.assemble(f"{path}  ", (note, "dim"))


def progress() -> Progress:
    """A progress bar on stderr with count and time left."""
    return Progress(
        TextColumn("{task.description}", style="progress.description", markup=False),
        BarColumn(),
        MofNCompleteColumn(),
        TimeRemainingColumn(),
        console=err,
        transient=True,
    )


def print_json(data: Any) -> None:
    """One JSON document on stdout."""
    json.dump(data, sys.stdout, indent=2)
    sys.stdout.write("\n")


SAVED = saved_forms()
"""How saved models are named, for help texts."""
_HOSTS = list(builders())
host_option = click.option(
    "--host",
    type=click.Choice(_HOSTS),
    help=f"Host library, for MODEL demo and random:SIZE; default: {' where it is installed, else '.join(_HOSTS)}.",
)


def model_options(function: F) -> F:
    """`--host` and `--device`."""
    function = click.option("--device", help="torch device; default: CUDA when there is one, else the CPU.")(function)
    return host_option(function)


def recipe_options(default: str | None) -> Callable[[F], F]:
    """`--recipe`, `--set` and `--adapter`."""

    def decorate(function: F) -> F:
        function = click.option("--adapter", type=click.Path(), help="Adapter folder with a fitted shortcut.")(function)
        function = click.option(
            "--set", "overrides", multiple=True, metavar="OP.FIELD=VALUE", help="Change a recipe field; repeatable."
        )(function)
        return click.option(
            "--recipe",
            default=default,
            help="Recipe name or YAML path; 'none' runs the stock model.",
            show_default=True,
        )(function)

    return decorate

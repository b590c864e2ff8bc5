"""What the commands share: options, consoles, and turning our errors into one line and an exit code."""

from __future__ import annotations

import json
import signal
import sys
from collections.abc import Callable
from typing import Any, TypeVar

import click
from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from surgery.cli.stops import Stopped, stoppable
from surgery.errors import SurgeryError

F = TypeVar("F", bound=Callable[..., Any])

out = Console()
err = Console(stderr=True)


class Failure(click.ClickException):
    """A `SurgeryError` as the command line shows it: exit code 1, one message on stderr."""

    exit_code = 1

    def show(self, file: Any = None) -> None:
        err.print(f"[bold red]error:[/] {escape(self.message)}", highlight=False, soft_wrap=True)


class Command(click.Command):
    """A command whose `SurgeryError`s become a `Failure`, and which a signal ends with exit code 128 + its number."""

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


def progress() -> Progress:
    """A progress bar on stderr with count and time left."""
    return Progress(
        TextColumn("[progress.description]{task.description}"),
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


host_option = click.option(
    "--host",
    type=click.Choice(["sam2", "transformers"]),
    help="Host library, for MODEL demo and random:SIZE; default: sam2 where it is installed, else transformers.",
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

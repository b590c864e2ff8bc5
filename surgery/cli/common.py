"""What the commands share: options, consoles, and turning our errors into one line and an exit code."""

from __future__ import annotations

import json
import os
import signal
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

import click
from rich.console import Console
from rich.text import Text

from surgery.cli.stops import Stopped, stoppable
from surgery.errors import SurgeryError
from surgery.progress import progress_bar
from surgery.recipe import Recipe

F = TypeVar("F", bound=Callable[..., Any])

# What is printed holds names and paths of the user's, brackets and colons included: no markup, no emoji, anywhere.
out = Console(markup=False, emoji=False, highlight=False, soft_wrap=True)
err = Console(stderr=True, markup=False, emoji=False, highlight=False, soft_wrap=True)


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
            place.exists()  # raises for a name that no file system takes
            for above in place.parents:
                if above.exists():
                    if not above.is_dir():
                        self.fail(f"{str(value)!r}: {str(above)!r} is a file, expected a folder.", param, ctx)
                    return found
        except OSError as error:
            self.fail(f"{str(value)!r}: {error.strerror}, expected a name that can be written.", param, ctx)
        return found


@contextmanager
def shown(text: str, total: int | None = None) -> Iterator[Callable[[], None]]:
    """One stage of work as a bar on a terminal, and nothing elsewhere; see `Bars.stage`."""
    with progress_bar(err.is_terminal) as bars, bars.stage(text, total) as step:
        yield step


def load(spec: str, host: str | None, device: str | None, **more: Any) -> Any:
    """The model of this name, loaded; see `load_model`."""
    from surgery.loading import load_model

    with shown(f"loading {spec}"):
        return load_model(spec, host, device, **more)


def chosen_recipe(recipe: str | None, overrides: tuple[str, ...], adapter: str | None) -> Recipe | None:
    """What `--recipe`, `--set` and `--adapter` ask for; None for the stock model or the adapter's own recipe."""
    from surgery.api import DEFAULT_RECIPE

    if recipe == "none":
        if overrides or adapter is not None:
            raise click.UsageError("--recipe none runs the stock model: it takes no --set and no --adapter")
        return None
    if recipe is None and adapter is not None:
        if overrides:
            raise click.UsageError("--set needs --recipe")
        return None
    return Recipe.load(recipe or DEFAULT_RECIPE, overrides)


def noted(path: object, note: str) -> Text:
    """A path and, dimmed, what is there."""
    return Text.assemble(f"{path}  ", (note, "dim"))


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


set_option = click.option(
    "--set", "overrides", multiple=True, metavar="OP.FIELD=VALUE", help="Change a recipe field; repeatable."
)
_adapter_option = click.option("--adapter", type=click.Path(), help="Adapter folder with a fitted shortcut.")


def recipe_options(stock: bool = False, adapter: bool = True) -> Callable[[F], F]:
    """`--recipe`, `--set` and, unless `adapter` is False, `--adapter`. stock: `--recipe none` is a choice, see
    `chosen_recipe`; else the default is "balanced"."""
    other, default = ("; 'none' runs the stock model", None) if stock else ("", "balanced")
    recipe = click.option("--recipe", default=default, show_default=True, help=f"Recipe name or YAML path{other}.")
    return lambda function: recipe(set_option(_adapter_option(function) if adapter else function))

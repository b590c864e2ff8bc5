"""Options that several commands have, and what they ask for."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, fields
from functools import reduce, wraps
from typing import Any

import click
import torch

from surgery import loading
from surgery.api import DEFAULT_RECIPE, sparsify
from surgery.cli.common import shown
from surgery.hosts import builders
from surgery.progress import Bars
from surgery.recipe import Recipe

SAVED = loading.saved_forms()
"""How saved models are named, for help texts."""
_HOSTS = builders()
_BUILD = [name for name, loader in _HOSTS.items() if loader.own is None]
host_option = click.option(
    "--host",
    type=click.Choice(list(_HOSTS)),
    help=f"Host library; default of demo and of SAM 2.1's sizes: {' where it is installed, else '.join(_BUILD)}; of "
    "others what they are of.",
)
set_option = click.option(
    "--set", "overrides", multiple=True, metavar="OP.FIELD=VALUE", help="Change a recipe field; repeatable."
)
recipe_option = click.option("--recipe", default=DEFAULT_RECIPE, help="Recipe name or YAML path.")
json_option = click.option("--json", "as_json", is_flag=True, help="Print JSON on stdout.")
_stock_option = click.option("--recipe", help="Recipe name or YAML path; 'none' runs the stock model.")
_adapter_option = click.option("--adapter", type=click.Path(), help="Adapter folder with a fitted shortcut.")
_device_option = click.option("--device", help="torch device; default: CUDA when there is one, else the CPU.")


def together(*options: Callable[[Any], Any]) -> Callable[[Any], Any]:
    """One decorator for several, in the order of the help text."""
    return lambda function: reduce(lambda made, option: option(made), reversed(options), function)


@dataclass(frozen=True)
class Asked:
    """What a command's MODEL, --recipe, --set, --adapter, --host and --device say."""

    model: str = ""
    host: str | None = None
    device: str | None = None
    recipe: str | None = None
    overrides: tuple[str, ...] = ()
    adapter: str | None = None

    def load(self, bars: Bars | None = None, **more: Any) -> Any:
        """The stock model; see `load_model`. bars: where to show that it is being loaded, if there are any yet."""
        text = f"loading {self.model}"
        with shown(text) if bars is None else bars.stage(text):
            return loading.load_model(self.model, self.host, self.device, **more)

    def chosen(self) -> Recipe | None:
        """The recipe; None for the stock model or the adapter's own recipe."""
        if self.recipe == "none" and (self.overrides or self.adapter is not None):
            raise click.UsageError("--recipe none runs the stock model: it takes no --set and no --adapter")
        if self.recipe is None and self.adapter is not None and self.overrides:
            raise click.UsageError("--set needs --recipe")
        if self.recipe == "none" or (self.recipe is None and self.adapter is not None):
            return None
        return Recipe.load(self.recipe or DEFAULT_RECIPE, self.overrides)

    def operate(self, model: Any, recipe: Recipe | None) -> Any:
        """Put the model under surgery, unless it is to stay stock; `recipe` as of `chosen`."""
        return model if self.recipe == "none" else sparsify(model, recipe, adapter=self.adapter)


def asking(recipe: bool = True, adapter: bool = True, stock: bool = False) -> Callable[[Any], Any]:
    """The options of `Asked`, which the command gets as `asked`.

    Args:
        recipe: whether there is one to choose. adapter: or an adapter. stock: `--recipe none` is a choice.
    """
    chosen = [_stock_option if stock else recipe_option, set_option, *([_adapter_option] * adapter)] if recipe else []
    names = {field.name for field in fields(Asked)}

    def add(function: Any) -> Any:
        @wraps(function)
        def command(**given: Any) -> Any:
            asked = Asked(**{name: given.pop(name) for name in names & given.keys()})
            return function(asked=asked, **given)

        return together(*chosen, host_option, _device_option)(command)

    return add


def set_threads(context: click.Context, parameter: click.Parameter, threads: int | None) -> int | None:
    """What --threads does, before the command runs."""
    if threads is not None:
        torch.set_num_threads(threads)
    return threads


on_ray = together(
    click.option("--ray", metavar="local|ADDRESS", help="Work on a Ray cluster, or this machine as one."),
    click.option("--actors", type=click.IntRange(min=1),
                 help="With --ray: models at once; default one a GPU, or a core where there is none."),
    click.option("--threads", type=click.IntRange(min=1), callback=set_threads,
                 help="CPU threads of torch; with --ray of each process, default cores / actors."),
    click.option("--tries", type=click.IntRange(min=1), default=3,
                 help="With --ray: how often work is begun whose process died."),
)  # fmt: skip
"""The options of a Ray cluster: ray, actors, threads and tries."""


class Listed(click.ParamType):
    """Values between commas; `read` raises ValueError for one that is not what is expected."""

    name = "text"

    def __init__(self, read: Callable[[str], Any], expected: str) -> None:
        self.read, self.expected = read, expected

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> list[Any]:
        """The values."""
        found = []
        for part in map(str.strip, value.split(",")):
            try:
                found.append(self.read(part))
            except ValueError:
                self.fail(f"{part!r} is not {self.expected}", param, ctx)
        return found

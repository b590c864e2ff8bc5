"""Options that several commands have, and what they ask for."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

import click

from surgery.cli.common import shown
from surgery.hosts import builders
from surgery.loading import saved_forms
from surgery.recipe import Recipe

F = TypeVar("F", bound=Callable[..., Any])
T = TypeVar("T")

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


def load(spec: str, host: str | None, device: str | None, **more: Any) -> Any:
    """The model of this name, loaded; see `load_model`."""
    from surgery.loading import load_model

    with shown(f"loading {spec}"):
        return load_model(spec, host, device, **more)


def listed(option: str, text: str, read: Callable[[str], T], expected: str) -> list[T]:
    """The values between the commas of an option; `read` raises ValueError for one that is not what is expected."""
    found = []
    for part in map(str.strip, text.split(",")):
        try:
            found.append(read(part))
        except ValueError:
            raise click.BadParameter(f"{part!r} is not {expected}", param_hint=option) from None
    return found

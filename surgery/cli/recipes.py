"""`surgery recipes`: what is built in, and what a recipe says."""

from __future__ import annotations

import click
from rich.table import Table
from rich.text import Text

from surgery.cli.common import Command, out, print_json
from surgery.cli.options import json_option, set_option
from surgery.recipe import Recipe, list_recipes


@click.command(cls=Command)
@click.argument("name", required=False)
@set_option
@json_option
def recipes(name: str | None, overrides: tuple[str, ...], as_json: bool) -> None:
    """List the built-in recipes, or print recipe NAME (a name or a YAML path) with every field spelt out."""
    if name is not None:
        recipe = Recipe.load(name, overrides)
        print_json(recipe.to_dict()) if as_json else click.echo(recipe.to_yaml(), nl=False)
        return
    known = list_recipes()
    if as_json:
        print_json(known)
        return
    table = Table("recipe", "for", "what it does", box=None, pad_edge=False)
    for key, description in known.items():
        fits = Recipe.load(key).metadata.fits
        table.add_row(Text(key, style="bold"), Text(", ".join(fits).replace(" ", "\u00a0")), description)
    out.print(table)

"""`surgery inspect`: what a model is made of, what would be routed, and what that saves."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import click

from surgery.cli.common import Command, out, print_json
from surgery.cli.options import listed, load, model_options, recipe_options
from surgery.cli.tables import print_table
from surgery.errors import RecipeError


@click.command(cls=Command)
@click.argument("model")
@recipe_options()
@model_options
@click.option("--windows", help="Also count these shares of the windows, whatever the recipe allows: 0.25,0.5.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON on stdout.")
def inspect(
    model: str, recipe: str, overrides: tuple[str, ...], adapter: str | None, host: str | None, device: str | None,
    windows: str | None, as_json: bool,
) -> None:  # fmt: skip
    """Show the blocks of MODEL, which of them RECIPE routes, the parameters added, and GFLOP per frame.

    Counted at the recipe's own point: as many windows as its budget allows.
    """
    from surgery.api import sparsify
    from surgery.engine import require_view
    from surgery.recipe import Recipe

    chosen = Recipe.load(recipe, overrides)
    shares = listed("--windows", windows, _share, "a share above 0 and up to 1") if windows else []
    # Only an adapter asks for the weights: it is checked against them.
    loaded = load(model, host, device, weights=adapter is not None)
    sparsify(loaded, chosen, adapter=adapter)
    view = require_view(loaded)
    if shares and view.binding.grid is None:
        raise RecipeError(f"recipe {chosen.metadata.name!r} routes no windows; leave --windows out")
    facts = describe(view, shares)
    print_json({"model": model, **facts}) if as_json else _print(model, facts)


def _share(text: str) -> float:
    if not 0 < float(text) <= 1:
        raise ValueError
    return float(text)


def describe(view: Any, shares: Sequence[float] = ()) -> dict[str, Any]:
    """Everything `inspect` shows, as plain data. `shares`: of the windows, counted beside the recipe's own."""
    from surgery.api import status
    from surgery.describe import described
    from surgery.hosts.late import LateBlock

    state, span, grid = status(view.model), view.span_info, view.binding.grid
    blocks = []
    for index, block in enumerate(view.blocks()):
        info = view.block_info(index)
        role = "dense"
        if span is not None and index in span.routed:
            role = "routed"
        elif span is not None and index == span.exit:
            role = "merge"
        elif isinstance(block, LateBlock):
            role = "routed"
        blocks.append(
            {
                "block": index,
                "channels": info.dim,
                "heads": info.heads,
                "attention": f"window {info.window}" if info.window else "global",
                "halves_map": info.pools,
                "role": role,
            }
        )
    return {
        "host": view.name,
        "image_size": view.image_size(),
        "recipe": state.recipe.metadata.name if state.recipe else None,
        "does": described(state.recipe) if state.recipe else None,
        "operations": list(state.operations),
        "windows": None
        if grid is None
        else {"rows": grid.rows, "columns": grid.cols, "side": grid.window, "count": grid.count},
        "parameters": sum(parameter.numel() for parameter in view.model.parameters()) - state.parameters_added,
        "parameters_added": state.parameters_added,
        "blocks": blocks,
        "gflop_per_frame": _costs(view, shares),
    }


def _costs(view: Any, shares: Sequence[float]) -> list[dict[str, Any]]:
    """GFLOP of encoder and memory attention: the recipe at its own point, stock, then the forced shares."""
    from surgery.bench.flops import encoder_gflop, memory_attention_gflop

    binding, grid = view.binding, view.binding.grid
    stock = {"encoder": encoder_gflop(view), "memory_attention": memory_attention_gflop(view)}
    retrieval, queries, routing = binding.retrieval, binding.queries, binding.routing
    keep = retrieval.keep if retrieval is not None and min(retrieval.keep, retrieval.keep_conditioning) < 1 else None

    def row(what: str, windows: int | None, at_most: bool = False) -> dict[str, Any]:
        share = None if windows is None or grid is None else windows / grid.count
        asked = None if queries is None or share is None else max(share, queries.budget)
        cost = {
            "encoder": stock["encoder"] if share in (None, 1.0) else encoder_gflop(view, range(windows or 0)),
            "memory_attention": memory_attention_gflop(view, keep=keep, queries=asked),
        }
        ratio = sum(stock.values()) / sum(cost.values())
        return {"what": what, "windows": windows, "at_most": at_most, **cost, "ratio": ratio}

    if grid is None or routing is None:
        own = row("recipe", None)
    elif routing.windows == "all":
        own = row("recipe", grid.count)
    else:
        own = row("recipe", max(1, round(routing.budget * grid.count)), at_most=not routing.fill)
    forced = [row("forced", max(1, round(share * grid.count))) for share in shares] if grid is not None else []
    return [own, {"what": "stock", "windows": None, "at_most": False, **stock, "ratio": 1.0}, *forced]


def _print(model: str, facts: dict[str, Any]) -> None:
    out.print(f"{model}, {facts['host']} host, {facts['image_size']} px, recipe {facts['recipe']}")
    own, stock, *_ = rows = facts["gflop_per_frame"]
    mine, whole = (row["encoder"] + row["memory_attention"] for row in (own, stock))
    point = _point(own, facts["windows"])
    out.print(f"{point}: {mine:.1f} GFLOP per frame, stock {whole:.1f}: {own['ratio']:.2f} times fewer")
    out.print(f"The recipe: {facts['does']}")
    out.print("Counted, not timed: encoder and memory attention, one object, seven memory frames, multiply-add = 2.")
    names = [_point(row, facts["windows"]) if row["what"] != "stock" else "stock" for row in rows]
    print_table(
        ("windows computed", "encoder", "memory attention", "sum", "stock / this"),
        [
            [
                name, f"{row['encoder']:.1f}", f"{row['memory_attention']:.1f}",
                f"{row['encoder'] + row['memory_attention']:.1f}", f"{row['ratio']:.2f}x",
            ]
            for name, row in zip(names, rows, strict=True)
        ],
    )  # fmt: skip
    out.print(f"{facts['parameters']:,} parameters, {facts['parameters_added']:,} added")
    blocks = []
    for first, last in _runs(facts["blocks"]):
        name = str(first["block"]) if first is last else f"{first['block']}..{last['block']}"
        blocks.append([name, str(first["channels"]), str(first["heads"]), first["attention"], _ROLES[first["role"]]])
    print_table(("blocks", "channels", "heads", "attention", "under this recipe"), blocks)
    if facts["windows"] is not None:
        windows = facts["windows"]
        out.print(f"{windows['count']} windows of {windows['side']} ({windows['rows']} x {windows['columns']})")


def _point(row: dict[str, Any], windows: dict[str, Any] | None) -> str:
    """Where a row stands."""
    if row["windows"] is None or windows is None:
        return "no windows routed"
    most = "at most " if row["at_most"] else ""
    return f"{row['what']}, {most}{row['windows']} of {windows['count']} windows"


_ROLES = {"dense": "as is", "routed": "chosen windows only", "merge": "as is; merges the windows"}


def _runs(blocks: list[dict[str, Any]]) -> list[tuple[dict[str, Any], dict[str, Any]]]:
    """Group neighbours that differ only in their number."""
    runs: list[tuple[dict[str, Any], dict[str, Any]]] = []
    for block in blocks:
        alike = runs and all(runs[-1][1][key] == block[key] for key in block if key != "block")
        if alike:
            runs[-1] = (runs[-1][0], block)
        else:
            runs.append((block, block))
    return runs

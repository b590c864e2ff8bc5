"""`surgery inspect`: what a model is made of, what would be routed, and what that saves."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import groupby
from typing import Any

import click

from surgery.cli.common import Command, out, print_json
from surgery.cli.options import Asked, asking, json_option, listed
from surgery.cli.tables import print_table
from surgery.errors import RecipeError


@click.command(cls=Command)
@click.argument("model")
@asking()
@click.option("--windows", help="Also count these shares of the windows, whatever the recipe allows: 0.25,0.5.")
@json_option
def inspect(asked: Asked, windows: str | None, as_json: bool) -> None:
    """Show the blocks of MODEL, which of them RECIPE routes, the parameters added, and GFLOP per frame.

    Counted at the recipe's own point: as many windows as its budget allows.
    """
    from surgery.engine import require_surgery
    from surgery.operations.window_routing.bound import WindowRouter
    from surgery.recipe import Recipe

    chosen = Recipe.load(str(asked.recipe), asked.overrides)
    shares = listed("--windows", windows, _share, "a share above 0 and up to 1") if windows else []
    # Only an adapter asks for the weights: it is checked against them.
    surgery = require_surgery(asked.operate(asked.load(weights=asked.adapter is not None), chosen))
    if shares and surgery.find(WindowRouter) is None:
        raise RecipeError(f"recipe {chosen.metadata.name!r} routes no windows; leave --windows out")
    facts = describe(surgery, shares)
    print_json({"model": asked.model, **facts}) if as_json else _print(asked.model, facts)


def _share(text: str) -> float:
    if not 0 < float(text) <= 1:
        raise ValueError
    return float(text)


def describe(surgery: Any, shares: Sequence[float] = ()) -> dict[str, Any]:
    """Everything `inspect` shows, as plain data. `shares`: of the windows, counted beside the recipe's own."""
    from surgery.api import status
    from surgery.describe import described
    from surgery.operations.window_routing.bound import WindowRouter

    host, router = surgery.host, surgery.find(WindowRouter)
    state, grid = status(host.model), router.grid if router is not None else None
    blocks = []
    for index in range(len(host.blocks())):
        info = host.block_info(index)
        role = router.role(index) if router is not None else "dense"
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
        "host": host.name,
        "image_size": host.image_size(),
        "recipe": state.recipe.metadata.name if state.recipe else None,
        "does": described(state.recipe) if state.recipe else None,
        "operations": list(state.operations),
        "windows": None
        if grid is None
        else {"rows": grid.rows, "columns": grid.cols, "side": grid.window, "count": grid.count},
        "parameters": sum(parameter.numel() for parameter in host.model.parameters()) - state.parameters_added,
        "parameters_added": state.parameters_added,
        "blocks": blocks,
        "gflop_per_frame": _costs(surgery, shares),
    }


def _costs(surgery: Any, shares: Sequence[float]) -> list[dict[str, Any]]:
    """GFLOP of encoder and memory attention: the recipe at its own point, stock, then the forced shares."""
    from surgery.core.cost import CostModel
    from surgery.operations.window_routing.bound import WindowRouter

    model, router = CostModel(surgery), surgery.find(WindowRouter)
    stock = model.stock

    def row(what: str, windows: int | None, at_most: bool = False) -> dict[str, Any]:
        kept = {} if windows is None or router is None else {"windows": windows / router.grid.count}
        cost = model.parts(kept)
        ratio = sum(stock.values()) / sum(cost.values())
        return {"what": what, "windows": windows, "at_most": at_most, "ratio": ratio, **_named(cost)}

    if router is None:
        own, forced = row("recipe", None), []
    else:
        count, settings = router.grid.count, router.settings
        routed = settings.windows == "object"
        most = max(1, round(settings.budget * count)) if routed else count
        own = row("recipe", most, at_most=routed and not settings.fill)
        forced = [row("forced", max(1, round(share * count))) for share in shares]
    return [own, {"what": "stock", "windows": None, "at_most": False, "ratio": 1.0, **_named(stock)}, *forced]


def _named(cost: Mapping[Any, float]) -> dict[str, float]:
    return {str(part): value for part, value in cost.items()}


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
    # Neighbours that differ only in their number are one line.
    for _, run in groupby(facts["blocks"], key=lambda block: {**block, "block": None}):
        first, *_, last = (alike := list(run)) * 2
        name = str(first["block"]) if len(alike) == 1 else f"{first['block']}..{last['block']}"
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

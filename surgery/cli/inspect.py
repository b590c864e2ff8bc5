"""`surgery inspect`: what a model is made of, what would be routed, and what that saves."""

from __future__ import annotations

from itertools import groupby
from typing import Any

import click

from surgery.api import status
from surgery.cli.common import Command, out, print_json, print_table
from surgery.cli.options import Asked, asking, json_option
from surgery.core.cost import CostModel
from surgery.describe import described
from surgery.engine import require_surgery
from surgery.operations.window_routing.bound import WindowRouter
from surgery.recipe import Recipe


@click.command(cls=Command)
@click.argument("model")
@asking()
@json_option
def inspect(asked: Asked, as_json: bool) -> None:
    """Show the blocks of MODEL, which of them RECIPE routes, the parameters added, and GFLOP per frame.

    Counted at the recipe's own point: as many windows as its budget allows.
    """
    chosen = Recipe.load(str(asked.recipe), asked.overrides)
    # Only an adapter asks for the weights: it is checked against them.
    surgery = require_surgery(asked.operate(asked.load(weights=asked.adapter is not None), chosen))
    facts = describe(surgery)
    print_json({"model": asked.model, **facts}) if as_json else _print(asked.model, facts)


def describe(surgery: Any) -> dict[str, Any]:
    """Everything `inspect` shows, as plain data."""
    host, router = surgery.host, surgery.find(WindowRouter)
    state, grid = status(host.model), router.grid if router is not None else None
    infos = [host.block_info(index) for index in range(len(host.blocks()))]
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
        "blocks": [
            {
                "block": index,
                "channels": info.dim,
                "heads": info.heads,
                "attention": f"window {info.window}" if info.window else "global",
                "halves_map": info.pools,
                "role": router.role(index) if router is not None else "dense",
            }
            for index, info in enumerate(infos)
        ],
        "gflop_per_frame": _costs(surgery),
    }


def _costs(surgery: Any) -> list[dict[str, Any]]:
    """GFLOP of encoder and memory attention: the recipe at its own point, and stock."""
    model, router = CostModel(surgery), surgery.find(WindowRouter)
    own, windows, at_most = model.parts({}), None, False
    if router is not None:
        windows = router.allowed
        at_most = router.settings.windows == "object" and not router.settings.fill
        own = model.parts({"windows": windows / router.grid.count})
    rows: list[dict[str, Any]] = []
    for what, kept, most, cost in (("recipe", windows, at_most, own), ("stock", None, False, model.stock)):
        ratio = sum(model.stock.values()) / sum(cost.values())
        parts = {str(part): flops for part, flops in cost.items()}
        rows.append({"what": what, "windows": kept, "at_most": most, "ratio": ratio, **parts})
    return rows


def _print(model: str, facts: dict[str, Any]) -> None:
    out.print(f"{model}, {facts['host']} host, {facts['image_size']} px, recipe {facts['recipe']}")
    own, _ = rows = facts["gflop_per_frame"]
    windows, point = facts["windows"], "no windows routed"
    if windows is not None:
        point = f"recipe, {'at most ' * own['at_most']}{own['windows']} of {windows['count']} windows"
    sums = [row["encoder"] + row["memory_attention"] for row in rows]
    out.print(f"{point}: {sums[0]:.1f} GFLOP per frame, stock {sums[1]:.1f}: {own['ratio']:.2f} times fewer")
    out.print(f"The recipe: {facts['does']}")
    out.print("Counted, not timed: encoder and memory attention, one object, seven memory frames, multiply-add = 2.")
    print_table(
        ("windows computed", "encoder", "memory attention", "sum", "stock / this"),
        [
            [name, f"{row['encoder']:.1f}", f"{row['memory_attention']:.1f}", f"{total:.1f}", f"{row['ratio']:.2f}x"]
            for name, row, total in zip((point, "stock"), rows, sums, strict=True)
        ],
    )
    out.print(f"{facts['parameters']:,} parameters, {facts['parameters_added']:,} added")
    blocks = []
    # Neighbours that differ only in their number are one line.
    for _, run in groupby(facts["blocks"], key=lambda block: {**block, "block": None}):
        first, *_, last = (alike := list(run)) * 2
        name = str(first["block"]) if len(alike) == 1 else f"{first['block']}..{last['block']}"
        blocks.append([name, str(first["channels"]), str(first["heads"]), first["attention"], _ROLES[first["role"]]])
    print_table(("blocks", "channels", "heads", "attention", "under this recipe"), blocks)
    if windows is not None:
        out.print(f"{windows['count']} windows of {windows['side']} ({windows['rows']} x {windows['columns']})")


_ROLES = {"dense": "as is", "routed": "chosen windows only", "merge": "as is; merges the windows"}

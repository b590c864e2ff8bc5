"""`surgery inspect`: what a model is made of, what would be routed, and what that saves."""

from __future__ import annotations

from typing import Any

import click
from rich.table import Table
from rich.text import Text

from surgery.cli.common import Command, loading, model_options, out, print_json, recipe_options

_SHARES = (0.125, 0.25, 0.5, 1.0)


@click.command(cls=Command)
@click.argument("model")
@recipe_options(default="balanced")
@model_options
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def inspect(
    model: str, recipe: str, overrides: tuple[str, ...], adapter: str | None, host: str | None, device: str | None,
    as_json: bool,
) -> None:  # fmt: skip
    """Show the blocks of MODEL, which of them RECIPE routes, the parameters added, and GFLOP per frame."""
    from surgery.api import require_view, sparsify
    from surgery.loading import load_model
    from surgery.recipe import Recipe

    chosen = Recipe.load(recipe, overrides)
    with loading(model):
        loaded = load_model(model, host, device)
    sparsify(loaded, chosen, adapter=adapter)
    facts = describe(require_view(loaded))
    print_json({"model": model, **facts}) if as_json else _print(model, facts)


def describe(view: Any) -> dict[str, Any]:
    """Everything `inspect` shows, as plain data."""
    from surgery.api import status
    from surgery.bench.flops import encoder_gflop, memory_attention_gflop, predicted
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
    keep = state.recipe.retrieval.keep if state.recipe and state.recipe.retrieval else None
    dense = predicted(view, None, None)
    rows = [{"windows": None, "encoder": dense.encoder, "memory_attention": dense.memory_attention, "ratio": 1.0}]
    pruned = memory_attention_gflop(view, keep=keep) if keep is not None and keep < 1 else dense.memory_attention
    counts = sorted({max(1, round(share * grid.count)) for share in _SHARES}) if grid is not None else [None]
    for count in counts:
        encoder = dense.encoder if count is None else encoder_gflop(view, range(count))
        rows.append(
            {
                "windows": count,
                "encoder": encoder,
                "memory_attention": pruned,
                "ratio": (dense.encoder + dense.memory_attention) / (encoder + pruned),
            }
        )
    return {
        "host": view.name,
        "image_size": view.image_size(),
        "recipe": state.recipe.metadata.name if state.recipe else None,
        "operations": list(state.operations),
        "windows": None
        if grid is None
        else {"rows": grid.rows, "columns": grid.cols, "side": grid.window, "count": grid.count},
        "parameters": sum(parameter.numel() for parameter in view.model.parameters()) - state.parameters_added,
        "parameters_added": state.parameters_added,
        "blocks": blocks,
        "gflop_per_frame": rows,
    }


def _print(model: str, facts: dict[str, Any]) -> None:
    about = f", {facts['host']} host, {facts['image_size']} px, recipe {facts['recipe']}"
    out.print(Text.assemble((model, "bold"), about))
    out.print(f"{facts['parameters']:,} parameters, {facts['parameters_added']:,} added", highlight=False)
    table = Table("blocks", "channels", "heads", "attention", "under this recipe", box=None, pad_edge=False)
    for first, last in _runs(facts["blocks"]):
        name = str(first["block"]) if first is last else f"{first['block']}..{last['block']}"
        table.add_row(name, str(first["channels"]), str(first["heads"]), first["attention"], _ROLES[first["role"]])
    out.print(table)
    if facts["windows"] is not None:
        windows = facts["windows"]
        out.print(
            f"{windows['count']} windows of {windows['side']} ({windows['rows']} x {windows['columns']})",
            highlight=False,
        )
    flops = Table("windows computed", "encoder", "memory attention", "sum", "dense / this", box=None, pad_edge=False)
    for row in facts["gflop_per_frame"]:
        name = "stock" if row is facts["gflop_per_frame"][0] else str(row["windows"] or "all")
        total = row["encoder"] + row["memory_attention"]
        flops.add_row(
            name, f"{row['encoder']:.1f}", f"{row['memory_attention']:.1f}", f"{total:.1f}", f"{row['ratio']:.2f}x"
        )
    out.print("GFLOP per frame, one object, seven memory frames, multiply-add = 2 (counted, not timed):")
    out.print(flops)


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

"""A route as a compiled encoder sees it: what kind of call it makes, and which sizes are symbols."""

from __future__ import annotations

from collections.abc import Hashable, Iterator
from typing import Any

import torch
from torch import Tensor

from surgery.core.values import rebuilt, tensors
from surgery.core.windows import Packing, WindowGrid
from surgery.operations.window_routing.span import Route


def route_kind(route: Route | None, grid: WindowGrid, fixed: bool) -> tuple[Hashable, ...]:
    """What kind of call an encoder call under `route` is; its sizes are marked as symbols unless they are `fixed`.

    Not fixed on a padded grid: its border windows hold fewer tokens, so that the number does not fix the shape.
    """
    if route is None:
        return ("plain",)
    if route.dense:
        return ("dense", route.observe, route.tiles is not None, route.stage4 is not None)
    assert route.packing is not None
    fixed = fixed and (grid.filled or not grid.padded)
    if not fixed:
        settle_route(route, grid)
    count = route.packing.ids.shape[0]
    pieces = 0 if route.tiles is None or route.tiles.pieces is None else route.tiles.pieces.shape[0]
    rest = 0 if route.rest is None else 1 if route.rest_packing is None else route.rest_packing.ids.shape[0]
    return (
        "routed",
        # torch makes a graph of its own for size one, and for size zero.
        count if fixed else min(count, 2),
        rest if fixed else min(rest, 2),
        route.memory is not None,
        route.real is not None,
        # A window may be a single piece.
        pieces if fixed else min(pieces, 2),
        route.stage4 is not None,
    )


def settle_route(route: Route, grid: WindowGrid) -> None:
    """Make a route look like others to a compiled encoder: sizes that follow the number of windows are symbols."""
    for packing in _packings(route):
        # Chosen windows that are all full by chance would be another kind of call.
        if packing.slots is None and grid.padded and not grid.filled and route.real is None:
            packing.slots = torch.arange(packing.ids.shape[0] * packing.area, device=packing.ids.device)
    tiles, stage4 = route.tiles, route.stage4
    indices: list[Any] = [route.chosen, route.rest, route.real]
    indices += [(packing.ids, packing.slots, packing.filling) for packing in _packings(route)]
    if tiles is not None:
        indices += [tiles.pieces, tiles.tokens, tiles.order, tiles.lines]
    if stage4 is not None:
        indices.append(stage4.chosen)
    for tensor in tensors(indices):
        torch._dynamo.maybe_mark_dynamic(tensor, 0)


def own_route(route: Route) -> None:
    """Copy what a compiled encoder noted out of memory that its next call may use again."""
    for home, names in (
        (route, ("seen_input", "seen_output", "chosen_branch")),
        (route.tiles, ("kept", "latest")),
        (route.stage4, ("seen",)),
        (route.globals, ("seen",)),
    ):
        for name in names if home is not None else ():
            setattr(home, name, rebuilt(getattr(home, name), Tensor.clone))


def _packings(route: Route) -> Iterator[Packing]:
    stage4 = route.stage4.packing if route.stage4 is not None else None
    yield from (packing for packing in (route.packing, route.rest_packing, stage4) if packing is not None)

"""A route as a compiled encoder sees it: what kind of call it makes, and which sizes are symbols."""

from __future__ import annotations

from collections.abc import Hashable, Iterator

import torch
from torch import Tensor

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
    for tensor in _indices(route):
        torch._dynamo.maybe_mark_dynamic(tensor, 0)


def own_route(route: Route) -> None:
    """Copy what a compiled encoder noted out of memory that its next call may use again."""
    route.seen_input, route.seen_output = _own(route.seen_input), _own(route.seen_output)
    route.chosen_branch = _own(route.chosen_branch)
    if route.tiles is not None:
        tiles = route.tiles
        tiles.kept[:], tiles.latest = [_own(each) for each in tiles.kept], _own(tiles.latest)
    if route.stage4 is not None:
        route.stage4.seen = _own(route.stage4.seen)
    if route.globals is not None:
        route.globals.seen = [each.clone() for each in route.globals.seen]


def _own(tensor: Tensor | None) -> Tensor | None:
    return None if tensor is None else tensor.clone()


def _packings(route: Route) -> Iterator[Packing]:
    stage4 = route.stage4.packing if route.stage4 is not None else None
    yield from (packing for packing in (route.packing, route.rest_packing, stage4) if packing is not None)


def _indices(route: Route) -> Iterator[Tensor]:
    tiles, stage4 = route.tiles, route.stage4
    given = [route.chosen, route.rest, route.real]
    given += [each for packing in _packings(route) for each in (packing.ids, packing.slots, packing.filling)]
    if tiles is not None:
        given += [tiles.pieces, tiles.tokens, tiles.order, *tiles.lines.values()]
    if stage4 is not None:
        given.append(stage4.chosen)
    yield from (tensor for tensor in given if tensor is not None)

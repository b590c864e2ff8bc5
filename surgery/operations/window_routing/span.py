"""One routed pass through the span: pack, run the blocks on the chosen windows, unpack.

A span is `(entry, exit, blocks)`: at the entry the stage-3 map is split into chosen and skipped windows, the blocks up
to the exit see the chosen ones only, and the exit block (the last global one) sees the whole map again.

Between blocks chosen tokens travel as [1, N, 1, C] (batch, tokens, 1, channels), window after window, real tokens only;
windowed attention pads them exactly as Hiera does: zeros after the first norm.
"""

from __future__ import annotations

import math
from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from surgery.core.early import sent
from surgery.core.values import rebuilt, tensors
from surgery.core.windows import Packing, WindowGrid
from surgery.operations.window_routing.global_blocks import DenseGlobals, GlobalRoute
from surgery.operations.window_routing.matching import Matching, matching, normed
from surgery.operations.window_routing.reuse import RunMemory, noted
from surgery.operations.window_routing.shortcut import Shortcut
from surgery.operations.window_routing.stage4 import Stage4Route
from surgery.operations.window_routing.tiles import TileMemory, TileRoute


@dataclass(eq=False)
class Route:
    """The routing of one frame: index tensors in, by-products of the pass out.

    On a `dense` frame the stock blocks run and only the span's input and output are noted (when `observe` asks for
    them). Compiled graphs guard on the plain attributes, so none of them may change with the choice of windows.
    memory: of the run in progress. matching: of skipped windows, where they reuse anything.
    tiles: the routing of the blocks before the span, which then also says what skipped windows return. stage4: the
    routing of stage 4, or None where it runs whole. globals: what the inner global blocks do with the others, or None
    where they know the chosen tokens only.
    """

    dense: bool
    observe: bool = False
    chosen: Tensor | None = None
    packing: Packing | None = None
    rest: Tensor | None = None
    rest_packing: Packing | None = None
    order: Tensor | None = None
    real: Tensor | None = None
    memory: RunMemory | None = None
    matching: Matching | None = None
    seen_input: Tensor | None = None
    seen_output: Tensor | None = None
    skipped: Tensor | None = None
    chosen_branch: Tensor | None = None
    chosen_entering: Tensor | None = None
    tiles: TileRoute | None = None
    stage4: Stage4Route | None = None
    globals: GlobalRoute | DenseGlobals | None = None

    def kind(self, grid: WindowGrid, fixed: bool) -> tuple[Hashable, ...]:
        """What kind of call an encoder call under this route is; its sizes are marked as symbols unless `fixed`.

        Not fixed on a padded grid: its border windows hold fewer tokens, so that the number does not fix the shape.
        """
        if self.dense:
            return ("dense", self.observe, self.tiles is not None, self.stage4 is not None)
        assert self.packing is not None
        pieces = 0 if self.tiles is None or self.tiles.pieces is None else self.tiles.pieces.shape[0]
        rest = 0 if self.rest is None else 1 if self.rest_packing is None else self.rest_packing.ids.shape[0]
        # A window may be a single piece.
        sizes = [self.packing.ids.shape[0], rest, pieces]
        if not fixed or (grid.padded and not grid.filled):
            self.settle(grid)
            # torch makes a graph of its own for size one, and for size zero.
            sizes = [min(size, 2) for size in sizes]
        return ("routed", *sizes, self.memory is not None, self.real is not None, self.stage4 is not None)

    def settle(self, grid: WindowGrid) -> None:
        """Look like others to a compiled encoder: sizes that follow the number of windows are symbols."""
        tiles, stage4 = self.tiles, self.stage4
        indices: list[Any] = [self.chosen, self.rest, self.real]
        packings, matchings = [self.packing, self.rest_packing], [self.matching]
        if tiles is not None:
            indices += [tiles.pieces, tiles.tokens, tiles.order, tiles.lines]
            matchings += tiles.matching.values()
        if stage4 is not None:
            indices.append(stage4.chosen)
            packings += [stage4.packing, stage4.matching.packing if stage4.matching is not None else None]
            matchings.append(stage4.matching)
        for packing in packings:
            # Windows that are all full by chance would be another kind of call.
            if packing is not None and packing.slots is None and grid.padded and not grid.filled and self.real is None:
                packing.slots = torch.arange(packing.ids.shape[0] * packing.area, device=packing.ids.device)
        indices += [packings, [(each.own, each.places, each.packing) for each in matchings if each is not None]]
        for tensor in tensors(indices):
            torch._dynamo.maybe_mark_dynamic(tensor, 0)

    def own(self) -> None:
        """Copy what a compiled encoder noted out of memory that its next call may use again."""
        for home, names in (
            (self, ("seen_input", "seen_output", "chosen_branch", "chosen_entering")),
            (self.tiles, ("kept", "now", "branch")),
            (self.stage4, ("seen",)),
            (self.globals, ("seen",)),
        ):
            for name in names if home is not None else ():
                setattr(home, name, rebuilt(getattr(home, name), Tensor.clone))


def make_route(
    grid: WindowGrid,
    windows: Sequence[int],
    device: torch.device,
    memory: RunMemory | None,
    published_padding: bool = False,
    with_rest_packing: bool = False,
    reuses: bool = False,
) -> Route:
    """Index tensors for computing `windows` (sorted, at least one) and skipping the rest.

    Args:
        grid: window geometry.
        windows: ids to compute.
        device: where the feature map lives.
        memory: what the video remembers of the span for the temporal shortcut, or None for the published shortcut.
        published_padding: pad before the first norm and let padding take part in the residual stream, as the released
            code does for base+.
        with_rest_packing: also build the packing of skipped windows (for shortcuts that are not pointwise).
        reuses: skipped windows reuse what they last were.
    """
    others = grid.others(windows)
    chosen, rest = grid.token_ids(windows), grid.token_ids(others)
    packing = grid.packing(windows, device)
    real = None
    if published_padding and packing.slots is not None:
        real = packing.slots
        packing = Packing(packing.ids, None, grid.area)

    left = sent(rest, device) if others else None
    rest_packing = grid.packing(others, device) if (with_rest_packing or reuses) and others else None
    where = matching(grid, rest_packing, left) if reuses and rest_packing is not None and left is not None else None
    return Route(
        dense=False,
        chosen=sent(chosen, device),
        packing=packing,
        rest=left,
        rest_packing=rest_packing,
        order=sent(grid.back([*windows, *others]), device),
        real=real,
        memory=memory,
        matching=where,
    )


def enter(feature_map: Tensor, route: Route, shortcut: Shortcut) -> Tensor:
    """Split the map [1, H, W, C]: run the shortcut on skipped windows, return the chosen tokens [1, N, 1, C].

    With tiles the input may be pieces [n, s, s, C], see `TileRoute.enter`.
    """
    assert route.chosen is not None and route.packing is not None
    flat = feature_map.reshape(-1, feature_map.shape[-1])
    if route.tiles is not None:
        chosen, route.skipped = route.tiles.enter(feature_map, route.chosen, route.matching, shortcut)
        return chosen[None, :, None]
    chosen = flat.index_select(0, route.chosen)
    memory = route.memory
    route.skipped = None
    if memory is not None:
        route.chosen_branch = shortcut(chosen, route.packing)
        route.chosen_entering = normed(chosen)
    if route.rest is not None:
        rest = flat.index_select(0, route.rest)
        route.skipped = shortcut(rest, route.rest_packing)
        if memory is not None:
            assert route.matching is not None
            route.skipped = memory.skipped(rest, route.skipped, route.matching)
    if route.real is not None:
        packed = flat.new_zeros(route.packing.ids.shape[0] * route.packing.area, flat.shape[-1])
        chosen = packed.index_copy(0, route.real, chosen)
    return chosen[None, :, None]


def leave(tokens: Tensor, route: Route, feature_shape: Sequence[int]) -> Tensor:
    """Merge chosen tokens [1, N, 1, C] and the shortcut's output back into a map of `feature_shape` [1, H, W, C]."""
    assert route.order is not None
    chosen = tokens[0, :, 0]
    if route.real is not None:
        chosen = chosen.index_select(0, route.real)
    if route.memory is not None or route.tiles is not None:
        route.seen_output = chosen
    merged = chosen if route.skipped is None else torch.cat([chosen, route.skipped.to(chosen.dtype)])
    return merged.index_select(0, route.order).reshape(1, *feature_shape[1:3], merged.shape[-1])


def updated_memory(route: Route, shortcut: Shortcut, grid: WindowGrid) -> RunMemory | None:
    """The memory of the span after this frame, or None when the route did not observe it.

    Runs outside compiled regions; called once per encoded frame.
    """
    if route.dense:
        if route.seen_input is None or route.seen_output is None:
            return None
        flat = route.seen_input.reshape(-1, route.seen_input.shape[-1])
        return noted(flat, route.seen_output.reshape(flat.shape), shortcut.whole(flat, grid))
    if route.memory is None or route.seen_output is None or route.chosen_branch is None:
        return None
    return updated(route)


def updated(route: Route) -> RunMemory:
    """The memory of the run that a routed frame has left."""
    assert route.chosen is not None and route.packing is not None
    assert route.memory is not None and route.seen_output is not None
    assert route.chosen_branch is not None and route.chosen_entering is not None
    reused = route.seen_output - route.chosen_branch
    return route.memory.renewed(route.packing, route.chosen, reused, route.chosen_entering)


def updated_tiles(route: Route, shortcut: Shortcut, picture: Tensor | None = None) -> TileMemory:
    """The tiles' memory after this frame, whose span output was noted.

    Args:
        picture: fp32 [3, H, W] of the frame, with extra pieces; shortcut: then, what corrects with the span's input.
    """
    tiles, output = route.tiles, route.seen_output
    assert tiles is not None and output is not None
    levels, last = tuple(tiles.kept), tiles.memory
    if route.dense:
        output = output.reshape(-1, output.shape[-1])
        branch = None
        if picture is not None and route.seen_input is not None:
            branch = shortcut(route.seen_input.reshape(output.shape))
            output = output - branch
        side = math.isqrt(output.shape[0])
        ages = torch.zeros(tiles.across**2, device=output.device) if branch is not None else None
        return TileMemory(RunMemory(output, tiles.compared(side)), levels, branch, picture, ages)
    assert last is not None and tiles.now is not None and tiles.tokens is not None and tiles.pieces is not None
    assert route.chosen is not None and route.packing is not None
    new = TileMemory(last.span, levels)
    if tiles.branch is not None and last.branch is not None and last.picture is not None and picture is not None:
        assert last.ages is not None
        branch = last.branch.index_copy(0, tiles.tokens, tiles.branch.to(last.branch.dtype))
        chosen = branch.index_select(0, route.chosen)
        new.branch = last.branch.index_copy(0, route.chosen, chosen)
        output = output - chosen.to(output.dtype)
        new.picture = renewed_picture(last.picture, picture, tiles.tokens)
        new.ages = (last.ages + 1).index_fill(0, tiles.pieces, 0)
    new.span = last.span.renewed(route.packing, route.chosen, output, tiles.now.index_select(0, route.chosen))
    return new


def renewed_picture(last: Tensor, picture: Tensor, tokens: Tensor) -> Tensor:
    """`last`, fp32 [3, H, W], with `picture` at `tokens`, int64 [N]."""
    now = picture.flatten(1).index_select(1, tokens)
    return last.flatten(1).index_copy(1, tokens, now).reshape(last.shape)

"""One routed pass through the span: pack, run the blocks on the chosen windows, unpack.

A span is `(entry, exit, blocks)`: at the entry the stage-3 map is split into chosen and skipped windows, the blocks up
to the exit see the chosen ones only, and the exit block (the last global one) sees the whole map again.

Between blocks chosen tokens travel as [1, N, 1, C] (batch, tokens, 1, channels), window after window, real tokens only;
windowed attention pads them exactly as Hiera does: zeros after the first norm.
"""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from surgery.core.early import sent
from surgery.core.values import rebuilt, tensors
from surgery.core.windows import Packing, WindowGrid
from surgery.operations.window_routing.global_blocks import DenseGlobals, GlobalRoute
from surgery.operations.window_routing.shortcut import Shortcut
from surgery.operations.window_routing.stage4 import Stage4Route
from surgery.operations.window_routing.tiles import TileMemory, TileRoute


@dataclass(eq=False)
class SpanMemory:
    """What a video remembers of the span (temporal shortcut): per token, when its window was last computed.

    output: [H * W, C] span output then; branch: [H * W, C] shortcut output then.
    """

    output: Tensor
    branch: Tensor


@dataclass(eq=False)
class Route:
    """The routing of one frame: index tensors in, by-products of the pass out.

    On a `dense` frame the stock blocks run and only the span's input and output are noted (when `observe` asks for
    them). Compiled graphs guard on the plain attributes, so none of them may change with the choice of windows.
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
    memory: SpanMemory | None = None
    seen_input: Tensor | None = None
    seen_output: Tensor | None = None
    skipped: Tensor | None = None
    chosen_branch: Tensor | None = None
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
        for packing in (self.packing, self.rest_packing, stage4.packing if stage4 is not None else None):
            if packing is None:
                continue
            # Chosen windows that are all full by chance would be another kind of call.
            if packing.slots is None and grid.padded and not grid.filled and self.real is None:
                packing.slots = torch.arange(packing.ids.shape[0] * packing.area, device=packing.ids.device)
            indices += [packing.ids, packing.slots, packing.filling]
        if tiles is not None:
            indices += [tiles.pieces, tiles.tokens, tiles.order, tiles.lines]
        if stage4 is not None:
            indices.append(stage4.chosen)
        for tensor in tensors(indices):
            torch._dynamo.maybe_mark_dynamic(tensor, 0)

    def own(self) -> None:
        """Copy what a compiled encoder noted out of memory that its next call may use again."""
        for home, names in (
            (self, ("seen_input", "seen_output", "chosen_branch")),
            (self.tiles, ("kept", "latest")),
            (self.stage4, ("seen",)),
            (self.globals, ("seen",)),
        ):
            for name in names if home is not None else ():
                setattr(home, name, rebuilt(getattr(home, name), Tensor.clone))


def make_route(
    grid: WindowGrid,
    windows: Sequence[int],
    device: torch.device,
    memory: SpanMemory | None,
    published_padding: bool = False,
    with_rest_packing: bool = False,
) -> Route:
    """Index tensors for computing `windows` (sorted, at least one) and skipping the rest.

    Args:
        grid: window geometry.
        windows: ids to compute.
        device: where the feature map lives.
        memory: the video's span memory for the temporal shortcut, or None for the published shortcut.
        published_padding: pad before the first norm and let padding take part in the residual stream, as the released
            code does for base+.
        with_rest_packing: also build the packing of skipped windows (for shortcuts that are not pointwise).
    """
    taken = set(windows)
    others = [window for window in range(grid.count) if window not in taken]
    chosen, rest = grid.token_ids(windows), grid.token_ids(others)
    packing = grid.packing(windows, device)
    real = None
    if published_padding and packing.slots is not None:
        real = packing.slots
        packing = Packing(packing.ids, None, grid.area)

    return Route(
        dense=False,
        chosen=sent(chosen, device),
        packing=packing,
        rest=sent(rest, device) if others else None,
        rest_packing=grid.packing(others, device) if with_rest_packing and others else None,
        order=sent(grid.back([*windows, *others]), device),
        real=real,
        memory=memory,
    )


def enter(feature_map: Tensor, route: Route, shortcut: Shortcut) -> Tensor:
    """Split the map [1, H, W, C]: run the shortcut on skipped windows, return the chosen tokens [1, N, 1, C].

    With tiles the input may be pieces [n, s, s, C], see `TileRoute.enter`.
    """
    assert route.chosen is not None and route.packing is not None
    flat = feature_map.reshape(-1, feature_map.shape[-1])
    if route.tiles is not None:
        chosen, route.skipped = route.tiles.enter(feature_map, route.chosen, route.rest, shortcut)
        return chosen[None, :, None]
    chosen = flat.index_select(0, route.chosen)
    memory = route.memory
    if memory is not None:
        route.chosen_branch = shortcut(chosen, route.packing)
    if route.rest is not None:
        branch = shortcut(flat.index_select(0, route.rest), route.rest_packing)
        if memory is not None:
            change = branch - memory.branch.index_select(0, route.rest)
            branch = memory.output.index_select(0, route.rest) + change
        route.skipped = branch
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


def updated_memory(route: Route, shortcut: Shortcut, grid: WindowGrid) -> SpanMemory | None:
    """The span memory after this frame, or None when the route did not observe it.

    Runs outside compiled regions; called once per encoded frame.
    """
    if route.dense:
        if route.seen_input is None or route.seen_output is None:
            return None
        flat = route.seen_input.reshape(-1, route.seen_input.shape[-1])
        branch = shortcut.whole(flat, grid)
        return SpanMemory(route.seen_output.reshape(-1, flat.shape[-1]), branch)
    if route.memory is None or route.seen_output is None or route.chosen_branch is None:
        return None
    assert route.chosen is not None and route.packing is not None
    output, branch = route.memory.output, route.memory.branch
    return SpanMemory(
        route.packing.renewed(output, route.seen_output, route.chosen),
        route.packing.renewed(branch, route.chosen_branch, route.chosen),
    )


def updated_tiles(route: Route, shortcut: Shortcut, picture: Tensor | None = None) -> TileMemory:
    """The tiles' memory after this frame, whose span output was noted.

    Args:
        picture: fp32 [3, H, W] of the frame, with extra pieces; shortcut: then, what corrects with the span's input.
    """
    tiles, output = route.tiles, route.seen_output
    assert tiles is not None and output is not None
    # Hosts return maps of any layout; one layout keeps compiled graphs from multiplying.
    levels = tuple(level.contiguous() for level in tiles.kept if level is not None)
    assert len(levels) == len(tiles.kept)
    if route.dense:
        new = TileMemory(output.reshape(-1, output.shape[-1]), levels)
        if picture is not None and route.seen_input is not None:
            new.branch = shortcut(route.seen_input.reshape(new.output.shape))
            # A compiled graph would be made anew for one tensor in both places.
            new.latest = new.branch.clone()
            new.picture, new.ages = picture, torch.zeros(tiles.across**2, device=picture.device)
        return new
    last = tiles.memory
    assert last is not None and route.chosen is not None and route.packing is not None
    new = TileMemory(route.packing.renewed(last.output, output, route.chosen), levels)
    if tiles.latest is None or last.branch is None or last.picture is None or last.ages is None or picture is None:
        return new
    assert tiles.tokens is not None and tiles.pieces is not None
    new.latest = tiles.latest
    new.branch = last.branch.index_copy(0, route.chosen, tiles.latest.index_select(0, route.chosen))
    new.picture = renewed_picture(last.picture, picture, tiles.tokens)
    new.ages = (last.ages + 1).index_fill(0, tiles.pieces, 0)
    return new


def renewed_picture(last: Tensor, picture: Tensor, tokens: Tensor) -> Tensor:
    """`last`, fp32 [3, H, W], with `picture` at `tokens`, int64 [N]."""
    now = picture.flatten(1).index_select(1, tokens)
    return last.flatten(1).index_copy(1, tokens, now).reshape(last.shape)

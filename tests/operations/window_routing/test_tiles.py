"""Pieces under the windows: what nests, gather and merge, the order in which the span takes their tokens."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from surgery.core.windows import WindowGrid
from surgery.errors import UnsupportedModelError
from surgery.operations.window_routing.matching import compared
from surgery.operations.window_routing.reuse import RunMemory
from surgery.operations.window_routing.shortcut import IdentityShortcut
from surgery.operations.window_routing.span import Route, enter, leave, make_route, updated_tiles
from surgery.operations.window_routing.tiles import TileGrid, TileMemory, piece_side, piece_urgency
from tests.core.geometry import few, window_of

CPU = torch.device("cpu")
HIERA = [(8, False), (8, True), (4, False), (4, True)]
"""Blocks of SAM 2 before the span: (window, pools)."""


@st.composite
def tiles_and_windows(draw: st.DrawFn) -> tuple[TileGrid, list[int]]:
    """Tiles of a square map, padded windows included, and a sorted, non-empty subset of its windows."""
    side = draw(st.integers(1, 3))
    grid = WindowGrid(*[side * draw(st.integers(2, 8))] * 2, side * draw(st.integers(1, 4)))
    tiles = TileGrid(grid, side, [(4 * grid.width, 2), (2 * grid.width, 3), (grid.width, 5)])
    windows = draw(st.sets(st.integers(0, grid.count - 1), min_size=1))
    return tiles, sorted(windows)


def numbered(side: int, channels: int, start: int = 0) -> Tensor:
    """[1, side, side, channels] without two equal values."""
    count = side * side * channels
    return torch.arange(start, start + count, dtype=torch.float32).reshape(1, side, side, channels)


def memory_of(tiles: TileGrid) -> TileMemory:
    blank = tiles.blank(5, CPU, torch.float32)

    def lower(run: RunMemory) -> RunMemory:
        return RunMemory(run.reused - 1, run.entering)

    return TileMemory(lower(blank.span), tuple(map(lower, blank.levels)))


def chosen_tokens(tiles: TileGrid, windows: list[int], side: int) -> Tensor:
    """bool [side, side]: tokens of a map `side / grid.width` times as fine that lie in `windows`, by visiting each."""
    grid, scale = tiles.grid, side // tiles.grid.width
    inside = [[window_of(grid, row // scale, col // scale) in windows for col in range(side)] for row in range(side)]
    return torch.tensor(inside)


@pytest.mark.parametrize("window", [14, 16, 4, 6])
def test_hiera_nests(window: int) -> None:
    assert piece_side(HIERA, WindowGrid(64, 64, window)) == 2


@pytest.mark.parametrize(("blocks", "side"), [
    ([(4, False), (4, True), (2, False), (2, True)], 1),
    ([(16, False), (8, True), (4, False), (4, True)], 4),
    ([(4, True), (2, False)], 2),
    ([(12, False), (8, True), (4, True)], 6),
])  # fmt: skip
def test_a_piece_is_the_smallest_square_of_whole_windows(blocks: list[tuple[int, bool]], side: int) -> None:
    assert piece_side(blocks, WindowGrid(24, 24, 12)) == side


@pytest.mark.parametrize(("blocks", "grid", "match"), [
    ([(8, False), (0, False), (8, True)], WindowGrid(64, 64, 14), "block 1 has global attention"),
    ([(5, True), (4, False)], WindowGrid(64, 64, 14), "block 0 pools 2x2 in windows of 5"),
    (HIERA, WindowGrid(64, 64, 7), "pieces of 2 .* window of 7"),
    ([(16, False), *HIERA], WindowGrid(64, 64, 14), "pieces of 4 .* window of 14"),
    (HIERA, WindowGrid(15, 15, 4), "map of 15x15"),
])  # fmt: skip
def test_what_does_not_nest_is_refused(blocks: list[tuple[int, bool]], grid: WindowGrid, match: str) -> None:
    with pytest.raises(UnsupportedModelError, match=match):
        piece_side(blocks, grid)


@few
@given(tiles_and_windows(), st.sampled_from([1, 2, 4]))
def test_gather_takes_exactly_the_pieces_under_the_windows(case: tuple[TileGrid, list[int]], scale: int) -> None:
    tiles, windows = case
    side = scale * tiles.grid.width
    before = numbered(side, 2)
    pieces = tiles.route(windows, CPU, memory_of(tiles)).gather(before)
    step = side // tiles.across
    assert pieces.shape == (len(tiles.pieces(windows)), step, step, 2)
    assert torch.equal(pieces.flatten(0, 2).sort(0).values, before[0][chosen_tokens(tiles, windows, side)])
    for piece, place in zip(pieces, tiles.pieces(windows).tolist(), strict=True):
        row, col = divmod(place, tiles.across)
        assert torch.equal(piece, before[0, row * step : (row + 1) * step, col * step : (col + 1) * step])


@few
@given(tiles_and_windows())
def test_merge_renews_computed_tiles_and_remembers_the_others(case: tuple[TileGrid, list[int]]) -> None:
    tiles, windows = case
    memory = memory_of(tiles)
    held = [level.reused.clone() for level in memory.levels]
    route = tiles.route(windows, CPU, memory)
    route.entering = numbered(*tiles.levels[0])
    for level, (side, channels) in enumerate(tiles.levels):
        now, below = numbered(side, channels), route.entering
        merged = route.merge(route.gather(now), level)
        mask = chosen_tokens(tiles, windows, side)
        assert torch.equal(merged[0][mask], now[0][mask])
        assert torch.allclose(merged[0][~mask], torch.tensor(-1.0)), "all of what is reused is alike"
        kept = route.kept[level]
        assert torch.equal(kept.reused[mask.flatten()], now[0][mask])
        assert torch.equal(kept.reused[~mask.flatten()], held[level][~mask.flatten()])
        keys = compared(below, below.shape[1] // side)
        assert torch.equal(kept.entering[mask.flatten()], keys[mask.flatten()])
        assert not kept.entering[~mask.flatten()].any()
        assert torch.equal(memory.levels[level].reused, held[level]), "another session may hold the old map"


@few
@given(tiles_and_windows(), st.booleans())
def test_the_span_takes_pieces_or_a_map_window_after_window(case: tuple[TileGrid, list[int]], whole: bool) -> None:
    tiles, windows = case
    grid = tiles.grid
    tiles.whole = whole
    before, memory = numbered(grid.width, 5), memory_of(tiles)
    tile_route = tiles.route(windows, CPU, memory)
    tile_route.entering = numbered(*tiles.levels[-1])
    route = make_route(grid, windows, CPU, None, reuses=True)
    route.tiles = tile_route
    tokens = enter(before if whole else tile_route.gather(before), route, IdentityShortcut(5))
    assert torch.equal(tokens[0, :, 0], before.reshape(-1, 5)[torch.from_numpy(grid.token_ids(windows))])

    after = leave(tokens + 0.5, route, before.shape)[0]
    mask = chosen_tokens(tiles, windows, grid.width)
    assert torch.equal(after[mask], before[0][mask] + 0.5)
    assert torch.allclose(after[~mask], torch.tensor(-1.0)), "skipped tiles: what they remember, all of it alike"

    assert route.seen_output is not None
    tile_route.kept = list(memory.levels)
    renewed = updated_tiles(route, IdentityShortcut(5))
    assert torch.allclose(renewed.span.reused.reshape(after.shape), after)
    assert bool((memory.span.reused == -1).all()), "the memory before is left alone"


def test_a_dense_frame_is_remembered_whole() -> None:
    tiles = TileGrid(WindowGrid(8, 8, 4), 2, [(32, 2), (16, 3)])
    watched = tiles.watch()
    watched.entering = embedding = numbered(32, 2)
    for level in tiles.levels:
        watched.note(numbered(*level))
    route = Route(dense=True, observe=True, tiles=watched, seen_output=numbered(8, 5))
    memory = updated_tiles(route, IdentityShortcut(5))
    expected = (
        (memory.levels[0], numbered(32, 2), compared(embedding)),
        (memory.levels[1], numbered(16, 3), compared(numbered(32, 2), 2)),
        (memory.span, numbered(8, 5), compared(numbered(16, 3), 2)),
    )
    for run, output, keys in expected:
        assert torch.equal(run.reused, output.flatten(0, 2)) and torch.equal(run.entering, keys)


@few
@given(tiles_and_windows(), st.floats(0, 1), st.integers(0, 2**31))
def test_extra_pieces_are_the_most_urgent_and_those_of_the_windows_always_come(
    case: tuple[TileGrid, list[int]], share: float, seed: int
) -> None:
    tiles, windows = case
    count = round(share * tiles.count)
    urgency = torch.rand(tiles.count, generator=torch.Generator().manual_seed(seed))
    route = tiles.route(windows, CPU, memory_of(tiles), urgency, count)
    assert route.pieces is not None and route.tokens is not None
    certain, taken = set(tiles.pieces(windows).tolist()), route.pieces.tolist()
    assert taken == sorted(set(taken))
    assert certain <= set(taken)
    assert len(taken) == max(count, len(certain))
    left = [float(urgency[piece]) for piece in range(tiles.count) if piece not in taken]
    extra = [float(urgency[piece]) for piece in taken if piece not in certain]
    assert not left or not extra or min(extra) >= max(left)
    side = tiles.grid.width // tiles.across
    for place, token in enumerate(route.tokens.tolist()):
        row, col = divmod(token, tiles.grid.width)
        assert row // side * tiles.across + col // side == taken[place // side**2]
    if route.order is not None:
        assert torch.equal(route.tokens[route.order], torch.from_numpy(tiles.grid.token_ids(windows)))


@few
@given(tiles_and_windows(), st.integers(0, 2**31), st.sampled_from([1, 3]))
def test_near_and_changes_by_visiting_each_piece(case: tuple[TileGrid, list[int]], seed: int, dilation: int) -> None:
    tiles, _ = case
    generator = torch.Generator().manual_seed(seed)
    cell = 2 * (tiles.grid.width // tiles.across)
    mask = torch.rand(cell * tiles.across, cell * tiles.across, generator=generator) > 0.97
    near = tiles.near(mask, dilation)
    current, seen = torch.randn(2, 3, tiles.grid.height, tiles.grid.width, generator=generator)
    changes = tiles.changes(current, seen)
    side, margin = tiles.grid.width // tiles.across, dilation // 2
    for piece in range(tiles.count):
        row, col = divmod(piece, tiles.across)
        top, left = max(0, row * cell - margin), max(0, col * cell - margin)
        around = mask[top : (row + 1) * cell + margin, left : (col + 1) * cell + margin]
        assert bool(near[piece]) == bool(around.any())
        here = (slice(None), slice(row * side, (row + 1) * side), slice(col * side, (col + 1) * side))
        assert float(changes[piece]) == pytest.approx(float((current[here] - seen[here]).abs().mean()), abs=1e-5)


def test_object_pieces_and_waiting_ones_are_urgent() -> None:
    near = torch.tensor([True, False, False])
    urgency = piece_urgency(near, torch.tensor([0.1, 0.1, 0.1]), torch.tensor([0.0, 0.0, 9.0]))
    assert urgency[0] > urgency[2] > urgency[1]

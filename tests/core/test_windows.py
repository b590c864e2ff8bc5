"""Window geometry against plain loops, on random grids, windows and subsets."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from surgery.core.windows import WindowGrid, longest_waiting
from tests.core.geometry import few, grids, grids_and_windows, tokens_of, window_of

CPU = torch.device("cpu")


@few
@given(grids)
def test_every_token_belongs_to_exactly_one_window(grid: WindowGrid) -> None:
    assert grid.count == grid.rows * grid.cols
    assert grid.tokens == grid.height * grid.width
    assert sorted(grid.token_ids(range(grid.count)).tolist()) == list(range(grid.tokens))
    for window in range(grid.count):
        ids = grid.token_ids([window])
        assert len(ids) > 0, "a window without a token would be skipped for nothing"
        assert {window_of(grid, *divmod(int(token), grid.width)) for token in ids} == {window}


@few
@given(grids_and_windows())
def test_indices_agree_with_visiting_every_slot(case: tuple[WindowGrid, list[int]]) -> None:
    grid, windows = case
    tokens, slots = grid.token_ids(windows), grid.real_slots(windows)
    expected = [(n * grid.area + slot, token) for n, w in enumerate(windows) for slot, token in tokens_of(grid, w)]
    assert list(zip(slots.tolist(), tokens.tolist(), strict=True)) == expected
    assert tokens.dtype == slots.dtype == np.int64
    assert grid.padded == (grid.height % grid.window != 0 or grid.width % grid.window != 0)
    assert grid.padded == (grid.tokens != grid.count * grid.area)


@few
@given(grids_and_windows(), st.integers(1, 4))
def test_stack_and_flatten_undo_each_other_and_only_padding_is_zero(
    case: tuple[WindowGrid, list[int]], channels: int
) -> None:
    grid, windows = case
    packing = grid.packing(windows, CPU)
    ids = grid.token_ids(windows)
    tokens = torch.from_numpy(ids + 1).float()[:, None] * torch.arange(1, channels + 1)
    stacked = packing.stack(tokens)
    assert stacked.shape == (len(windows), grid.area, channels)
    assert torch.equal(packing.flatten(stacked), tokens)
    assert packing.ids.tolist() == windows
    real = {(n, slot): token for n, window in enumerate(windows) for slot, token in tokens_of(grid, window)}
    for n, slot in itertools.product(range(len(windows)), range(grid.area)):
        token = real.get((n, slot))
        assert stacked[n, slot, 0] == (0 if token is None else token + 1)
    assert (packing.slots is None) == (len(ids) == len(windows) * grid.area), "full windows need no scatter"


@few
@given(grids_and_windows())
def test_filled_windows_say_the_same_in_shapes_that_do_not_change(case: tuple[WindowGrid, list[int]]) -> None:
    grid, windows = case
    filled = WindowGrid(grid.height, grid.width, grid.window, filled=True)
    packing, plain = filled.packing(windows, CPU), grid.packing(windows, CPU)
    ids, own = filled.token_ids(windows), grid.token_ids(windows)
    assert len(ids) == len(windows) * grid.area and set(ids) == set(own)
    values = torch.arange(1.0, grid.tokens + 1)[:, None]
    assert torch.equal(packing.stack(values[torch.from_numpy(ids)]), plain.stack(values[torch.from_numpy(own)]))
    computed, kept = -values, 1000 + values
    fill = torch.randn(len(ids), 1)  # what becomes of a token that fills is never read
    real = torch.ones(len(ids), dtype=torch.bool) if packing.filling is None else ~packing.filling[:, 0]
    fill[real] = computed[torch.from_numpy(ids)][real]
    found = packing.renewed(kept, fill, torch.from_numpy(ids))
    assert torch.equal(found, plain.renewed(kept, computed[torch.from_numpy(own)], torch.from_numpy(own)))
    others = [window for window in range(grid.count) if window not in windows]
    order = grid.back([*windows, *others])
    assert torch.equal(values[torch.from_numpy(grid.token_ids([*windows, *others]))][torch.from_numpy(order)], values)


@few
@given(grids, st.integers(1, 4), st.integers(0, 2**32 - 1), st.floats(0, 0.1))
def test_cells_are_the_windows_a_pixel_falls_in(grid: WindowGrid, scale: int, seed: int, share: float) -> None:
    mask = torch.rand(grid.height * scale, grid.width * scale, generator=torch.Generator().manual_seed(seed)) < share
    touched = {window_of(grid, row // scale, col // scale) for row, col in mask.nonzero().tolist()}
    cells = grid.cells(mask)
    assert cells.dtype == torch.bool
    assert cells.shape == (grid.count,)
    assert set(cells.nonzero().flatten().tolist()) == touched


@pytest.mark.parametrize(("window", "cell"), [(14, 56), (16, 64)])
def test_published_cells_of_the_1024_px_grid(window: int, cell: int) -> None:
    """56 or 64 pixels of the 256 x 256 masks; a mask that fills the map touches every window."""
    grid = WindowGrid(64, 64, window)
    assert (grid.count, grid.padded) == ((25, True) if window == 14 else (16, False))
    assert bool(grid.cells(torch.ones(256, 256, dtype=torch.bool)).all())
    for y, x in itertools.product((0, cell - 1, cell, 255), repeat=2):
        mask = torch.zeros(256, 256, dtype=torch.bool)
        mask[y, x] = True
        assert grid.cells(mask).nonzero().flatten().tolist() == [y // cell * grid.cols + x // cell]


@few
@given(grids, st.integers(1, 3), st.integers(0, 2**32 - 1))
def test_mass_sums_each_window_and_loses_nothing(grid: WindowGrid, rows: int, seed: int) -> None:
    saliency = torch.rand(rows, grid.tokens, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    sums = grid.mass(saliency)
    assert sums.shape == (rows, grid.count)
    assert torch.allclose(sums.sum(1), saliency.sum(1))
    for window in range(grid.count):
        ids = [token for _, token in tokens_of(grid, window)]
        assert torch.allclose(sums[:, window], saliency[:, ids].sum(1))


# ------------------------------------------------------------------------------------------------ ages


@few
@given(st.lists(st.tuples(st.integers(0, 5), st.booleans()), max_size=20), st.integers(0, 25))
def test_longest_waiting_takes_the_oldest_first_and_the_lower_id_on_ties(
    state: list[tuple[int, bool]], count: int
) -> None:
    ages, taken = [age for age, _ in state], [flag for _, flag in state]
    expected: list[int] = []
    free = [window for window, flag in enumerate(taken) if not flag]
    while free and len(expected) < count:
        oldest = next(window for window in free if ages[window] == max(ages[other] for other in free))
        expected.append(oldest)
        free.remove(oldest)
    assert longest_waiting(ages, taken, count) == expected


def test_rolling_visits_every_window_in_turn() -> None:
    ages, seen = [0] * 9, []
    for _ in range(9):
        (window,) = longest_waiting(ages, [False] * 9, 1)
        ages = [0 if other == window else age + 1 for other, age in enumerate(ages)]
        seen.append(window)
    assert sorted(seen) == list(range(9))


def test_longest_waiting_of_nothing_is_nothing() -> None:
    assert longest_waiting([3, 2], [False, False], 0) == []
    assert longest_waiting([3, 2], [True, True], 2) == []

"""Reuse that follows the picture: what stays, what moves, and where tokens may look."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from torch import Tensor

from surgery.core.windows import WindowGrid
from surgery.operations.window_routing.matching import Matching, compared, looks, matching, normed, reused_map
from tests.core.geometry import few, grids_and_windows

CPU = torch.device("cpu")
SOME = {
    "full": WindowGrid(16, 16, 4),
    "padded": WindowGrid(10, 10, 4),
    "odd": WindowGrid(9, 9, 3),
    "cut": WindowGrid(18, 18, 9),
    "cut-padded": WindowGrid(14, 14, 6),
}
GRIDS = pytest.mark.parametrize("grid", SOME.values(), ids=SOME)


def picture(grid: WindowGrid, channels: int = 32, seed: int = 0) -> Tensor:
    """Inputs without two tokens alike: [1, H, W, C]."""
    return torch.randn(1, grid.height, grid.width, channels, generator=torch.Generator().manual_seed(seed))


def values_of(grid: WindowGrid) -> Tensor:
    return torch.arange(2.0 * grid.tokens).reshape(grid.tokens, 2)


@few
@given(grids_and_windows())
def test_what_has_not_changed_stays(case: tuple[WindowGrid, list[int]]) -> None:
    grid, windows = case
    flat, values = compared(picture(grid)), values_of(grid)
    own = torch.from_numpy(grid.token_ids(windows))
    found = matching(grid, grid.packing(windows, CPU), own).reused(flat[own], flat, values)
    assert torch.allclose(found, values[own], atol=1e-4)


@GRIDS
@pytest.mark.parametrize("shift", [(0, 1), (1, 0), (-1, 1)])
def test_what_has_moved_is_followed(grid: WindowGrid, shift: tuple[int, int]) -> None:
    """All but the tokens that came in at the edge."""
    then = picture(grid)
    now, values = then.roll(shift, (1, 2)), values_of(grid)
    found = reused_map(grid, compared(now), compared(then), values).reshape(grid.height, grid.width, 2)
    expected = values.reshape(grid.height, grid.width, 2).roll(shift, (0, 1))
    inner = slice(1, -1)
    assert torch.allclose(found[inner, inner], expected[inner, inner], atol=1e-2)


@GRIDS
def test_no_token_looks_further_than_it_may(grid: WindowGrid) -> None:
    then, now, values = picture(grid), compared(picture(grid, seed=1)), values_of(grid)
    window = 1 + grid.cols
    own = torch.from_numpy(grid.token_ids([window]))
    asks: Matching = matching(grid, grid.packing([window], CPU), own)
    before = asks.reused(now[own], compared(then), values)
    half, w = looks(grid), grid.window
    rows, cols = (slice(max(0, each * w - half), each * w + 2 * w - half) for each in divmod(window, grid.cols))
    near = torch.zeros(grid.height, grid.width, dtype=torch.bool)
    near[rows, cols] = True
    apart = torch.where(near.flatten()[:, None], values, torch.full_like(values, torch.nan))
    assert torch.equal(asks.reused(now[own], compared(then), apart), before)


def test_how_far_a_token_looks() -> None:
    """Half a window; of SAM 3, whose windows are a third of its map, an eighth of the map."""
    sizes = {(64, 14): 7, (64, 16): 8, (32, 7): 3, (72, 24): 9, (16, 4): 2, (9, 1): 1}
    assert {each: looks(WindowGrid(each[0], each[0], each[1])) for each in sizes} == sizes


@GRIDS
def test_squares_of_a_window_are_asked_apart(grid: WindowGrid) -> None:
    """Against every token asking by itself among those around its square."""
    now, then, values = compared(picture(grid, seed=1)), compared(picture(grid)), values_of(grid)
    found = reused_map(grid, now, then, values)
    look = looks(grid)
    side = {9: 3, 6: 2}.get(grid.window, grid.window)
    token = grid.tokens // 2 + grid.width // 3
    row, col = divmod(token, grid.width)
    weights, around = [], []
    for y in range(row // side * side - look, row // side * side + side + look):
        for x in range(col // side * side - look, col // side * side + side + look):
            place = min(max(y, 0), grid.height - 1) * grid.width + min(max(x, 0), grid.width - 1)
            far = ((y - row) ** 2 + (x - col) ** 2) / (0.6 * look) ** 2 / 2
            weights.append(now[token].float() @ then[place].float() * 40 / now.shape[1] - far)
            around.append(place)
    moved = torch.stack(weights).softmax(0) @ values[around]
    own = ((now[token] - then[token]).float().square().mean() / -0.02).exp()
    assert torch.allclose(found[token], moved + own * (values[token] - moved), atol=1e-2, rtol=1e-4)


@few
@given(grids_and_windows())
def test_a_window_gets_the_same_in_any_company(case: tuple[WindowGrid, list[int]]) -> None:
    grid, windows = case
    now, then, values = compared(picture(grid, seed=1)), compared(picture(grid)), values_of(grid)
    whole = reused_map(grid, now, then, values)
    own = torch.from_numpy(grid.token_ids(windows))
    found = matching(grid, grid.packing(windows, CPU), own).reused(now[own], then, values)
    assert torch.allclose(found, whole[own], atol=1e-3, rtol=1e-5)


def test_squares_of_tokens_are_compared_by_their_mean() -> None:
    picture = torch.randn(1, 4, 4, 8, generator=torch.Generator().manual_seed(0))
    square = torch.stack([picture[0, row, col] for row in (0, 1) for col in (2, 3)])
    assert torch.allclose(compared(picture, 2)[1], normed(square.mean(0)[None])[0], atol=2e-3)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_what_is_kept_may_be_of_another_type(dtype: torch.dtype) -> None:
    grid = WindowGrid(8, 8, 4)
    flat, values = compared(picture(grid)), torch.rand(grid.tokens, 3, generator=torch.Generator().manual_seed(2))
    found = reused_map(grid, flat, flat, values.to(dtype))
    assert found.dtype == dtype and torch.allclose(found.to(torch.float32), values, atol=0.02)

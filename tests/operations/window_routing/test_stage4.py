"""The stage after the span: its windows, pooling and merging of packed windows, refusals."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st

from surgery.core.windows import WindowGrid
from surgery.errors import UnsupportedModelError
from surgery.operations.window_routing.matching import compared
from surgery.operations.window_routing.reuse import blank
from surgery.operations.window_routing.stage4 import Stage4Grid, halved
from tests.core.geometry import window_of

CPU = torch.device("cpu")
HIERA = [(14, True), (7, False), (7, False)]
"""Stage 4 of SAM 2: (window, pools)."""


@st.composite
def grids(draw: st.DrawFn) -> tuple[WindowGrid, WindowGrid, list[int]]:
    """Stage-3 windows of even sides, padded ones included, the same halved, and a sorted subset of their ids."""
    wide = WindowGrid(*[2 * draw(st.integers(2, 8))] * 2, 2 * draw(st.integers(1, 4)))
    narrow = halved([(wide.window, True), (wide.window // 2, False)], 9, wide)
    return wide, narrow, sorted(draw(st.sets(st.integers(0, wide.count - 1), min_size=1)))


@pytest.mark.parametrize(("window", "count"), [(14, 25), (16, 16)])
def test_windows_of_hiera(window: int, count: int) -> None:
    wide = WindowGrid(64, 64, window)
    narrow = halved([(window, True), (window // 2, False)], 21, wide)
    assert (narrow.height, narrow.width, narrow.window) == (32, 32, window // 2)
    assert narrow.count == wide.count == count


@given(grids())
def test_a_window_of_the_pooled_map_is_the_stage_3_window(case: tuple[WindowGrid, WindowGrid, list[int]]) -> None:
    wide, narrow, windows = case
    assert (narrow.rows, narrow.cols) == (wide.rows, wide.cols)
    for token in narrow.token_ids(windows).tolist():
        row, col = divmod(token, narrow.width)
        for cell in ((0, 0), (0, 1), (1, 0), (1, 1)):
            assert window_of(wide, 2 * row + cell[0], 2 * col + cell[1]) in windows
    assert 4 * len(narrow.token_ids(windows)) == len(wide.token_ids(windows))


@given(grids())
def test_packed_windows_pool_as_the_map_does(case: tuple[WindowGrid, WindowGrid, list[int]]) -> None:
    wide, narrow, windows = case
    # All below zero: a padding token would win every maximum.
    feature_map = -1 - torch.rand(1, wide.height, wide.width, 3, generator=torch.Generator().manual_seed(0))
    tokens = feature_map.reshape(-1, 3)[torch.from_numpy(wide.token_ids(windows))][None, :, None]
    stage4 = Stage4Grid(narrow, 3)
    last = blank(narrow.tokens, 3, 3, CPU, torch.float32)
    route = stage4.route(windows, CPU, last)
    route.enter(feature_map)
    merged = route.merge(route.pool(tokens, wide.packing(windows, CPU), wide.window))
    whole = F.max_pool2d(feature_map.permute(0, 3, 1, 2), 2).permute(0, 2, 3, 1)
    chosen = torch.zeros(narrow.tokens, dtype=torch.bool)
    chosen[torch.from_numpy(narrow.token_ids(windows))] = True
    assert torch.equal(merged.reshape(-1, 3)[chosen], whole.reshape(-1, 3)[chosen])
    assert not merged.reshape(-1, 3)[~chosen].any()
    assert route.seen is not None
    assert torch.equal(route.seen.reused[chosen], whole.reshape(-1, 3)[chosen])
    assert torch.equal(route.seen.entering[chosen], compared(feature_map, 2)[chosen])
    assert not route.seen.reused[~chosen].any() and not route.seen.entering[~chosen].any()


@pytest.mark.parametrize(("blocks", "message"), [
    ([], "no stage comes after the routed span, whose stage ends with block 20"),
    ([(14, True), (0, False)], "block 22 has global attention"),
    ([(0, True), (7, False)], "block 21 has global attention"),
    ([(14, False), (7, False)], "block 21 does not pool"),
    ([(14, True), (14, True)], "block 22 pools 2x2"),
    ([(14, True), (14, False)], "block 22 has windows of 14 tokens, expected 7"),
    ([(7, True), (7, False)], "block 21 has windows of 7 tokens, expected 14"),
])  # fmt: skip
def test_other_stages_are_refused(blocks: list[tuple[int, bool]], message: str) -> None:
    with pytest.raises(UnsupportedModelError, match=rf"{message}.*use stage4: dense"):
        halved(blocks, 21, WindowGrid(64, 64, 14))


@pytest.mark.parametrize(("side", "window"), [(64, 7), (63, 14)])
def test_odd_sides_are_refused(side: int, window: int) -> None:
    with pytest.raises(
        UnsupportedModelError, match=rf"windows of {window} tokens on a map of {side}x{side} do not halve"
    ):
        halved([(window, True)], 21, WindowGrid(side, side, window))

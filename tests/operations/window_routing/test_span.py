"""One routed pass: pack and unpack, the temporal shortcut, the published padding, shortcuts window by window."""

from __future__ import annotations

from typing import Any, cast

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from surgery.core.frame import FrameContext
from surgery.core.seams import BlockCall
from surgery.core.session import VideoState
from surgery.core.windows import WindowGrid
from surgery.operations.window_routing.blocks import TYPE, SpanBlock
from surgery.operations.window_routing.matching import compared, reused_map
from surgery.operations.window_routing.reuse import RunMemory
from surgery.operations.window_routing.shortcut import IdentityShortcut, Shortcut, make_shortcut
from surgery.operations.window_routing.span import Route, enter, leave, make_route, updated_memory
from tests.core.geometry import few, grids_and_windows

CPU = torch.device("cpu")
Case = tuple[WindowGrid, list[int]]
PADDED, FULL = WindowGrid(10, 10, 4), WindowGrid(8, 8, 4)


def feature(grid: WindowGrid, channels: int = 3, seed: int = 0) -> Tensor:
    return torch.randn(1, grid.height, grid.width, channels, generator=torch.Generator().manual_seed(seed))


def trained(kind: str, channels: int, seed: int = 1) -> Shortcut:
    """A shortcut whose last projection is not zero, so that it does something."""
    shortcut = make_shortcut(kind, channels)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in shortcut.parameters():
            parameter.add_(torch.randn(parameter.shape, generator=generator) * 0.3)
    return shortcut.eval()


def chosen_mask(grid: WindowGrid, windows: list[int]) -> Tensor:
    """bool [H, W]: the tokens of `windows`."""
    mask = torch.zeros(grid.tokens, dtype=torch.bool)
    mask[torch.from_numpy(grid.token_ids(windows))] = True
    return mask.reshape(grid.height, grid.width)


# ------------------------------------------------------------------------------------------------ pack and unpack


@few
@given(grids_and_windows(), st.booleans())
def test_enter_then_leave_is_the_identity(case: Case, published: bool) -> None:
    grid, windows = case
    before = feature(grid)
    route = make_route(grid, windows, CPU, None, published_padding=published)
    tokens = enter(before, route, IdentityShortcut(3))
    slots = len(windows) * grid.area if published and route.real is not None else len(grid.token_ids(windows))
    assert tokens.shape == (1, slots, 1, 3)
    assert torch.equal(leave(tokens, route, before.shape), before)


@few
@given(grids_and_windows(), st.booleans())
def test_blocks_touch_the_chosen_windows_and_the_shortcut_all_others(case: Case, published: bool) -> None:
    grid, windows = case
    before, shortcut = feature(grid, 4), trained("bottleneck", 4)
    route = make_route(grid, windows, CPU, None, published_padding=published)
    after = leave(enter(before, route, shortcut) + 100, route, before.shape)
    mask = chosen_mask(grid, windows)
    assert torch.equal(after[0][mask], before[0][mask] + 100)
    assert torch.allclose(after[0][~mask], shortcut(before[0][~mask]), atol=1e-6)


@few
@given(grids_and_windows())
def test_chosen_tokens_travel_window_after_window(case: Case) -> None:
    grid, windows = case
    before = torch.arange(grid.tokens, dtype=torch.float32).reshape(1, grid.height, grid.width, 1)
    tokens = enter(before, make_route(grid, windows, CPU, None), IdentityShortcut(1))
    assert tokens.flatten().tolist() == grid.token_ids(windows).tolist()


@few
@given(grids_and_windows())
def test_windowed_attention_pads_with_zeros_after_the_norm(case: Case) -> None:
    """A sum over each window sees its real tokens and nothing else, and the result comes back to the same tokens."""
    grid, windows = case
    route = make_route(grid, windows, CPU, None)
    tokens = enter(feature(grid), route, IdentityShortcut(3))

    def attend(stacked: Tensor) -> Tensor:
        assert stacked.shape == (len(windows), grid.window, grid.window, 3)
        return stacked + stacked.sum((1, 2), keepdim=True)

    assert route.packing is not None
    mixed = route.packing.by_window(tokens, attend, grid.window)
    start = 0
    for window in windows:
        end = start + len(grid.token_ids([window]))
        part = tokens[0, start:end, 0]
        assert torch.allclose(mixed[0, start:end, 0], part + part.sum(0), atol=1e-4)
        start = end
    assert start == mixed.shape[1]


# ------------------------------------------------------------------------------------------------ temporal shortcut


def remembered(grid: WindowGrid, shortcut: Shortcut, seen: Tensor, output: Tensor) -> RunMemory:
    route = Route(dense=True, observe=True)
    route.seen_input, route.seen_output = seen, output
    memory = updated_memory(route, shortcut, grid)
    assert memory is not None
    return memory


@few
@given(grids_and_windows(), st.sampled_from(["identity", "bottleneck", "ffn", "attention"]))
def test_on_an_equal_frame_skipped_tokens_return_their_last_output(case: Case, kind: str) -> None:
    grid, windows = case
    shortcut = make_shortcut(kind, 16)
    frame, output = feature(grid, 16), feature(grid, 16, seed=9)
    memory = remembered(grid, shortcut, frame, output)
    route = make_route(grid, windows, CPU, memory, reuses=True)
    after = leave(enter(frame, route, shortcut) + 5, route, frame.shape)
    mask = chosen_mask(grid, windows)
    assert torch.allclose(after[0][~mask], output[0][~mask], atol=1e-5)
    assert torch.equal(after[0][mask], frame[0][mask] + 5)


@pytest.mark.parametrize("kind", ["bottleneck", "ffn", "attention"])
@pytest.mark.parametrize("grid", [PADDED, FULL], ids=["padded", "full"])
def test_a_skipped_token_returns_the_shortcut_and_what_it_reuses(kind: str, grid: WindowGrid) -> None:
    shortcut, windows = trained(kind, 16), [1, 2]
    last, now, output = feature(grid, 16), feature(grid, 16, seed=1), feature(grid, 16, seed=2)
    route = make_route(grid, windows, CPU, remembered(grid, shortcut, last, output), reuses=True)
    after = leave(enter(now, route, shortcut), route, now.shape)

    def branch(frame: Tensor) -> Tensor:
        every = torch.from_numpy(grid.token_ids(range(grid.count)))
        ordered = shortcut(frame.reshape(-1, 16)[every], grid.packing(range(grid.count), CPU))
        return torch.empty_like(ordered).index_copy(0, every, ordered).reshape(frame.shape)

    reused = (output - branch(last)).reshape(-1, 16)
    moved = reused_map(grid, compared(now), compared(last), reused).reshape(now.shape)
    mask = chosen_mask(grid, windows)
    assert torch.allclose(after[0][~mask], (branch(now) + moved)[0][~mask], atol=1e-5)
    assert torch.equal(after[0][mask], now[0][mask])


@few
@given(grids_and_windows(), st.sampled_from(["identity", "bottleneck", "attention"]))
def test_memory_keeps_what_was_skipped_and_replaces_what_was_chosen(case: Case, kind: str) -> None:
    grid, windows = case
    shortcut = trained(kind, 16)
    last, now, output = feature(grid, 16), feature(grid, 16, seed=1), feature(grid, 16, seed=2)
    before = remembered(grid, shortcut, last, output)
    kept = before.reused.clone()
    route = make_route(grid, windows, CPU, before, reuses=True)
    tokens = enter(now, route, shortcut) + 1
    merged = leave(tokens, route, now.shape).reshape(-1, 16)
    after = updated_memory(route, shortcut, grid)
    assert after is not None
    mask = chosen_mask(grid, windows).flatten()
    assert torch.equal(after.reused[~mask], kept[~mask])
    fresh = remembered(grid, shortcut, now, merged.reshape(now.shape))
    assert torch.allclose(after.reused[mask], fresh.reused[mask], atol=1e-5)
    assert torch.equal(before.reused, kept), "another session may hold the old memory"


def test_a_route_that_was_not_observed_leaves_no_memory() -> None:
    shortcut = IdentityShortcut(3)
    assert updated_memory(Route(dense=True), shortcut, FULL) is None
    route = make_route(FULL, [0], CPU, None)
    leave(enter(feature(FULL), route, shortcut), route, (1, 8, 8, 3))
    assert updated_memory(route, shortcut, FULL) is None


# ------------------------------------------------------------------------------------------------ published padding


class ToyBlock(nn.Module):
    """A stand-in for a host block: norm with a bias, attention that is a sum, pointwise mlp."""

    def __init__(self, channels: int = 3) -> None:
        super().__init__()
        self._norm1, self._norm2 = nn.LayerNorm(channels), nn.LayerNorm(channels)
        self.mlp = nn.Linear(channels, channels)
        with torch.no_grad():
            for parameter in self.parameters():
                parameter.normal_(generator=torch.Generator().manual_seed(3))

    def _attend(self, tokens: Tensor, places: Tensor | None = None) -> Tensor:
        return tokens + tokens.mean((1, 2), keepdim=True)

    def _feed_forward(self, tokens: Tensor) -> Tensor:
        return self.mlp(self._norm2(tokens))


def routed(block: ToyBlock, window: int, tokens: Tensor, route: Route) -> Tensor:
    """What a block of the span does on a frame of this route."""
    context = FrameContext(0, VideoState(None), cast(Any, None), records={TYPE: route})
    return SpanBlock(window, 0, False, False, None, None)(context, BlockCall(cast(Any, block), 0, {}), tokens, never)


def never(tokens: Tensor) -> Tensor:
    raise AssertionError("a routed block does not run the host's own forward")


@few
@given(grids_and_windows())
@torch.no_grad()
def test_published_padding_is_reset_by_a_global_block_and_real_tokens_do_not_notice_it(case: Case) -> None:
    grid, windows = case
    results = {}
    for published in (False, True):
        route = make_route(grid, windows, CPU, None, published_padding=published)
        tokens = enter(feature(grid), route, IdentityShortcut(3))
        if route.real is not None:
            padding = torch.ones(tokens.shape[1], dtype=torch.bool)
            padding[route.real] = False
            assert not tokens[0, padding].any(), "padding enters as zeros, before the first norm"
            tokens[0, padding] = 7.0  # what windowed blocks made of it
        out = routed(ToyBlock(), 0, tokens, route)
        if route.real is not None:
            assert padding.any()
            assert not out[0, padding].any(), "and is zero again after a global block"
            out = out[:, route.real]
        results[published] = out
    assert torch.allclose(results[True], results[False], atol=1e-5)


@torch.no_grad()
def test_published_padding_takes_part_in_windowed_blocks_and_exact_padding_does_not() -> None:
    grid, block = PADDED, ToyBlock()
    windows = [2, 8]  # both at the right border
    outputs = {}
    for published in (False, True):
        route = make_route(grid, windows, CPU, None, published_padding=published)
        out = routed(block, grid.window, enter(feature(grid), route, IdentityShortcut(3)), route)
        outputs[published] = out if route.real is None else out[:, route.real]
        if route.real is not None:
            padding = torch.ones(out.shape[1], dtype=torch.bool)
            padding[route.real] = False
            assert out[0, padding].any(), "padding receives the residual and the mlp (the published quirk)"
    assert outputs[True].shape == outputs[False].shape
    assert (outputs[True] - outputs[False]).abs().max() > 1e-3
    # The exact path equals Hiera: norm, pad with zeros, attend, crop.
    part = torch.from_numpy(grid.token_ids([2]))
    tokens = feature(grid).reshape(-1, 3)[part]
    normed = grid.packing([2], CPU).stack(block._norm1(tokens)).reshape(1, 4, 4, 3)
    hidden = tokens + grid.packing([2], CPU).flatten(block._attend(normed).reshape(1, 16, 3))
    assert torch.allclose(outputs[False][0, : len(part), 0], hidden + block.mlp(block._norm2(hidden)), atol=1e-5)


@few
@given(grids_and_windows())
def test_published_padding_changes_nothing_where_every_chosen_window_is_full(case: Case) -> None:
    grid, windows = case
    route = make_route(grid, windows, CPU, None, published_padding=True)
    full = len(grid.token_ids(windows)) == len(windows) * grid.area
    assert (route.real is None) == full


# ------------------------------------------------------------------------------------------------ window by window


@pytest.mark.parametrize("grid", [PADDED, FULL], ids=["padded", "full"])
def test_the_attention_shortcut_never_looks_outside_its_window(grid: WindowGrid) -> None:
    shortcut, windows = trained("attention", 16), [0]
    before = feature(grid, 16)
    changed = before.clone()
    other = grid.count - 1
    changed[0][chosen_mask(grid, [other])] += 1
    outputs = []
    for frame in (before, changed):
        route = make_route(grid, windows, CPU, None, with_rest_packing=True)
        outputs.append(leave(enter(frame, route, shortcut), route, frame.shape)[0])
    difference = (outputs[0] - outputs[1]).abs().amax(-1) > 1e-6
    assert torch.equal(difference, chosen_mask(grid, [other]))
    mixed = before.clone()
    mixed[0][chosen_mask(grid, [1])] = mixed[0][chosen_mask(grid, [1])].flip(0)
    assert not torch.allclose(
        outputs[0][chosen_mask(grid, [1])], trained("bottleneck", 16)(before[0][chosen_mask(grid, [1])])
    )


@few
@given(grids_and_windows())
@torch.no_grad()
def test_the_attention_shortcut_gives_a_window_the_same_answer_in_any_company(case: Case) -> None:
    grid, windows = case
    shortcut, tokens = trained("attention", 16), feature(grid, 16).reshape(-1, 16)

    def answer(of: list[int]) -> dict[int, Tensor]:
        found, start = shortcut(tokens[torch.from_numpy(grid.token_ids(of))], grid.packing(of, CPU)), 0
        parts = {}
        for window in of:
            size = len(grid.token_ids([window]))
            parts[window] = found[start : start + size]
            start += size
        return parts

    together, every = answer(windows), answer(list(range(grid.count)))
    for window in windows:
        assert torch.allclose(together[window], every[window], atol=1e-5)
        assert torch.allclose(together[window], answer([window])[window], atol=1e-5)

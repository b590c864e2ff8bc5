"""The router's choices against brute force: masks, saliency, scene cuts, budgets."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from hypothesis import example, given
from hypothesis import strategies as st
from torch import Tensor

from surgery.core.windows import WindowGrid
from surgery.operations.window_routing.router import (
    budgeted,
    mask_windows,
    most_urgent,
    salient_windows,
    scene_change,
    sizes,
    thumbnail,
    urgencies,
    window_changes,
    within_budget,
)
from tests.core.geometry import few, grids, window_of

seeds = st.integers(0, 2**32 - 1)
kernels = st.integers(0, 4).map(lambda half: 2 * half + 1)


def rng(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def ids(flags: Tensor) -> set[int]:
    return set(flags.nonzero().flatten().tolist())


# ------------------------------------------------------------------------------------------------ masks


@few
@given(grids, st.integers(1, 3), kernels, st.integers(1, 4), seeds)
def test_mask_windows_are_those_within_the_dilation_of_any_object(
    grid: WindowGrid, objects: int, kernel: int, scale: int, seed: int
) -> None:
    height, width, reach = grid.height * scale, grid.width * scale, kernel // 2
    masks = [torch.rand(height, width, generator=rng(seed + n)) < 0.01 for n in range(objects)]
    expected = set()
    for row, col in torch.stack(masks).any(0).nonzero().tolist():
        for y in range(max(0, row - reach), min(height, row + reach + 1)):
            for x in range(max(0, col - reach), min(width, col + reach + 1)):
                expected.add(window_of(grid, y // scale, x // scale))
    before = [mask.clone() for mask in masks]
    assert ids(mask_windows(masks, grid, kernel)) == expected
    assert all(torch.equal(a, b) for a, b in zip(masks, before, strict=True)), "evidence is not changed"


@few
@given(grids, kernels, seeds)
def test_more_mask_or_more_dilation_never_drops_a_window(grid: WindowGrid, kernel: int, seed: int) -> None:
    mask, other = (torch.rand(grid.height * 2, grid.width * 2, generator=rng(seed + n)) < 0.02 for n in range(2))
    small = ids(mask_windows([mask], grid, kernel))
    assert small <= ids(mask_windows([mask], grid, kernel + 2))
    assert small <= ids(mask_windows([mask, other], grid, kernel))
    assert ids(mask_windows([mask, other], grid, kernel)) == small | ids(mask_windows([other], grid, kernel))


def test_an_empty_mask_touches_no_window() -> None:
    assert not mask_windows([torch.zeros(256, 256, dtype=torch.bool)], WindowGrid(64, 64, 14), 5).any()


# ------------------------------------------------------------------------------------------------ saliency


@few
@given(grids, st.integers(1, 3), st.floats(0.05, 0.99), seeds, st.floats(0.1, 20))
def test_salient_windows_are_the_union_of_the_shortest_prefixes(
    grid: WindowGrid, objects: int, mass: float, seed: int, sharpness: float
) -> None:
    saliency = (torch.randn(objects, grid.tokens, generator=rng(seed)) * sharpness).softmax(-1)
    union = set()
    for row in saliency:
        chosen = ids(salient_windows(row[None], grid, mass))
        union |= chosen
        sums = grid.mass(row[None])[0].double()
        held = float(sums[sorted(chosen)].sum())
        assert chosen, "zero windows must never happen"
        assert held >= mass - 1e-5 or len(chosen) == grid.count
        for window in chosen:
            assert held - float(sums[window]) < mass + 1e-5, "a shorter choice would have done"
        rest = set(range(grid.count)) - chosen
        assert not rest or max(sums[sorted(rest)]) <= min(sums[sorted(chosen)]), "the largest come first"
    assert ids(salient_windows(saliency, grid, mass)) == union


def test_the_crossing_window_is_included_and_an_exact_hit_stops() -> None:
    grid = WindowGrid(4, 4, 2)
    saliency = torch.zeros(1, 16)
    saliency[0, [0, 2, 8, 10]] = torch.tensor([0.125, 0.5, 0.25, 0.125])  # windows 0, 1, 2, 3
    for mass, windows in ((0.1, {1}), (0.5, {1}), (0.51, {1, 2}), (0.75, {1, 2}), (1.0, {0, 1, 2, 3})):
        assert ids(salient_windows(saliency, grid, mass)) == windows


@pytest.mark.parametrize("value", [0.0, 1e-3, math.nan])
def test_a_mass_that_is_never_reached_takes_at_least_one_window(value: float) -> None:
    grid = WindowGrid(6, 6, 4)
    chosen = ids(salient_windows(torch.full((2, 36), value), grid, 1.0))
    assert chosen == set(range(grid.count)) if value == value else len(chosen) >= 1


# ------------------------------------------------------------------------------------------------ scenes


def test_thumbnail_is_the_mean_of_each_block_in_full_precision() -> None:
    pixels = torch.randn(1, 3, 128, 128, generator=rng(4))
    small = thumbnail(pixels)
    assert small.shape == (3, 32, 32)
    assert torch.allclose(small[1, 5, 7], pixels[0, 1, 20:24, 28:32].mean())
    assert thumbnail(pixels.bfloat16()).dtype == torch.float32
    assert thumbnail(pixels, 8).shape == (3, 8, 8)


def test_scene_change_is_zero_for_equal_frames_and_counts_in_pixel_units() -> None:
    first, other = (thumbnail(torch.randn(1, 3, 64, 64, generator=rng(seed))) for seed in (5, 6))
    assert scene_change(first, first).item() == 0
    assert scene_change(first + 0.25, first).item() == pytest.approx(0.25)
    partly = first.clone()
    partly[:, :8] -= 1
    assert scene_change(partly, first).item() == pytest.approx(0.25), "the mean, so that a small object is no cut"
    assert scene_change(first, other).item() == scene_change(other, first).item() > 0
    assert scene_change(first, other).shape == ()
    assert math.isnan(scene_change(first, torch.full_like(first, math.nan)).item()), "the caller treats it as a cut"


# ------------------------------------------------------------------------------------------------ budget


@few
@given(grids, seeds)
def test_window_changes_are_means_over_real_tokens(grid: WindowGrid, seed: int) -> None:
    now, seen = (torch.randn(3, grid.height, grid.width, generator=rng(seed + n)) for n in (0, 1))
    change = (now - seen).abs().mean(0)
    expected = torch.zeros(grid.count)
    tokens = torch.zeros(grid.count)
    for row in range(grid.height):
        for col in range(grid.width):
            window = window_of(grid, row, col)
            expected[window] += change[row, col]
            tokens[window] += 1
    torch.testing.assert_close(window_changes(now, seen, grid), expected / tokens, atol=1e-5, rtol=1e-5)
    assert not window_changes(now, now, grid).any()


windows_of_a_frame = st.lists(st.tuples(st.booleans(), st.floats(0, 3), st.integers(0, 50)), min_size=1, max_size=25)


@few
@given(windows_of_a_frame, st.data())
def test_the_budget_goes_to_the_most_urgent(windows: list[tuple[bool, float, int]], data: st.DataObject) -> None:
    taken, changes, ages = (list(column) for column in zip(*windows, strict=True))
    count = data.draw(st.integers(1, len(windows)))
    chosen = most_urgent(urgencies(taken, changes, ages, 0.5), count)
    assert chosen == sorted(set(chosen))
    assert len(chosen) == count
    for inside in chosen:
        for outside in set(range(len(windows))) - set(chosen):
            better = taken[outside] >= taken[inside] and changes[outside] > changes[inside] + 1e-9
            assert not (better and ages[outside] >= ages[inside]), "a window more urgent in every respect was left out"


def test_a_still_window_is_renewed_in_the_end() -> None:
    """Everything moves but window 2: with a budget of one it still comes up, because it waits."""
    ages = [0, 0, 0]
    for _ in range(200):
        changes = [0.3 * (age + 1) for age in ages[:2]] + [0.0]
        chosen, _ = within_budget([True, True, False], [True, True, False], ages, changes, budget=0.34, fill=True)
        ages = [0 if window in chosen else age + 1 for window, age in enumerate(ages)]
        if chosen == [2]:
            return
    raise AssertionError("window 2 was never computed")


@given(
    st.integers(2, 30), st.floats(0.01, 1.0), st.integers(0, 5), st.floats(0.0, 1.0), st.booleans(), st.integers(0, 4),
    st.floats(0.0, 1.0), seeds,
)  # fmt: skip
def test_no_window_of_an_object_waits_longer_than_max_wait(
    count: int, budget: float, max_wait: int, background: float, fill: bool, rolling: int, share: float, seed: int
) -> None:
    """Objects that come, go, move and grow at random; the frame has one of three sizes or is dense."""
    draw = rng(seed)
    ages, allowed = [0] * count, sizes(count, budget)
    touched = [False] * count
    assert 1 <= len(allowed) <= 3
    for _ in range(40):
        if torch.rand((), generator=draw) < 0.3:
            touched = (torch.rand(count, generator=draw) < share).tolist()
        changes = torch.rand(count, generator=draw).tolist()
        taken = [here or bool(torch.rand((), generator=draw) < 0.1) for here in touched]
        chosen, over = within_budget(
            taken, touched, ages, changes, budget=budget, rolling=rolling, fill=fill, max_wait=max_wait,
            background=background,
        )  # fmt: skip
        assert chosen == sorted(set(chosen))
        ages = [0 if window in chosen else age + 1 for window, age in enumerate(ages)]
        assert all(age <= max_wait for age, here in zip(ages, touched, strict=True) if here)
        assert len(chosen) in (*allowed, count) or (not fill and len(chosen) < allowed[0])
        assert over == ("large object" if len(chosen) > allowed[0] else None)


@given(st.integers(4, 30), st.integers(1, 4), st.integers(1, 4), seeds)
def test_an_object_that_fits_is_spread_evenly(count: int, max_wait: int, most: int, seed: int) -> None:
    """An object of at most (max_wait + 1) x budget windows never needs more than the budget, however it changes."""
    most = min(most, count)
    size = min(count, most * (max_wait + 1))
    touched = [window < size for window in range(count)]
    ages, draw = [0] * count, rng(seed)
    for _ in range(30):
        changes = torch.rand(count, generator=draw).tolist()
        chosen, over = within_budget(
            touched, touched, ages, changes, budget=most / count, fill=True, max_wait=max_wait, background=1.0
        )
        assert over is None
        ages = [0 if window in chosen else age + 1 for window, age in enumerate(ages)]


def test_without_a_bound_the_budget_holds() -> None:
    chosen, over = within_budget([True] * 10, [True] * 10, [9] * 10, [1.0] * 10, budget=0.2, fill=True)
    assert chosen == [0, 1]
    assert over is None


def test_few_windows_round_a_budget_up() -> None:
    shares = (0.2, 0.26, 0.33, 0.34, 0.5, 1.0)
    assert [budgeted(share, 9) for share in shares] == [2, 3, 3, 3, 5, 9]
    assert [budgeted(share, 16) for share in shares] == [3, 4, 5, 5, 8, 16]
    assert [budgeted(share, 25) for share in shares] == [5, 6, 8, 8, 12, 25]
    assert budgeted(0.01, 4) == 1


@given(
    st.integers(2, 30), st.floats(0.01, 1.0), st.booleans(), st.one_of(st.none(), st.integers(0, 3)),
    st.floats(0.0, 1.0), st.integers(1, 5), seeds,
)  # fmt: skip
@example(16, 0.25, True, 1, 0.9, 1, 0)  # 14 windows of objects, none due: 12 where sure, and then not 8
def test_an_unsure_mask_takes_the_next_size(
    count: int, budget: float, fill: bool, max_wait: int | None, share: float, oldest: int, seed: int
) -> None:
    draw, allowed = rng(seed), sizes(count, budget)
    touched = (torch.rand(count, generator=draw) < share).tolist()
    ages = torch.randint(0, oldest, (count,), generator=draw).tolist()
    changes = torch.rand(count, generator=draw).tolist()
    how: dict[str, Any] = {"budget": budget, "fill": fill, "max_wait": max_wait}
    sure, _ = within_budget(touched, touched, ages, changes, **how)
    unsure, reason = within_budget(touched, touched, ages, changes, **how, unsure=True)
    assert reason in ("unsure mask", "large object")
    assert len(unsure) >= len(sure) or not fill
    assert len(unsure) in (*allowed, count) or not fill
    if fill and reason == "unsure mask":
        assert len(unsure) == (allowed[1:] or allowed)[0]


def test_background_says_what_a_window_without_an_object_counts() -> None:
    given_ = ([True, False], [True, False], [0, 0], [0.1, 0.4])
    assert within_budget(*given_, budget=0.5, fill=True, background=0.5)[0] == [1]
    assert within_budget(*given_, budget=0.5, fill=True, background=0.1)[0] == [0]

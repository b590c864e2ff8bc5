"""The router's choices against brute force: masks, saliency, ages, scene cuts."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from surgery.routing.router import (
    centre,
    longest_waiting,
    mask_windows,
    most_urgent,
    moved,
    prompt_saliency,
    salient_windows,
    scene_change,
    thumbnail,
    window_changes,
)
from surgery.routing.windows import WindowGrid
from tests.routing.geometry import few, grids, window_of

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


@few
@given(st.integers(1, 4), st.integers(1, 10), st.integers(1, 40), st.integers(1, 7), seeds)
def test_prompt_saliency_is_the_mean_softmax_of_the_leading_queries(
    heads: int, queries: int, tokens: int, rows: int, seed: int
) -> None:
    torch.manual_seed(seed % 2**31)
    width = 8
    q_proj, k_proj = torch.nn.Linear(width, heads * 4), torch.nn.Linear(width, heads * 4)
    query, key = torch.randn(1, 1, queries, width), torch.randn(1, 1, tokens, width)
    with torch.no_grad():
        found = prompt_saliency(query, key, q_proj, k_proj, heads, rows)
        q, k = q_proj(query[0, 0]).double(), k_proj(key[0, 0]).double()
        naive = torch.zeros(tokens, dtype=torch.float64)
        used = min(rows, queries)
        for head in range(heads):
            part = slice(4 * head, 4 * head + 4)
            for row in range(used):
                naive += torch.softmax(k[:, part] @ q[row, part] / 2, 0) / (heads * used)
    assert found.dtype == torch.float32
    assert found.shape == (tokens,)
    assert found.sum().item() == pytest.approx(1, abs=1e-5)
    assert torch.allclose(found.double(), naive, atol=1e-6)


def test_prompt_saliency_reads_seven_queries_by_default() -> None:
    """As in the released code: object score, IoU, four masks and one prompt token; the eighth is dropped."""
    projection = torch.nn.Identity()
    query, key = torch.randn(8, 4, generator=rng(0)), torch.randn(30, 4, generator=rng(1))
    seven = prompt_saliency(query, key, projection, projection, 2)
    query[7] += 10
    assert torch.equal(prompt_saliency(query, key, projection, projection, 2), seven)
    query[6] += 10
    assert not torch.equal(prompt_saliency(query, key, projection, projection, 2), seven)


def test_prompt_saliency_of_half_precision_tokens_is_a_full_precision_distribution() -> None:
    projection = torch.nn.Identity()
    query, key = torch.randn(7, 8, generator=rng(2)).bfloat16(), torch.randn(4096, 8, generator=rng(3)).bfloat16()
    found = prompt_saliency(query, key, projection, projection, 1)
    assert found.dtype == torch.float32
    assert found.sum().item() == pytest.approx(1, abs=1e-4)


# ------------------------------------------------------------------------------------------------ ages and scenes


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


@few
@given(st.lists(st.tuples(st.booleans(), st.floats(0, 3), st.integers(0, 50)), min_size=1, max_size=25), st.data())
def test_the_budget_goes_to_the_most_urgent(windows: list[tuple[bool, float, int]], data: st.DataObject) -> None:
    taken, changes, ages = (list(column) for column in zip(*windows, strict=True))
    count = data.draw(st.integers(1, len(windows)))
    chosen = most_urgent(taken, changes, ages, count)
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
        chosen = most_urgent([True, True, False], [0.3 * (age + 1) for age in ages[:2]] + [0.0], ages, 1)
        ages = [0 if window in chosen else age + 1 for window, age in enumerate(ages)]
        if chosen == [2]:
            return
    raise AssertionError("window 2 was never computed")


@few
@given(st.integers(1, 12), st.integers(1, 12), st.integers(-14, 14), st.integers(-14, 14), seeds)
def test_a_moved_mask_is_itself_and_its_copy_cut_off_at_the_border(
    height: int, width: int, down: int, right: int, seed: int
) -> None:
    mask = torch.rand(height, width, generator=rng(seed)) > 0.7
    found = moved(mask, torch.tensor([float(down), float(right)]))
    for row in range(height):
        for col in range(width):
            source = (row - down, col - right)
            inside = 0 <= source[0] < height and 0 <= source[1] < width
            assert bool(found[row, col]) == bool(mask[row, col] or (inside and mask[source]))


def test_an_object_out_of_sight_moves_nowhere() -> None:
    mask = torch.zeros(6, 6, dtype=torch.bool)
    mask[1:3, 2:4] = True
    assert centre(mask).tolist() == [1.5, 2.5]
    offset = centre(mask) - centre(torch.zeros(6, 6, dtype=torch.bool))
    assert torch.equal(moved(mask, offset), mask)

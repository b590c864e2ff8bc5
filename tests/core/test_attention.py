"""Attention by explicit indices: over a subset of rows it is dense attention with the other rows masked out."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from surgery.core.attention import AttentionCall, Projections, rotate, split_heads

few = settings(max_examples=40, deadline=None)
TOKENS, CHANNELS, MEMORY = 9, 16, 8


def randn(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def table(tokens: int, pairs: int, seed: int = 5) -> Tensor:
    angle = randn(tokens, pairs, seed=seed) * 3
    return torch.stack([angle.cos(), angle.sin()], -1)


def projections(heads: int, memory: int = MEMORY) -> Projections:
    torch.manual_seed(0)
    key, value = nn.Linear(memory, CHANNELS), nn.Linear(memory, CHANNELS)
    return Projections(nn.Linear(CHANNELS, CHANNELS), key, value, nn.Linear(CHANNELS, CHANNELS), heads)


def call(query: Tensor, key: Tensor, value: Tensor, parts: Projections, grid: Tensor, **how: Any) -> AttentionCall:
    """A call on a grid of as many tokens as `grid` has rows."""

    def of(tokens: int) -> Tensor:
        assert tokens == len(grid)
        return grid

    return AttentionCall(query, key, value, parts, of, 0, **how)


def reading(index: Tensor, length: int, pointers: int) -> dict[str, Any]:
    """Of `length` rows only `index`; whatever lies before the pointers carries a position."""
    return {"rows": index, "spots": index[index < length - pointers] % TOKENS, "pointers": pointers}


@few
@given(st.integers(1, 3), st.integers(1, 8), st.integers(1, 4))
def test_rotation_turns_every_pair_by_its_angle_and_keeps_lengths(heads: int, tokens: int, pairs: int) -> None:
    given_, code = randn(heads, tokens, 2 * pairs), table(tokens, pairs)
    turned = rotate(given_, code)
    even, odd, cos, sin = given_[..., ::2], given_[..., 1::2], code[..., 0], code[..., 1]
    assert torch.allclose(turned[..., ::2], even * cos - odd * sin, atol=1e-6)
    assert torch.allclose(turned[..., 1::2], even * sin + odd * cos, atol=1e-6)
    assert torch.allclose(turned.norm(dim=-1), given_.norm(dim=-1), atol=1e-5)
    assert torch.allclose(rotate(turned, code * torch.tensor([1.0, -1.0])), given_, atol=1e-5)


def test_rotation_is_the_same_when_it_is_compiled() -> None:
    given_, code = randn(2, 7, 8), table(7, 4)
    compiled: Any = torch.compile(rotate, backend="eager", fullgraph=True)
    assert torch.allclose(compiled(given_, code), rotate(given_, code), atol=1e-6)


def test_rotation_is_computed_in_full_precision_and_returned_in_the_given_one() -> None:
    given_, code = randn(1, 7, 8).bfloat16(), table(7, 4)
    assert torch.equal(rotate(given_, code), rotate(given_.float(), code).bfloat16())


def dense(
    query: Tensor, key: Tensor, value: Tensor, parts: Projections, pointers: int, allowed: Tensor, grid: Tensor
) -> Tensor:
    """Every row projected and rotated, the rows that are not allowed masked with -inf, softmax written out.

    query: [heads, N, d], rotated.
    """
    frames = (key.shape[0] - pointers) // len(grid)
    width = CHANNELS // parts.heads
    k = parts.key(key).reshape(-1, parts.heads, width).transpose(0, 1)
    v = parts.value(value).reshape(-1, parts.heads, width).transpose(0, 1)
    placed = key.shape[0] - pointers
    k = torch.cat([rotate(k[:, :placed], grid.repeat(frames, 1, 1)), k[:, placed:]], 1)
    logits = query @ k.transpose(1, 2) / width**0.5
    weights = logits.masked_fill(~allowed, -torch.inf).softmax(-1)
    return parts.output((weights @ v).transpose(0, 1).flatten(-2))


@few
@given(st.sampled_from([1, 2, 4]), st.integers(1, 4), st.integers(0, 5), st.integers(0, 10**6))
@torch.no_grad()
def test_attention_over_some_rows_is_dense_attention_with_a_mask(
    heads: int, frames: int, pointers: int, seed: int
) -> None:
    length = frames * TOKENS + pointers
    parts, grid = projections(heads), table(TOKENS, CHANNELS // heads // 2)
    key, value = randn(length, MEMORY, seed=seed), randn(length, MEMORY, seed=seed + 1)
    tokens = randn(TOKENS, CHANNELS, seed=seed + 2)
    query = rotate(split_heads(parts.query(tokens), heads), grid)
    allowed = torch.rand(length, generator=torch.Generator().manual_seed(seed)) < 0.4
    allowed[torch.randint(0, length, (1,), generator=torch.Generator().manual_seed(seed))] = True
    allowed[frames * TOKENS :] = True
    for keep in (allowed, torch.ones_like(allowed)):
        rows = reading(keep.nonzero().flatten(), length, pointers)
        found = call(tokens, key, value, parts, grid, **rows).attend()
        assert torch.allclose(found, dense(query, key, value, parts, pointers, keep, grid), atol=2e-5)


@torch.no_grad()
def test_a_row_keeps_the_position_of_its_own_token_and_pointers_have_none() -> None:
    """Moving a kept row changes its rotation; moving a pointer changes nothing."""
    parts, grid = projections(1), table(TOKENS, CHANNELS // 2)
    memory = randn(1, MEMORY, seed=1).repeat(2 * TOKENS + 3, 1)  # all rows alike: only positions differ

    def read(*rows: int) -> Tensor:
        of = reading(torch.tensor(rows), len(memory), 3)
        return call(randn(TOKENS, CHANNELS), memory, value, parts, grid, **of).attend()

    value = randn(len(memory), MEMORY, seed=2)
    value[TOKENS + 4] = value[4]
    value[19] = value[18]
    assert torch.equal(read(4, 8, 18), read(TOKENS + 4, 8, 18)), "same token of another frame, same position"
    value[5] = value[4]
    assert not torch.allclose(read(4, 8, 18), read(5, 8, 18), atol=1e-4)
    assert torch.equal(read(4, 8, 18), read(4, 8, 19))


# ------------------------------------------------------------------------------------------------ some of the queries


@pytest.mark.parametrize("heads", [1, 2])
@torch.no_grad()
def test_self_attention_of_a_subset_is_its_part_of_that_of_all(heads: int) -> None:
    tokens, parts, grid = randn(12, CHANNELS), projections(heads, CHANNELS), table(12, CHANNELS // heads // 2)
    index = torch.tensor([1, 4, 5, 11])

    def found(places: Tensor) -> Tensor:
        return call(tokens[index], tokens, tokens, parts, grid, places=places, tokens=12).attend()

    query = rotate(split_heads(parts.query(tokens), heads), grid)
    expected = dense(query, tokens, tokens, parts, 0, torch.ones(12, dtype=torch.bool), grid)[index]
    assert torch.allclose(found(index), expected, atol=1e-5)
    assert not torch.allclose(found(index), found(index - 1), atol=1e-3), "places matter"


@torch.no_grad()
def test_some_queries_read_a_whole_memory_whose_frames_are_turned_alike_and_pointers_not_at_all() -> None:
    parts, grid = projections(1, 6), table(8, CHANNELS // 2)
    key, value, tokens = randn(8 * 3 + 2, 6), randn(8 * 3 + 2, 6, seed=1), randn(5, CHANNELS, seed=2)
    index = torch.tensor([0, 2, 3, 6, 7])
    query = rotate(split_heads(parts.query(tokens), 1), grid[index])
    found = call(tokens, key, value, parts, grid, pointers=2, places=index, tokens=8).attend()
    expected = dense(query, key, value, parts, 2, torch.ones(26, dtype=torch.bool), grid)
    assert torch.allclose(found, expected, atol=1e-5)


def test_only_a_call_by_indices_is_beyond_the_hosts_own_module() -> None:
    given_ = randn(TOKENS, CHANNELS)
    plain = call(given_, given_, given_, projections(1, CHANNELS), table(TOKENS, CHANNELS // 2))
    assert not plain.explicit
    plain.rows = torch.arange(3)
    assert plain.explicit

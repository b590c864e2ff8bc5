"""Query routing on plain tensors: which tokens, and attention with positions by index."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from surgery.retrieval.attention import Projections, rotate, rotated_query, split_heads
from surgery.retrieval.queries import (
    QueryRoute,
    mask_tokens,
    query_count,
    query_tokens,
    routed_self_attention,
    whole_memory_attention,
)

few = settings(max_examples=60, deadline=None)


def drawn(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def projections(heads: int, width: int = 16, memory: int = 16) -> Projections:
    torch.manual_seed(3)
    sizes = (width, memory, memory, width)
    return Projections(*(nn.Linear(size, width) for size in sizes), heads)


def table(tokens: int, heads: int, width: int = 16) -> tuple[Tensor, Tensor]:
    angles = drawn(tokens, width // heads // 2, seed=5)
    return angles.cos(), angles.sin()


@few
@given(st.integers(0, 63), st.integers(0, 63), st.integers(0, 5))
def test_mask_tokens_reach_margin_tokens_around_every_mask_pixel(row: int, col: int, margin: int) -> None:
    mask = torch.zeros(64, 64, dtype=torch.bool)
    mask[row, col] = True
    found = mask_tokens(mask, 16, 16, margin).reshape(16, 16)
    for y in range(16):
        for x in range(16):
            assert bool(found[y, x]) == (abs(y - row // 4) <= margin and abs(x - col // 4) <= margin)


@few
@given(st.integers(1, 5000), st.data())
def test_counts_cover_what_is_asked_for_in_few_sizes(tokens: int, data: st.DataObject) -> None:
    certain = data.draw(st.integers(1, tokens))
    reached = data.draw(st.integers(0, tokens - certain))
    count = query_count(tokens, certain, reached)
    bucket = max(1, tokens // 64)
    assert certain + reached <= count < certain + reached + bucket or count == tokens
    assert count == tokens or count % bucket == 0


@few
@given(st.integers(2, 80), st.data())
def test_query_tokens_hold_both_sets_and_fill_up_with_the_first_others(tokens: int, data: st.DataObject) -> None:
    certain = sorted(data.draw(st.sets(st.integers(0, tokens - 1), min_size=1)))
    reached = data.draw(st.sets(st.integers(0, tokens - 1)))
    asked = {*certain, *reached}
    count = data.draw(st.integers(len(asked), tokens))
    flags = torch.zeros(tokens, dtype=torch.bool)
    flags[list(reached)] = True
    others = [token for token in range(tokens) if token not in asked][: count - len(asked)]
    assert query_tokens(torch.tensor(certain), flags, count).tolist() == sorted(asked | set(others))


@few
@given(st.integers(2, 400), st.floats(0.01, 1.0), st.data())
def test_a_budget_limits_the_reached_tokens_only(tokens: int, budget: float, data: st.DataObject) -> None:
    certain = data.draw(st.integers(1, tokens))
    reached = data.draw(st.integers(0, tokens - certain))
    count, free = query_count(tokens, certain, reached, budget), query_count(tokens, certain, reached)
    assert certain <= count <= free
    assert count == free or count >= min(round(budget * tokens), tokens)


def test_under_a_budget_the_tokens_that_changed_most_are_queries() -> None:
    reached = torch.tensor([True, True, True, False, False, True])
    changed = torch.tensor([0.1, 0.5, 0.3, 9.0, 0.0, 0.2])
    assert query_tokens(torch.tensor([4]), reached, 3, changed).tolist() == [1, 2, 4]
    assert query_tokens(torch.tensor([4]), reached, 6, changed).tolist() == [0, 1, 2, 3, 4, 5]
    assert query_tokens(torch.tensor([4]), torch.zeros(6, dtype=torch.bool), 2, changed).tolist() == [3, 4]


@pytest.mark.parametrize("heads", [1, 2])
def test_self_attention_of_a_subset_is_its_part_of_that_of_all(heads: int) -> None:
    tokens, parts, (cos, sin) = drawn(12, 16), projections(heads), table(12, heads)
    index = torch.tensor([1, 4, 5, 11])
    found = routed_self_attention(tokens[index], tokens, index, parts, cos, sin)
    query = rotate(split_heads(parts.query(tokens), heads), cos, sin)
    key = rotate(split_heads(parts.key(tokens), heads), cos, sin)
    weight = (query @ key.mT) * (16 // heads) ** -0.5
    mixed = weight.softmax(-1) @ split_heads(parts.value(tokens), heads)
    expected = parts.output(mixed.transpose(0, 1).flatten(-2))[index]
    assert torch.allclose(found, expected, atol=1e-5)
    shifted = routed_self_attention(tokens[index], tokens, index - 1, parts, cos, sin)
    assert not torch.allclose(found, shifted, atol=1e-3), "places matter"


def test_whole_memory_attention_turns_every_frame_alike_and_pointers_not_at_all() -> None:
    parts, (cos, sin) = projections(1, memory=6), table(8, 1)
    key, value, tokens = drawn(8 * 3 + 2, 6), drawn(8 * 3 + 2, 6, seed=1), drawn(5, 16, seed=2)
    index = torch.tensor([0, 2, 3, 6, 7])
    query = rotated_query(tokens, parts, cos[index], sin[index])
    found = whole_memory_attention(query, key, value, 2, parts, cos, sin)
    turned = [rotate(parts.key(key[start : start + 8])[None], cos, sin) for start in (0, 8, 16)]
    keys = torch.cat([*turned, parts.key(key[24:])[None]], dim=1)
    weight = (query @ keys.mT / 4).softmax(-1)
    assert torch.allclose(found, parts.output((weight @ parts.value(value))[0]), atol=1e-5)


def test_tokens_that_are_no_queries_keep_their_last_output_and_inputs() -> None:
    last, inputs, computed = drawn(9, 4), [drawn(9, 4, seed=6), drawn(9, 4, seed=7)], drawn(3, 4, seed=1)
    index = torch.tensor([0, 5, 8])
    route = QueryRoute(index, 9, last, list(inputs))
    kept = [token for token in range(9) if token not in index.tolist()]
    for before, merged in ((last, route.merged(computed)), (inputs[1], route.renewed(computed, 1))):
        assert torch.equal(merged[index], computed)
        assert torch.equal(merged[kept], before[kept])
    assert route.inputs[0] is inputs[0]
    assert torch.equal(last, drawn(9, 4)), "the host may still read the last output"
    assert torch.equal(inputs[1], drawn(9, 4, seed=7))

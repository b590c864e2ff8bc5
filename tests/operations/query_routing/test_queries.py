"""Query routing on plain tensors: which tokens are queries, and what the others keep."""

from __future__ import annotations

import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from surgery.core.evidence import mask_tokens
from surgery.operations.query_routing.queries import QueryRoute, query_count, query_tokens

few = settings(max_examples=60, deadline=None)


def drawn(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


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

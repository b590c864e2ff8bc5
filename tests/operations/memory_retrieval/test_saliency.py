"""What mattered when a memory frame was first read: the measure and the choice."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from surgery.operations.memory_retrieval import saliency
from surgery.operations.memory_retrieval.saliency import asked_by, kept_count, memory_saliency, top_tokens

few = settings(max_examples=60, deadline=None)


def randn(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def naive(query: torch.Tensor, key: torch.Tensor, stride: int, weights: torch.Tensor | None = None) -> torch.Tensor:
    """Softmax over this frame's tokens alone, of every stride-th query: the mean over heads and queries, as published,
    or the largest times the query's weight, made to sum to 1."""
    rows = []
    for head in range(query.shape[0]):
        for index in range(0, query.shape[1], stride):
            logits = key[head].double() @ query[head, index].double() / query.shape[-1] ** 0.5
            rows.append(torch.softmax(logits, 0) * (1.0 if weights is None else float(weights[index])))
    if weights is None:
        return torch.stack(rows).mean(0)
    largest = torch.stack(rows).amax(0)
    return largest / largest.sum()


@few
@given(
    heads=st.integers(1, 4), queries=st.integers(1, 40), tokens=st.integers(1, 30), half=st.integers(1, 4),
    stride=st.integers(1, 9), rows=st.integers(1, 12),
)  # fmt: skip
def test_saliency_is_the_mean_softmax_whatever_the_chunks(
    heads: int, queries: int, tokens: int, half: int, stride: int, rows: int
) -> None:
    query, key = randn(heads, queries, 2 * half), randn(heads, tokens, 2 * half, seed=1)
    for weights in (None, randn(queries, seed=2).exp()):
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(saliency, "_ROWS", rows)
            found = memory_saliency(query, key, stride, weights)
        assert found.dtype == torch.float32
        assert found.shape == (tokens,)
        assert found.sum().item() == pytest.approx(1, abs=1e-5)
        assert torch.allclose(found.double(), naive(query, key, stride, weights), atol=1e-6)


@pytest.mark.parametrize("queries", [saliency._ROWS - 1, saliency._ROWS, saliency._ROWS + 1, 2 * saliency._ROWS])
def test_saliency_at_the_border_of_the_real_chunk(queries: int) -> None:
    query, key = randn(2, queries, 4), randn(2, 50, 4, seed=1)
    assert torch.allclose(memory_saliency(query, key).double(), naive(query, key, 1), atol=1e-6)


def test_saliency_of_half_precision_is_summed_in_full_precision() -> None:
    query, key = randn(1, 1200, 16).bfloat16(), randn(1, 64, 16, seed=1).bfloat16()
    found = memory_saliency(query, key)
    assert found.dtype == torch.float32
    assert found.sum().item() == pytest.approx(1, abs=1e-4)
    assert torch.allclose(found.double(), naive(query, key, 1), atol=1e-4)


def test_saliency_does_not_change_what_it_reads() -> None:
    query, key = randn(1, 6, 4), randn(1, 5, 4, seed=1)
    before = query.clone(), key.clone()
    memory_saliency(query, key)
    assert torch.equal(query, before[0])
    assert torch.equal(key, before[1])


@pytest.mark.parametrize("side", [8, 32])
def test_queries_on_the_object_and_a_sixteenth_of_the_map_around_count_three_times(side: int) -> None:
    cpu, mask = torch.device("cpu"), torch.zeros(64, 64, dtype=torch.bool)
    assert torch.equal(asked_by(None, side**2, cpu), torch.ones(side**2))
    assert torch.equal(asked_by(mask, side**2, cpu), torch.ones(side**2))
    mask[20, 40] = True
    row, col, reach = 20 * side // 64, 40 * side // 64, max(1, side // 16)
    found = asked_by(mask, side**2, cpu).reshape(side, side)
    assert found.dtype == torch.float32
    assert set(found.unique().tolist()) == {1.0, 3.0}
    assert (found == 3.0).sum() == (2 * reach + 1) ** 2
    assert (found[row - reach : row + reach + 1, col - reach : col + reach + 1] == 3.0).all()


@pytest.mark.parametrize(
    ("tokens", "keep", "count"),
    [(4096, 0.05, 204), (4096, 0.1, 409), (4096, 0.2, 819), (4096, 1.0, 4096), (4096, 1e-9, 1), (100, 0.29, 29)],
)
def test_kept_count_rounds_as_published(tokens: int, keep: float, count: int) -> None:
    assert kept_count(tokens, keep) == count


@few
@given(st.integers(1, 5000), st.floats(1e-6, 1.0))
def test_kept_count_is_a_share_and_never_nothing(tokens: int, keep: float) -> None:
    count = kept_count(tokens, keep)
    assert 1 <= count <= tokens
    assert count == 1 or keep * tokens - 1 < count <= keep * tokens + 1e-6
    assert kept_count(tokens, 1.0) == tokens


@few
@given(st.integers(1, 300), st.floats(0.01, 1.0), st.integers(0, 10**6), st.integers(1, 300))
def test_top_tokens_are_sorted_unique_and_the_largest(tokens: int, keep: float, seed: int, distinct: int) -> None:
    values = torch.randint(0, distinct, (tokens,), generator=torch.Generator().manual_seed(seed)).float()  # with ties
    picked = top_tokens(values, keep)
    assert picked.dtype == torch.int64
    assert len(picked) == kept_count(tokens, keep)
    assert picked.tolist() == sorted(set(picked.tolist()))
    rest = torch.ones(tokens, dtype=torch.bool).index_fill_(0, picked, False)
    assert not rest.any() or values[rest].max() <= values[picked].min()

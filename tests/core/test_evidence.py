"""What is known of an object on the frame before: the decoder's saliency, and where a mask moves."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from surgery.core.evidence import centre, doubt_of, moved, prompt_saliency
from tests.core.geometry import few

seeds = st.integers(0, 2**32 - 1)


def rng(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


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


@pytest.mark.parametrize(
    ("logits", "doubt"),
    [
        ([9.0, 9.0, -9.0], 0.0),
        ([9.0, 1.0, -1.0, -9.0], 2 / 3),
        ([0.0, 0.0], 1.0),
        ([-9.0, -9.0], 0.0),
    ],
    ids=["sure", "two of three may be", "all", "nothing there"],
)
def test_doubt_is_the_share_that_may_as_well_not_be(logits: list[float], doubt: float) -> None:
    assert float(doubt_of(torch.tensor(logits))) == pytest.approx(doubt)


@few
@given(st.integers(1, 8), st.integers(1, 8), seeds)
def test_doubt_is_a_share(height: int, width: int, seed: int) -> None:
    logits = 4 * torch.randn(height, width, generator=rng(seed))
    assert 0.0 <= float(doubt_of(logits)) <= 1.0

"""Attention over a subset of rows equals dense attention with the other rows masked out."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from surgery.retrieval.attention import Projections, measure, pruned_attention, rotate, rotated_query
from surgery.retrieval.bank import KeyPlan, Measured
from surgery.retrieval.saliency import memory_saliency, top_tokens

few = settings(max_examples=40, deadline=None)
TOKENS, CHANNELS, MEMORY = 9, 16, 8


def randn(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def tables(tokens: int, pairs: int, seed: int = 5) -> tuple[Tensor, Tensor]:
    angle = randn(tokens, pairs, seed=seed) * 3
    return angle.cos(), angle.sin()


def projections(heads: int) -> Projections:
    torch.manual_seed(0)
    key, value = nn.Linear(MEMORY, CHANNELS), nn.Linear(MEMORY, CHANNELS)
    return Projections(nn.Linear(CHANNELS, CHANNELS), key, value, nn.Linear(CHANNELS, CHANNELS), heads)


def plan_of(index: Tensor | None, pointers: int, length: int) -> KeyPlan:
    """A one-layer plan that reads `index`; whatever lies before the pointers carries a position."""
    rows = None if index is None else index[index < length - pointers] % TOKENS
    return KeyPlan(
        layers=1, query_stride=1, index=[index], rows=[rows], measures=[],
        kept=0, total=0,
    )  # fmt: skip


@few
@given(st.integers(1, 3), st.integers(1, 8), st.integers(1, 4))
def test_rotation_is_complex_multiplication_and_keeps_lengths(heads: int, tokens: int, pairs: int) -> None:
    given_ = randn(heads, tokens, 2 * pairs)
    cos, sin = tables(tokens, pairs)
    turned = rotate(given_, cos, sin)
    product = torch.view_as_complex(given_.reshape(heads, tokens, pairs, 2)) * torch.complex(cos, sin)
    assert torch.allclose(turned, torch.view_as_real(product).flatten(-2), atol=1e-6)
    assert torch.allclose(turned.norm(dim=-1), given_.norm(dim=-1), atol=1e-5)
    assert torch.allclose(rotate(turned, cos, -sin), given_, atol=1e-5)


def test_rotation_is_computed_in_full_precision_and_returned_in_the_given_one() -> None:
    given_, (cos, sin) = randn(1, 7, 8).bfloat16(), tables(7, 4)
    assert torch.equal(rotate(given_, cos, sin), rotate(given_.float(), cos, sin).bfloat16())


def dense(
    query: Tensor, key: Tensor, value: Tensor, parts: Projections, pointers: int, allowed: Tensor, *tables_: Tensor
) -> Tensor:
    """Every row projected and rotated, the rows that are not allowed masked with -inf, softmax written out."""
    (cos, sin), frames = tables_, (key.shape[0] - pointers) // TOKENS
    width = CHANNELS // parts.heads
    k = parts.key(key).reshape(-1, parts.heads, width).transpose(0, 1)
    v = parts.value(value).reshape(-1, parts.heads, width).transpose(0, 1)
    placed = frames * TOKENS
    k = torch.cat([rotate(k[:, :placed], cos.repeat(frames, 1), sin.repeat(frames, 1)), k[:, placed:]], 1)
    logits = query @ k.transpose(1, 2) / width**0.5
    weights = logits.masked_fill(~allowed, -torch.inf).softmax(-1)
    return parts.output((weights @ v).transpose(0, 1).flatten(-2))


@few
@given(st.sampled_from([1, 2, 4]), st.integers(1, 4), st.integers(0, 5), st.integers(0, 10**6))
@torch.no_grad()
def test_pruned_attention_is_dense_attention_with_a_mask(heads: int, frames: int, pointers: int, seed: int) -> None:
    length = frames * TOKENS + pointers
    parts, (cos, sin) = projections(heads), tables(TOKENS, CHANNELS // heads // 2)
    key, value = randn(length, MEMORY, seed=seed), randn(length, MEMORY, seed=seed + 1)
    query = rotated_query(randn(TOKENS, CHANNELS, seed=seed + 2), parts, cos, sin)
    allowed = torch.rand(length, generator=torch.Generator().manual_seed(seed)) < 0.4
    allowed[torch.randint(0, length, (1,), generator=torch.Generator().manual_seed(seed))] = True
    allowed[frames * TOKENS :] = True
    for keep in (allowed, torch.ones_like(allowed)):
        found = pruned_attention(
            query, key, value, plan_of(keep.nonzero().flatten(), pointers, length), 0, parts, cos, sin
        )
        assert torch.allclose(found, dense(query, key, value, parts, pointers, keep, cos, sin), atol=2e-5)


@torch.no_grad()
def test_a_row_keeps_the_position_of_its_own_token_and_pointers_have_none() -> None:
    """Moving a kept row changes its rotation; moving a pointer changes nothing."""
    parts, (cos, sin) = projections(1), tables(TOKENS, CHANNELS // 2)
    query = rotated_query(randn(TOKENS, CHANNELS), parts, cos, sin)
    memory = randn(1, MEMORY, seed=1).repeat(2 * TOKENS + 3, 1)  # all rows alike: only positions differ

    def read(*rows: int) -> Tensor:
        plan = plan_of(torch.tensor(rows), 3, len(memory))
        return pruned_attention(query, memory, value, plan, 0, parts, cos, sin)

    value = randn(len(memory), MEMORY, seed=2)
    value[TOKENS + 4] = value[4]
    value[19] = value[18]
    assert torch.equal(read(4, 8, 18), read(TOKENS + 4, 8, 18)), "same token of another frame, same position"
    value[5] = value[4]
    assert not torch.allclose(read(4, 8, 18), read(5, 8, 18), atol=1e-4)
    assert torch.equal(read(4, 8, 18), read(4, 8, 19))


@torch.no_grad()
@pytest.mark.parametrize(("heads", "stride"), [(1, 1), (2, 3)])
def test_measure_notes_the_salient_tokens_of_the_newest_frame_alone(heads: int, stride: int) -> None:
    parts, (cos, sin) = projections(heads), tables(TOKENS, CHANNELS // heads // 2)
    memory, tokens = randn(3 * TOKENS + 2, MEMORY, seed=3), randn(TOKENS, CHANNELS, seed=4)
    query = rotated_query(tokens, parts, cos, sin)
    newest = torch.arange(TOKENS, 2 * TOKENS)
    item = Measured(frame=7, rows=newest, keep=0.3, counts=True, picked=[None], offset=[None])
    plan = replace(plan_of(None, 2, len(memory)), measures=[item], query_stride=stride)
    measure(query, memory, plan, 0, parts, cos, sin)
    key = parts.key(memory[newest]).reshape(TOKENS, heads, -1).transpose(0, 1)
    saliency = memory_saliency(query, rotate(key, cos, sin), stride)
    expected = top_tokens(saliency, 0.3)
    assert item.offset[0] is not None
    torch.testing.assert_close(item.offset[0], -saliency[expected].sum().log())
    assert item.picked[0] is not None
    assert torch.equal(item.picked[0], expected)
    assert len(expected) == 2
    changed = memory.clone()
    changed[:TOKENS] += 5
    changed[2 * TOKENS :] -= 5
    measure(query, changed, plan, 0, parts, cos, sin)
    assert torch.equal(item.picked[0], expected), "softmax over that frame's tokens only"


def test_a_bias_makes_the_kept_tokens_weigh_as_the_whole_frame_did() -> None:
    """Published pruning loses weight: two equal frames, one pruned to a fifth, no longer count the same."""
    parts, (cos, sin) = projections(1), tables(TOKENS, CHANNELS // 2)
    memory = randn(1, MEMORY, seed=1).repeat(2 * TOKENS, 1)  # every key alike: attention is uniform
    value = torch.cat([torch.zeros(TOKENS, MEMORY), randn(1, MEMORY, seed=2).expand(TOKENS, MEMORY)])
    query = rotated_query(torch.zeros(3, CHANNELS), parts, torch.ones_like(cos[:3]), torch.zeros_like(sin[:3]))
    flat = torch.ones_like(cos), torch.zeros_like(sin)
    kept = torch.arange(0, TOKENS, 5)
    whole = pruned_attention(query, memory, value, plan_of(torch.arange(2 * TOKENS), 0, 2 * TOKENS), 0, parts, *flat)
    index = torch.cat([kept, torch.arange(TOKENS, 2 * TOKENS), torch.zeros(3, dtype=torch.int64)])
    pruned = plan_of(index[:-3], 0, 2 * TOKENS)
    bias = torch.zeros(len(index))
    bias[: len(kept)] = math.log(TOKENS / len(kept))
    bias[-3:] = -math.inf
    balanced = replace(pruned, index=[index], bias=[bias])
    torch.testing.assert_close(pruned_attention(query, memory, value, balanced, 0, parts, *flat), whole)
    unbalanced = pruned_attention(query, memory, value, pruned, 0, parts, *flat)
    assert not torch.allclose(unbalanced, whole, atol=1e-2)


def test_nothing_is_measured_unless_the_plan_says_so() -> None:
    plan = plan_of(None, 0, TOKENS)
    measure(randn(1, 2, 4), randn(TOKENS, MEMORY), plan, 0, projections(1), *tables(TOKENS, 2))
    assert plan.measures == []

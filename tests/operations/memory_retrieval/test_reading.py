"""What a cross-attention measures under a plan, and which rows it is told to read."""

from __future__ import annotations

from dataclasses import replace
from typing import Any, cast

import pytest
import torch
from torch import Tensor, nn

from surgery.core.attention import AttentionCall, Projections, rotate, split_heads
from surgery.core.frame import FrameContext
from surgery.core.session import VideoState
from surgery.core.surgery import Surgery
from surgery.operations import SparseMemoryRetrieval
from surgery.operations.memory_retrieval import BoundRetrieval
from surgery.operations.memory_retrieval.bank import KeyPlan, Measured
from surgery.operations.memory_retrieval.saliency import memory_saliency, top_tokens

TOKENS, CHANNELS, MEMORY = 9, 16, 8


def randn(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def plan_of(**changes: Any) -> KeyPlan:
    nothing = KeyPlan(layers=1, query_stride=1, index=[None], rows=[None], measures=[], kept=0, total=0)
    return replace(nothing, **changes)


def call_of(memory: Tensor, heads: int) -> AttentionCall:
    torch.manual_seed(0)
    key, value = nn.Linear(MEMORY, CHANNELS), nn.Linear(MEMORY, CHANNELS)
    parts = Projections(nn.Linear(CHANNELS, CHANNELS), key, value, nn.Linear(CHANNELS, CHANNELS), heads)
    angle = randn(TOKENS, CHANNELS // heads // 2, seed=5) * 3
    grid = torch.stack([angle.cos(), angle.sin()], -1)
    return AttentionCall(randn(TOKENS, CHANNELS, seed=4), memory, memory, parts, lambda _: grid, 0)


def read(plan: KeyPlan | None, call: AttentionCall) -> AttentionCall:
    """The call as it goes on to the host's module."""
    settings = SparseMemoryRetrieval()
    bound = BoundRetrieval(settings, cast(Surgery, None))
    (run,) = (patch.run for patch in bound.patches() if patch.seam == "cross_attention")
    context = FrameContext(0, VideoState(None), cast(Any, None))
    if plan is not None:
        context.records[settings.type] = plan
    assert run is not None
    found: AttentionCall = run(context, call, lambda taken: taken)
    return found


@torch.no_grad()
@pytest.mark.parametrize(("heads", "stride"), [(1, 1), (2, 3)])
def test_the_salient_tokens_of_the_newest_frame_alone_are_measured(heads: int, stride: int) -> None:
    memory = randn(3 * TOKENS + 2, MEMORY, seed=3)
    newest = torch.arange(TOKENS, 2 * TOKENS)
    item = Measured(frame=7, rows=newest, keep=0.3, counts=True, picked=[None])
    seen: list[tuple[bool, int, Tensor]] = []
    plan = plan_of(measures=[item], query_stride=stride, listener=lambda *what: seen.append(what))
    call = call_of(memory, heads)
    assert not read(plan, call).explicit, "nothing is pruned yet"
    grid = call.grid()
    query = rotate(split_heads(call.parts.query(call.query), heads), grid)
    key = split_heads(call.parts.key(memory[newest]), heads)
    saliency = memory_saliency(query, rotate(key, grid), stride)
    expected = top_tokens(saliency, 0.3)
    assert item.picked[0] is not None
    assert torch.equal(item.picked[0], expected)
    assert len(expected) == 2
    ((conditioning, layer, told),) = seen
    assert (conditioning, layer) == (False, 0)
    torch.testing.assert_close(told, saliency)
    changed = memory.clone()
    changed[:TOKENS] += 5
    changed[2 * TOKENS :] -= 5
    read(plan, call_of(changed, heads))
    assert torch.equal(item.picked[0], expected), "softmax over that frame's tokens only"


@torch.no_grad()
def test_a_query_counts_what_its_place_says() -> None:
    """Also where only some of the tokens are queries."""
    memory, weights = randn(TOKENS, MEMORY, seed=3), randn(TOKENS, seed=7).exp()
    places = torch.tensor([1, 2, 7])

    def told(**changes: Any) -> Tensor:
        seen: list[Tensor] = []
        item = Measured(frame=7, rows=torch.arange(TOKENS), keep=0.3, counts=True, picked=[None])
        read(
            plan_of(measures=[item], weights=weights, listener=lambda *what: seen.append(what[2])),
            replace(call_of(memory, 1), **changes),
        )
        return seen[0]

    call = call_of(memory, 1)
    query, key = call.turned(), call.turned_keys(torch.arange(TOKENS))
    torch.testing.assert_close(told(), memory_saliency(query, key, 1, weights))
    few = told(query=call.query[places], places=places, tokens=TOKENS)
    torch.testing.assert_close(few, memory_saliency(query[:, places], key, 1, weights[places]))


def test_the_rows_of_the_plan_are_read() -> None:
    rows, spots = torch.tensor([0, 4, 12, 18]), torch.tensor([0, 4, 3])
    call = read(plan_of(index=[rows], rows=[spots]), call_of(randn(2 * TOKENS + 2, MEMORY), 1))
    assert (call.rows, call.spots) == (rows, spots)


def test_without_a_plan_nothing_is_measured_and_every_row_is_read() -> None:
    memory = randn(2 * TOKENS, MEMORY)
    for plan in (None, plan_of()):
        call = call_of(memory, 1)
        assert read(plan, call) is call
        assert not call.explicit

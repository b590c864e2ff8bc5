"""Which tokens stand for a memory frame: as many as asked for, the object's first, the weights adding up."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from surgery.core.attention import AttentionCall, Projections
from surgery.core.evidence import mask_tokens
from surgery.operations.memory_retrieval.saliency import kept_count
from surgery.operations.memory_retrieval.sampling import OBJECT_SHARE, sampled

CPU = torch.device("cpu")


def box(side: int, rows: slice, cols: slice) -> torch.Tensor:
    mask = torch.zeros(4 * side, 4 * side, dtype=torch.bool)
    mask[4 * rows.start : 4 * rows.stop, 4 * cols.start : 4 * cols.stop] = True
    return mask


@settings(max_examples=80, deadline=None)
@given(
    side=st.sampled_from([4, 8, 16, 18]),
    keep=st.floats(0.02, 0.98),
    frame=st.integers(-3, 500),
    corners=st.tuples(*[st.integers(0, 18)] * 4),
)
def test_a_sample_stands_for_every_token_once(
    side: int, keep: float, frame: int, corners: tuple[int, int, int, int]
) -> None:
    top, left, bottom, right = (min(each, side) for each in corners)
    mask = box(side, slice(top, max(top, bottom)), slice(left, max(left, right)))
    kept = sampled(mask, side * side, keep, frame, CPU)
    count = kept_count(side * side, keep)
    tokens = kept.tokens[0]
    assert kept.bias is not None
    assert kept.tokens.shape == (1, count)
    assert kept.bias.shape == (count,)
    assert tokens.unique().tolist() == tokens.tolist(), "rising, none twice"
    inside = mask_tokens(mask, side, side, max(1, side // 16))
    mine = inside[tokens]
    stands = kept.bias.exp()
    for part, whole in ((mine, inside), (~mine, ~inside)):
        if bool(part.any()):
            assert float(stands[part].sum()) == pytest.approx(int(whole.sum()), rel=1e-4)
    least = min(int(inside.sum()), int(OBJECT_SHARE * count))
    assert int(mine.sum()) >= least
    assert int(mine.sum()) == least or int((~mine).sum()) == int((~inside).sum()), "more only where no other is left"


@pytest.mark.parametrize("side", [16, 64, 72])
@pytest.mark.parametrize("known", [False, True])
def test_the_background_is_covered_evenly(side: int, known: bool) -> None:
    mask = torch.zeros(4 * side, 4 * side, dtype=torch.bool) if known else None
    kept = sampled(mask, side * side, 0.13, 7, CPU).tokens[0]
    quarter = side // 4
    cells = (kept // side // quarter) * 4 + kept % side // quarter
    counts = torch.bincount(cells, minlength=16).float()
    assert float((counts - counts.mean()).abs().max()) < max(1.5, 0.5 * float(counts.mean()))


def test_frames_in_a_row_keep_other_tokens() -> None:
    kept = [set(sampled(None, 256, 0.13, frame, CPU).tokens[0].tolist()) for frame in range(7)]
    assert len(set.union(*kept)) == 7 * kept_count(256, 0.13)


@pytest.mark.parametrize("object_share", [0.0, 0.1, 1.0])
def test_attention_to_alike_tokens_is_that_to_all(object_share: float) -> None:
    """Where an object's tokens are alike, and the others, a sample reads what the whole frame reads."""
    side, width = 16, 8
    rows = round(object_share * side)
    mask = box(side, slice(0, rows), slice(0, side))
    inside = mask_tokens(mask, side, side, 1)
    generator = torch.Generator().manual_seed(0)
    mine, others = torch.randn(2, width, generator=generator)
    memory = torch.where(inside[:, None], mine, others)
    parts = Projections(torch.nn.Identity(), torch.nn.Identity(), torch.nn.Identity(), torch.nn.Identity(), 1)
    still = torch.tensor([1.0, 0.0]).expand(side * side, width // 2, 2)
    query = torch.randn(side * side, width, generator=generator)
    kept = sampled(mask, side * side, 0.13, 3, CPU)
    spots = kept.tokens[0]
    found = [
        AttentionCall(query, memory, memory, parts, lambda _: still, 0, **chosen).attend()
        for chosen in ({}, {"rows": spots, "spots": spots, "bias": kept.bias})
    ]
    torch.testing.assert_close(found[1], found[0])
    unbiased = AttentionCall(query, memory, memory, parts, lambda _: still, 0, rows=spots, spots=spots).attend()
    assert torch.allclose(unbiased, found[0], atol=1e-4) == (object_share in (0.0, 1.0))


def test_the_rarest_share_is_one_token() -> None:
    kept = sampled(None, 16, 1e-6, 0, CPU)
    assert kept.tokens.shape == (1, 1)
    assert kept.bias is not None
    assert float(kept.bias) == pytest.approx(math.log(16))

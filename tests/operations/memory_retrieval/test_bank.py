"""Which keys are read: `plan_keys` against slow models of the published rule on whole videos and on random banks."""

from __future__ import annotations

from collections import deque
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from surgery.core.attention import Conditioning
from surgery.errors import ModelStateError
from surgery.operations.memory_retrieval.bank import ALIGNMENT, Kept, KeyPlan, ObjectMemory, plan_keys, remember
from surgery.operations.memory_retrieval.saliency import kept_count

TOKENS, LAYERS, KEEP, MIDDLE = 20, 3, 0.2, 5
KEPT = kept_count(TOKENS, KEEP)
few = settings(max_examples=60, deadline=None)
Bank = list[int | None] | list[Conditioning | int]


def picks(frame: int, layer: int) -> list[int]:
    """What the attention would find salient: other tokens for every frame and layer."""
    generator = torch.Generator().manual_seed(1000 * (frame + 500) + layer)
    return sorted(torch.randperm(TOKENS, generator=generator)[:KEPT].tolist())


def plan(bank: Bank, memory: ObjectMemory, pointers: int = 4, **other: Any) -> KeyPlan | None:
    settings_ = {"keep": KEEP, "query_stride": 1, "middle": MIDDLE, "stride": 1, "tokens": TOKENS, "layers": LAYERS}
    settings_ |= {"length": len(bank) * TOKENS + pointers, "pointers": pointers, "device": torch.device("cpu")}
    return plan_keys(bank, memory, **{**settings_, **other})


def step(bank: Bank, memory: ObjectMemory, pointers: int = 4, **other: Any) -> tuple[list[list[int]], int | None]:
    """One frame, as the attention does it: rows read per layer, and the frame that was measured."""
    made = plan(bank, memory, pointers, **other)
    everything = list(range(len(bank) * TOKENS + pointers))
    if made is None:
        return [everything] * LAYERS, None
    for item in made.measures:
        slot = [each.frame if isinstance(each, Conditioning) else each for each in bank].index(item.frame)
        assert item.rows.tolist() == everything[slot * TOKENS : (slot + 1) * TOKENS]
        item.picked = [torch.tensor(picks(item.frame, layer)) for layer in range(LAYERS)]
    read = []
    for index, rows in zip(made.index, made.rows, strict=True):
        assert (index is None) == (rows is None)
        real = index[: len(rows) + pointers].tolist() if index is not None and rows is not None else everything
        read.append(real)
        if rows is not None:
            spatial = [row for row in real if row < len(bank) * TOKENS]
            assert rows.tolist() == [row % TOKENS for row in spatial], "the position of each row's own token"
    assert made.kept == sum(row < len(bank) * TOKENS for rows in read for row in rows)
    assert made.total == LAYERS * len(bank) * TOKENS
    remember(made, memory)
    return read, next((item.frame for item in made.measures if item.counts), None)


def stock_bank(frame: int, stride: int, reverse: bool = False, conditioning: int = 1) -> Bank:
    """Memory frames of a video that starts at 0; mirrored for reverse tracking."""
    near = (frame - 2) // stride * stride
    past = [near - j * stride for j in (4, 3, 2, 1, 0)] + [frame - 1]
    return [None] * conditioning + [-known if reverse else known for known in past if known >= 1]


# ------------------------------------------------------------------------------------------------ whole videos


@pytest.mark.parametrize("reverse", [False, True])
@pytest.mark.parametrize("conditioning", [1, 3])
@pytest.mark.parametrize("stride", [1, 2, 3, 5])
def test_a_video_reads_what_the_published_queue_reads(stride: int, conditioning: int, reverse: bool) -> None:
    """As published: a queue of five; when full, the five middle frames of the next frame read its masks only."""
    memory, queue, first = ObjectMemory(), deque[int](maxlen=5), None
    for frame in range(1, 7 * stride + 4):
        bank, pointers = stock_bank(frame, stride, reverse, conditioning), min(4 * frame, 16)
        read, _ = step(bank, memory, pointers, stride=stride)
        spatial = len(bank) * TOKENS
        expected = [list(range(spatial + pointers))] * LAYERS
        if len(queue) == 5:
            first = first or frame
            assert bank[conditioning:-1] == [-known if reverse else known for known in queue]
            middle = range(conditioning, len(bank) - 1)
            expected = [
                [
                    *range(conditioning * TOKENS),
                    *(slot * TOKENS + row for slot in middle for row in picks(bank[slot] or 0, layer)),
                    *range(spatial - TOKENS, spatial + pointers),
                ]
                for layer in range(LAYERS)
            ]
        assert read == expected, frame
        if frame > 1 and (frame - 1) % stride == 0:
            queue.append(frame - 1)
    assert first == 5 * stride + 2


def test_the_published_share_of_keys() -> None:
    """Stride 1, full bank: 2 * 4096 + 5 * 204 = 9,212 spatial keys a layer."""
    memory = ObjectMemory({frame: Kept(torch.arange(204).expand(4, -1)) for frame in range(5, 11)}, measured=9)
    made = plan([None, *range(5, 11)], memory, 64, tokens=4096, length=7 * 4096 + 64, layers=4, keep=0.05)
    assert made is not None
    assert made.kept == 4 * 9212
    assert all(index is not None and len(index) == 9276 for index in made.index)


@pytest.mark.parametrize(("stride", "reverse"), [(1, False), (1, True), (4, False)])
def test_what_is_remembered_does_not_grow_with_the_video(stride: int, reverse: bool) -> None:
    memory = ObjectMemory()
    for frame in range(1, 501):
        bank = stock_bank(frame, stride, reverse)
        step(bank, memory, stride=stride)
        assert set(memory.frames) <= set(bank)
        assert len(memory.frames) <= 6
    assert memory.measured > 100


# ------------------------------------------------------------------------------------------------ random banks


class SlowModel:
    """The rule in sets and loops: keyed by frame id, nothing assumed about the bank's shape."""

    def __init__(self, stride: int, middle: int) -> None:
        self.stride, self.middle = stride, middle
        self.known: set[int] = set()
        self.measured = 0

    def step(self, bank: Bank, pointers: int) -> tuple[list[list[int]], int | None]:
        tracked = [frame for frame in bank if frame is not None]
        self.known &= set(tracked)
        newest = tracked[-1] if tracked else None
        active = self.measured >= self.middle
        read = []
        for layer in range(LAYERS):
            rows = []
            for slot, frame in enumerate(bank):
                whole = not active or frame is None or frame == newest or frame not in self.known
                rows += [slot * TOKENS + row for row in (range(TOKENS) if whole else picks(frame or 0, layer))]
            read.append(rows + [len(bank) * TOKENS + row for row in range(pointers)])
        measure = newest if newest not in self.known and newest is not None and newest % self.stride == 0 else None
        if measure is not None:
            self.known.add(measure)
            self.measured += 1
        return read, measure


@st.composite
def walks(draw: st.DrawFn) -> tuple[int, int, int, list[tuple[Bank, int, int | None]]]:
    """A pass over a video: per frame the bank the host offers, pointer rows, and a frame that is tracked anew."""
    stride, sign = draw(st.integers(1, 3)), draw(st.sampled_from([1, -1]))
    start, length = draw(st.integers(-5, 20)), draw(st.integers(5, 16))
    frames = []
    for offset in range(1, length):
        past = [start + sign * (offset - back) for back in (7, 6, 5, 4, 3, 2, 1) if back <= offset]
        status = draw(st.lists(st.sampled_from(["tracked"] * 6 + ["conditioning", "missing"]), min_size=7, max_size=7))
        bank: Bank = [None] * draw(st.integers(0, 2))
        bank += [
            frame if kind == "tracked" else None for frame, kind in zip(past, status, strict=False) if kind != "missing"
        ]
        forgotten = draw(st.none() | st.sampled_from(past))
        frames.append((bank, draw(st.integers(0, 8)), forgotten))
    return stride, draw(st.integers(0, 5)), sign, frames


@few
@given(walks())
def test_random_banks_are_read_as_the_slow_model_reads_them(
    walk: tuple[int, int, int, list[tuple[Bank, int, int | None]]],
) -> None:
    stride, middle, _, frames = walk
    memory, slow = ObjectMemory(), SlowModel(stride, middle)
    for bank, pointers, forgotten in frames:
        if not bank:
            continue
        found, measured = step(bank, memory, pointers, stride=stride, middle=middle)
        expected = slow.step(bank, pointers)
        assert (found, measured) == expected
        assert set(memory.frames) == slow.known
        tracked = [slot for slot, frame in enumerate(bank) if frame is not None]
        for rows in found:
            assert rows == sorted(set(rows)), "in order, no row twice"
            assert set(range(len(bank) * TOKENS, len(bank) * TOKENS + pointers)) <= set(rows), "pointers stay whole"
            for slot, frame in enumerate(bank):
                if frame is None or slot == tracked[-1]:
                    assert set(range(slot * TOKENS, (slot + 1) * TOKENS)) <= set(rows), "conditioning and newest: whole"
        if forgotten is not None:
            memory.forget(forgotten)
            slow.known.discard(forgotten)


# ------------------------------------------------------------------------------------------------ one rule each


def full_memory() -> ObjectMemory:
    frames = {frame: Kept(torch.tensor([picks(frame, layer) for layer in range(LAYERS)])) for frame in range(1, 7)}
    return ObjectMemory(frames, measured=6)


@pytest.mark.parametrize(
    "other",
    [{"keep": 1.0}, {"memory_frames": []}, {"length": 7 * TOKENS + 5}, {"length": 6 * TOKENS + 4}, {"tokens": 10}],
)
def test_everything_is_read_when_nothing_may_be_dropped_or_the_bank_is_not_understood(other: dict[str, Any]) -> None:
    bank = other.pop("memory_frames", [None, 1, 2, 3, 4, 5, 6])
    memory = full_memory()
    assert plan(bank, memory, **other) is None
    assert len(memory.frames) == 6


def test_a_frame_is_measured_once() -> None:
    memory = ObjectMemory()
    assert [step([None, 3], memory)[1] for _ in range(3)] == [3, None, None]
    assert memory.measured == 1


def test_a_frame_the_stride_skips_is_never_measured() -> None:
    memory = ObjectMemory()
    assert step([None, 7], memory, stride=2)[1] is None
    assert step([None, 8], memory, stride=2)[1] == 8


def test_a_forgotten_frame_is_read_whole_and_measured_again() -> None:
    memory, bank = full_memory(), [None, 1, 2, 3, 4, 5, 6]
    memory.forget(4)
    memory.forget(99)
    read, measured = step(bank, memory)
    assert measured is None, "it is not the newest frame"
    assert set(range(4 * TOKENS, 5 * TOKENS)) <= set(read[0])
    assert len([row for row in read[0] if 3 * TOKENS <= row < 4 * TOKENS]) == KEPT
    memory.forget(6)
    assert step(bank, memory)[1] == 6


def test_frames_outside_the_bank_are_dropped_even_when_nothing_is_pruned() -> None:
    memory = full_memory()
    step([None, 6, 9], memory, middle=50)
    assert set(memory.frames) == {6, 9}


def test_an_attention_that_did_not_measure_every_layer_is_an_error() -> None:
    memory = ObjectMemory()
    made = plan([None, 1], memory)
    assert made is not None
    made.measures[0].picked = [torch.arange(KEPT), None, torch.arange(KEPT)]
    with pytest.raises(ModelStateError, match="2 of its 3 layers"):
        remember(made, memory)
    assert not memory.frames
    assert memory.measured == 0


def test_a_bank_of_conditioning_frames_alone_needs_no_plan() -> None:
    memory = full_memory()
    assert plan([None, None, None], memory) is None
    assert not memory.frames


def test_a_conditioning_frame_is_measured_when_first_read_and_pruned_afterwards() -> None:
    memory = ObjectMemory()
    first = plan([Conditioning(0)], memory, keep_conditioning=0.5, middle=0)
    assert first is not None
    assert [(item.frame, item.keep, item.counts) for item in first.measures] == [(0, 0.5, False)]
    assert first.index == [None] * LAYERS, "nothing is known yet"
    step([Conditioning(0)], memory, keep_conditioning=0.5, middle=0)
    assert memory.measured == 0, "the warm-up counts tracked frames"
    second = plan([Conditioning(0), 1], memory, keep_conditioning=0.5, middle=0)
    assert second is not None
    assert [item.frame for item in second.measures] == [1]
    for layer, index in enumerate(second.index):
        assert index is not None
        assert index.tolist() == [*picks(0, layer), *range(TOKENS, 2 * TOKENS + 4)]


def test_several_conditioning_frames_are_measured_one_a_call() -> None:
    memory, bank = ObjectMemory(), [Conditioning(0), Conditioning(9), 12]
    found = [plan(bank, memory, keep_conditioning=0.5)]
    step(bank, memory, keep_conditioning=0.5)
    found.append(plan(bank, memory, keep_conditioning=0.5))
    assert [[item.frame for item in made.measures] for made in found if made is not None] == [[12, 0], [9]]


def sample(frame: int, keep: float) -> Kept:
    """The same in all layers, each token standing for as many as the frame's number."""
    kept = torch.tensor([picks(frame, 0)])
    assert keep == KEEP
    return Kept(kept, torch.full((kept.shape[1],), float(frame)))


def test_sampled_frames_are_not_measured_and_carry_their_bias_in_every_layer() -> None:
    memory = ObjectMemory()
    for frame in range(1, 4):
        bank = [Conditioning(0), *range(1, frame + 1)]
        _, measured = step(bank, memory, keep_conditioning=0.5, middle=0, sample=sample)
        assert measured is None
    made = plan([Conditioning(0), 1, 2, 3, 4], memory, keep_conditioning=0.5, middle=0, sample=sample)
    assert made is not None and made.bias is not None
    assert not made.measures
    assert list(made.sampled) == [4]
    for layer, (index, rows) in enumerate(zip(made.index, made.rows, strict=True)):
        assert index is not None and rows is not None
        assert len(index) == len(made.bias)
        assert len(index) % ALIGNMENT == 0
        expected = picks(0, layer) + [token for frame in (1, 2, 3) for token in picks(frame, 0)] + list(range(TOKENS))
        assert rows.tolist() == expected
        real = len(rows) + 4
        stands = [float(frame) for frame in (1, 2, 3) for _ in range(KEPT)]
        assert made.bias[:real].tolist() == [0.0] * KEPT + stands + [0.0] * (TOKENS + 4)
        assert bool((made.bias[real:] == -torch.inf).all()), "padding is never attended to"
    made.restore()
    assert made.bias is None


def test_without_a_warm_up_pruning_starts_with_the_first_measured_frame() -> None:
    memory = ObjectMemory()
    step([None, 1], memory, middle=0)
    read, _ = step([None, 1, 2], memory, middle=0)
    assert len(read[0]) == 2 * TOKENS + KEPT + 4


def test_two_objects_do_not_share_what_they_measured() -> None:
    one, other = ObjectMemory(), ObjectMemory()
    for frame in range(1, 9):
        step(stock_bank(frame, 1), one)
    assert not other.frames
    assert step(stock_bank(9, 1), other) == ([list(range(7 * TOKENS + 4))] * LAYERS, 8)

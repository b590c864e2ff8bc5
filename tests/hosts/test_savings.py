"""Exact savings on either host: what objects share, what is not computed at all; results bit for bit as before."""

from __future__ import annotations

import copy
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from torch import Tensor

import surgery
from surgery.core.patching import host_class, is_patched
from surgery.engine import require_surgery
from surgery.hosts import view_of
from surgery.hosts.transformers.encoder import TransformersEncoderAttention
from surgery.operations import SparseMemoryRetrieval, SparseQueryRouting, SparseWindowRouting
from surgery.operations.exact_savings import SharedWork
from surgery.operations.exact_savings.shared import SharedSelfAttention
from surgery.recipe import Recipe
from tests.hosts.drive import HOSTS, PADDED, STEADY, UNPADDED, Driver, make, square, video
from tests.hosts.sessions import begun, gather, same


@pytest.fixture(params=HOSTS)
def host(request: pytest.FixtureRequest) -> str:
    return request.param


@contextmanager
def counted(driver: Driver) -> Iterator[Counter[int]]:
    """How often every layer's self-attention projected its queries."""
    runs: Counter[int] = Counter()
    hooks = [
        attention.get_submodule("q_proj").register_forward_hook(lambda *_, layer=layer: runs.update([layer]))
        for layer, attention in enumerate(view_of(driver.model).self_attentions())
    ]
    try:
        yield runs
    finally:
        for hook in hooks:
            hook.remove()


def shared(driver: Driver, session: Any) -> SharedWork:
    work: SharedWork = driver.state(session).state(SharedWork)
    return work


# --- the first self-attention of memory attention


@pytest.mark.parametrize("recipe", ["exact", "balanced", "memory-only"])
def test_objects_share_the_first_self_attention(host: str, recipe: str) -> None:
    driver = make(host)
    stock = driver.track(video(6), 3)
    surgery.sparsify(driver.model, recipe)
    session = driver.session(video(6))
    driver.click(session, 0, {1: (70, 120), 3: (200, 60), 5: (60, 210)})
    with counted(driver) as runs:
        masks = gather(driver, session)
    layers = len(view_of(driver.model).self_attentions())
    assert runs == {0: 5, **dict.fromkeys(range(1, layers), 15)}, "five tracked frames, three objects"
    assert shared(driver, session).work is None, "nothing is kept after a frame's last object"
    if recipe == "exact":
        assert same(masks, stock)


@pytest.mark.parametrize("recipe", [STEADY, "balanced", "fast"])
def test_sharing_changes_no_bit_of_a_sparse_video(host: str, recipe: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    driver = make(host)
    surgery.sparsify(driver.model, recipe)
    found = driver.track(video(9), 3)
    monkeypatch.setattr(SharedSelfAttention, "fits", lambda *_: False)
    with counted(driver) as runs:
        assert same(driver.track(video(9), 3), found)
    assert runs[0] == runs[1] == 24


def test_one_object_keeps_nothing(host: str, monkeypatch: pytest.MonkeyPatch) -> None:
    driver = make(host)
    surgery.sparsify(driver.model, "balanced")
    monkeypatch.setattr(SharedSelfAttention, "of", lambda *_: pytest.fail("one object has nobody to share with"))
    assert len(driver.track(video(4))) == 4


def test_features_encoded_again_are_not_shared(host: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The host forgets a frame's features between two objects, and encodes other ones."""
    driver = make(host)
    surgery.sparsify(driver.model, "exact")
    session = driver.session(video(4))
    driver.click(session, 0, {1: (70, 120), 3: (200, 60)})
    seam, changed = "_prepare_memory_conditioned_features", []
    original = getattr(type(driver.model), seam)

    def forgetting(model: Any, *args: Any, **kwargs: Any) -> Tensor:
        context = require_surgery(model).context
        assert context is not None and context.step is not None
        step = context.step
        out: Tensor = original(model, *args, **kwargs)
        if step.obj_id == 1 and step.frame == 2:
            step.handle.evict(2)
            images = session["images"] if host == "sam2" else session.processed_frames
            changed.append(images[2].clone())
            images[2] = images[2].flip(-1)
        return out

    monkeypatch.setattr(type(driver.model), seam, forgetting)
    with counted(driver) as runs:
        found = gather(driver, session)
    assert len(changed) == 1
    assert runs[0] == 4, "frames 1 and 3 once, frame 2 for either object"
    with monkeypatch.context() as patch:
        patch.setattr(SharedSelfAttention, "fits", lambda *_: False)
        again = driver.session(video(4))
        driver.click(again, 0, {1: (70, 120), 3: (200, 60)})
        session, changed[:] = again, []
        assert same(gather(driver, again), found)


def test_after_a_prompt_or_a_jump_nothing_shared_before_is_read(host: str) -> None:
    """As an error between two objects of a frame leaves it."""
    driver = make(host)
    surgery.sparsify(driver.model, "balanced")
    found = []
    for stale in (None, SharedSelfAttention.of(2, torch.zeros(256, 1, 256), None)):
        session, _run = begun(driver, video(6), 3, {1: (70, 120), 3: (200, 60)}, count=3)
        if stale is not None:
            stale.output = torch.full((1, 256, 256), torch.nan)
        shared(driver, session).work = stale
        driver.mask(session, 2, {1: square(80, 80)})
        masks = gather(driver, session, start=2, count=1)
        shared(driver, session).work = stale
        found.append([*masks, *gather(driver, session, start=4, count=1)])
        assert shared(driver, session).work is None
    assert same(*found)


def test_query_routing_shares_on_dense_frames_only(host: str) -> None:
    routing = SparseWindowRouting(temporal=True, rolling=1, score_gate=0.0, candidates="best", dilation=1, budget=0.25)
    operations = (routing, SparseMemoryRetrieval(), SparseQueryRouting(margin=1))
    driver = make(host)
    surgery.sparsify(driver.model, Recipe(metadata={"name": "q", "description": "q"}, operations=operations))
    with counted(driver) as runs:
        driver.track(video(6), 3)
    dense = surgery.status(driver.model).dense_frames or {}
    assert runs[1] == 15
    assert runs[0] == 15 - 2 * sum(dense.values()), dense


def test_work_fits_the_same_bytes_only() -> None:
    features, positions = torch.randn(16, 1, 8), torch.randn(16, 1, 8)
    work = SharedSelfAttention.of(3, features, positions)
    assert work.fits(3, features.permute(0, 1, 2), positions)
    assert not work.fits(4, features, positions)
    assert not work.fits(3, features.clone(), positions)
    assert not work.fits(3, features, positions.clone())
    assert not work.fits(3, features, None)
    assert not work.fits(3, features.view(torch.int32), positions)
    with torch.autocast("cpu", torch.bfloat16):
        assert not work.fits(3, features, positions)
        assert SharedSelfAttention.of(3, features, None).fits(3, features, None)


def test_eager_attention_returns_every_objects_weights() -> None:
    """Its weights are T x T: they are not kept, so eager attention is not shared."""
    driver = make("transformers")
    driver.model.set_attn_implementation("eager")
    surgery.sparsify(driver.model, "exact")
    seen = []
    first = view_of(driver.model).self_attentions()[0]
    hook = first.register_forward_hook(lambda _m, _a, out: seen.append(out[1]))
    driver.track(video(3), 2)
    hook.remove()
    assert len(seen) == 4
    assert all(isinstance(weights, Tensor) for weights in seen)


# --- the encoder attention of transformers


@pytest.mark.parametrize("windows", [UNPADDED, PADDED], ids=["unpadded", "padded"])
@pytest.mark.parametrize("kind", ["sdpa", "eager"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_every_encoder_block_without_the_dead_product_is_bit_equal(
    windows: tuple[int, ...], kind: str, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = make("transformers", windows).model.to(dtype)
    model.set_attn_implementation(kind)
    pixels = video(1).to(dtype)
    attentions = [block.attn for block in model.vision_encoder.backbone.blocks]
    inputs: list[Tensor] = []
    hooks = [
        part.register_forward_pre_hook(lambda _m, _a, kw: inputs.append(kw["hidden_states"]), with_kwargs=True)
        for part in attentions
    ]
    with torch.no_grad():
        stock = model.vision_encoder(pixels).fpn_hidden_states
        for hook in hooks:
            hook.remove()
        wanted = [part(each) for part, each in zip(attentions, inputs, strict=True)]
        surgery.sparsify(model, "balanced")
        assert all(isinstance(part, TransformersEncoderAttention) for part in attentions)
        softmax = torch.nn.functional.softmax
        shapes: list[torch.Size] = []

        def noted(x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
            shapes.append(x.shape)
            return softmax(x, *args, **kwargs)

        monkeypatch.setattr(torch.nn.functional, "softmax", noted)
        found = [part(each) for part, each in zip(attentions, inputs, strict=True)]
        assert len(shapes) == (len(attentions) if kind == "eager" else 0), "one softmax a block, and only in eager"
        monkeypatch.undo()
        assert same(found, wanted)
        assert same(list(model.vision_encoder(pixels).fpn_hidden_states), list(stock))


@pytest.mark.parametrize("recipe", ["balanced", "memory-only"])
def test_records_and_undo_of_the_encoder_attention(recipe: str) -> None:
    model = make("transformers").model
    attention = model.vision_encoder.backbone.blocks[0].attn
    with torch.no_grad():
        stock = model.vision_encoder(video(1), output_hidden_states=True, output_attentions=True)
        surgery.sparsify(model, recipe)
        sparse = model.vision_encoder(video(1), output_hidden_states=True, output_attentions=True)
        assert len(stock.attentions) == len(sparse.attentions) > 0
        assert same(list(sparse.attentions), list(stock.attentions))
        assert same(list(sparse.hidden_states), list(stock.hidden_states))
        twin = copy.deepcopy(model)
        assert same(list(twin.vision_encoder(video(1)).fpn_hidden_states), list(stock.fpn_hidden_states))
    surgery.desparsify(model)
    assert not is_patched(attention)
    assert type(attention) is host_class(attention)

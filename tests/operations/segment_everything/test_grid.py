"""The host's own grid: lazy is the stock generator's records bit for bit, folded its logits to rounding."""

from __future__ import annotations

import numpy as np
import pytest
import torch

import surgery
from surgery import ModelStateError, UnsupportedModelError
from surgery.core.patching import is_patched
from surgery.operations.segment_everything.filters import best_of_each, boxes_of
from surgery.operations.segment_everything.folded import transform
from tests.hosts.drive import make, video
from tests.operations.segment_everything.hosts import HOSTS, KINDS, frame, model, recipe, same, stock_generator


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("host", HOSTS)
def test_lazy_records_are_the_stock_ones_bit_for_bit(host: str, kind: str) -> None:
    if (host, kind) == ("transformers", "video"):
        pytest.skip("its own pipeline takes no video model")
    own = model(host, kind)
    stock = stock_generator(host, own)
    for picture in (frame(), frame(3, "hard")):
        expected = stock(picture)
        surgery.sparsify(own, recipe())
        found = surgery.everything(own, picture)
        assert len(found) and same(found, expected)
        assert same(stock(picture), expected), "the host's own call changed"
        surgery.desparsify(own)


def test_a_video_model_of_transformers_gives_what_its_image_model_gives() -> None:
    found = []
    for kind in KINDS:
        own = surgery.sparsify(model("transformers", kind), recipe())
        found.append(surgery.everything(own, frame()))
    assert same(*found)


@pytest.mark.parametrize("host", HOSTS)
def test_nothing_survives(host: str) -> None:
    own = model(host, "image")
    expected = stock_generator(host, own, iou=0.999)(frame())
    found = surgery.everything(surgery.sparsify(own, recipe(**{"filters.iou": 0.999})), frame())
    assert same(found, expected) and not len(found["masks"] if host == "transformers" else found)


@pytest.mark.parametrize("batch", [5, 64])
@pytest.mark.parametrize("host", HOSTS)
def test_folded_logits_are_the_stock_ones_to_rounding(host: str, batch: int) -> None:
    own = surgery.sparsify(model(host), recipe())
    driver = surgery.engine.current_surgery(own).find(surgery.operations.segment_everything.Everything).driver()
    with torch.no_grad():
        picture, parts = driver.encode(frame()), driver.decoder()
        tokens = parts.with_prompts(driver.point_prompts(driver.grid(8, picture).inputs[:batch]))
        repeated = picture.embedding.repeat_interleave(batch, 0)
        stock = parts.transform(repeated, picture.positions, tokens)
        folded = transform(parts, picture.embedding, picture.positions, tokens)
        logits, scores = [], []
        for words, image in (stock, folded):
            large = parts.upscaled(image.transpose(1, 2).unflatten(2, (16, 16)), *picture.fine)
            logits.append(parts.logits(words, large))
            scores.append(parts.scores(words))
    assert torch.allclose(*logits, rtol=1e-5, atol=1e-5 * float(logits[0].abs().max()))
    assert torch.allclose(*scores, atol=1e-5)


@pytest.mark.parametrize("host", HOSTS)
def test_folded_records_are_the_stock_ones_where_no_tie_decides(host: str) -> None:
    masks = []
    for folded in (False, True):
        own = surgery.sparsify(model(host), recipe(folded=folded))
        found = surgery.everything(own, frame())
        records = found["masks"] if host == "transformers" else [each["segmentation"] for each in found]
        masks.append([np.asarray(each) for each in records])
    assert len(masks[0]) == len(masks[1]) > 3
    for one, other in zip(*masks, strict=True):
        assert (one != other).mean() < 1e-4


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("host", HOSTS)
def test_undo_leaves_nothing(host: str, kind: str) -> None:
    own = model(host, kind)
    before = {name: value.clone() for name, value in own.state_dict().items()}
    classes = [type(module) for module in own.modules()]
    held = {name: set(vars(module)) for name, module in own.named_modules()}
    surgery.sparsify(own, recipe())
    surgery.everything(own, frame())
    surgery.desparsify(own)
    assert [type(module) for module in own.modules()] == classes
    assert {name: set(vars(module)) for name, module in own.named_modules()} == held
    after = own.state_dict()
    assert after.keys() == before.keys() and all(torch.equal(after[name], before[name]) for name in before)


@pytest.mark.parametrize("host", HOSTS)
def test_tracking_is_as_without_it(host: str) -> None:
    driver = make(host)
    stock = driver.track(video(4))
    surgery.sparsify(driver.model, recipe())
    assert all(map(torch.equal, driver.track(video(4)), stock))
    balanced = surgery.Recipe.load("balanced")
    surgery.sparsify(driver.model, balanced)
    sparse = driver.track(video(4))
    surgery.sparsify(driver.model, balanced.with_operation(recipe().operations[0]))
    assert all(map(torch.equal, driver.track(video(4)), sparse))


@pytest.mark.parametrize("host", HOSTS)
def test_between_two_frames_of_a_video(host: str) -> None:
    """The picture goes through the same encoder, and the video does not notice."""

    def masks(between: bool) -> list[torch.Tensor]:
        driver = make(host)
        surgery.sparsify(driver.model, surgery.Recipe.load("balanced").with_operation(recipe().operations[0]))
        session = driver.session(video(4))
        driver.click(session, 0, {7: (70, 120)})
        found = []
        for _, each in driver.propagate(session):
            found += each.values()
            if between:
                surgery.everything(driver.model, frame())
        return found

    assert all(map(torch.equal, masks(False), masks(True)))


@pytest.mark.parametrize("host", HOSTS)
def test_an_image_model_takes_no_other_operation(host: str) -> None:
    own = model(host, "image")
    for other in ("balanced", surgery.Recipe.load("balanced").with_operation(recipe().operations[0])):
        with pytest.raises(UnsupportedModelError, match="no previous frame"):
            surgery.sparsify(own, other)
    assert not any(map(is_patched, own.modules()))


@pytest.mark.parametrize("host", HOSTS)
def test_a_model_without_the_operation(host: str) -> None:
    own = model(host)
    with pytest.raises(ModelStateError, match="call sparsify"):
        surgery.everything(own, frame())
    surgery.sparsify(own, "exact")
    with pytest.raises(ModelStateError, match="has no segment_everything"):
        surgery.everything(own, frame())


def test_inside_disabled_the_hosts_own_grid_is_decoded() -> None:
    own = surgery.sparsify(model("sam2"), recipe(points=1))
    with surgery.disabled(own):
        assert surgery.everything(own, frame()) == []  # at the stock thresholds the embedded model has no mask


def test_suppression_is_torchvisions() -> None:
    from torchvision.ops import batched_nms

    generator = torch.Generator().manual_seed(0)
    corners = torch.randint(0, 40, (300, 2), generator=generator)
    boxes = torch.cat([corners, corners + torch.randint(0, 40, (300, 2), generator=generator)], 1)
    scores = torch.randint(0, 50, (300,), generator=generator) / 50
    for most in (0.3, 0.5, 0.7):
        expected = batched_nms(boxes.float(), scores, torch.zeros(300), most)
        assert torch.equal(best_of_each(boxes, scores, most), expected)
    assert best_of_each(boxes[:0], scores[:0], 0.7).tolist() == []


def test_boxes_of_masks() -> None:
    masks = torch.zeros(3, 6, 9, dtype=torch.bool)
    masks[0, 2:4, 3:8] = True
    masks[1, 5, 8] = True
    assert boxes_of(masks).tolist() == [[3, 2, 7, 3], [8, 5, 8, 5], [0, 0, 0, 0]]

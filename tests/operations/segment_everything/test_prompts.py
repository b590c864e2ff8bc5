"""Fewer prompts: a hierarchical grid, boxes of a fitted head, boxes of a detector from the Hub."""

from __future__ import annotations

import copy
import functools
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from click.testing import CliRunner

import surgery
from surgery import AdapterMismatchError, CalibrationError, ModelStateError, RecipeError, WeightsError
from surgery.adapters.warned import UnprovenBaseWarning
from surgery.cli.main import main
from surgery.core.patching import is_patched
from surgery.operations.segment_everything.fit import fit_head, generalised_iou, targets
from surgery.operations.segment_everything.head import Level, ProposalHead, proposals
from surgery.operations.segment_everything.teacher import largest_pieces
from surgery.pictures import bound_of, found_in
from tests.operations.segment_everything.hosts import HOSTS, frame, model, recipe, same

QUICK: Any = {"boxes.max_prompts": 12, "boxes.residual_points": 0, "max_recall_drop": 1.0}
"""What a head says after so few steps is poor: tests look at what is done with it."""


@functools.cache
def _pictures() -> list[Any]:
    return [frame(number, level) for number in range(4) for level in ("easy", "medium")]


@functools.cache
def _fitted() -> tuple[Any, Any]:
    own = model("sam2")
    report = surgery.fit_everything(own, _pictures(), recipe("everything", **QUICK), steps=25, progress=False)
    return own, report


def fitted() -> Any:
    return copy.deepcopy(_fitted()[0])


# ------------------------------------------------------------------------------------------------------ hierarchical


@pytest.mark.parametrize("host", HOSTS)
def test_fine_points_run_where_no_trusted_mask_lies(host: str) -> None:
    own = model(host)
    counts = {}
    for logit in (0.0, 1000.0):
        coarse = {"coarse.points": 6, "coarse.iou": 0.4, "coarse.stability": 0.6, "coarse.logit": logit}
        surgery.sparsify(own, recipe("everything-grid", points=12, **coarse))
        found = found_in(own, frame())
        counts[logit] = bound_of(own).prompts
        assert len(found.masks) > 2
    assert 36 <= counts[0.0] < counts[1000.0] == 36 + 144


def test_its_threshold_is_the_lowest_that_keeps_the_promise() -> None:
    own = model("sam2")
    loose = recipe("everything-grid", **{"coarse.points": 4, "coarse.iou": 0.5, "coarse.stability": 0.6, "points": 6,
                                         "max_recall_drop": 1.0})  # fmt: skip
    report = surgery.fit_everything(own, _pictures(), loose, progress=False)
    assert report.chosen == {"everything.coarse.logit": 0.0} and report.kept
    assert report.prompts < 16 + 36 and bound_of(own).settings.coarse.logit == 0.0


# -------------------------------------------------------------------------------------------------------------- head


def test_the_head_proposes_what_the_teacher_showed() -> None:
    _, report = _fitted()
    assert report.pictures == 6 and report.held_out == 2
    assert report.kept and report.teacher_prompts == 64 and report.prompts == 12
    own = fitted()
    found = found_in(own, frame())
    assert bound_of(own).prompts == 12 and len(found.masks)
    assert (found.scores * found.stability).diff().le(0).all(), "best first"


def test_a_head_learns_where_a_box_is() -> None:
    head = ProposalHead((8, 8, 8), width=16)
    assert not head.fitted
    generator = torch.Generator().manual_seed(0)
    features, boxes = [], []
    for _ in range(8):
        x, y = torch.randint(8, 72, (2,), generator=generator).tolist()
        picture = torch.zeros(1, 8, 128, 128)
        picture[:, 0, y : y + 40, x : x + 40] = 1.0
        features.append(tuple(torch.nn.functional.avg_pool2d(picture, stride) for stride in (4, 8, 16)))
        boxes.append(torch.tensor([[x, y, x + 40.0, y + 40.0]]))
    fit_head(head, features, boxes, 120)
    hits = []
    for picture, box in zip(features, boxes, strict=True):
        found, scores = proposals(head(picture)[0], 128, 3, 0.5, 0.0)
        assert scores.diff().le(0).all()
        hits.append(float(generalised_iou(found[:1], box)))
    assert head.fitted and min(hits) > 0.4


def test_targets_go_to_the_level_of_their_size_and_the_smallest_box_wins() -> None:
    levels = [Level(stride, torch.zeros(1, 256 // stride, 256 // stride), torch.ones(4, 256 // stride, 256 // stride))
              for stride in (4, 8, 16)]  # fmt: skip
    boxes = torch.tensor([[0.0, 0, 200, 200], [88, 88, 112, 112], [90, 90, 110, 110]])
    small, middle, large = targets(levels, boxes)
    assert set(small.unique().tolist()) == {-1, 2} and set(middle.unique().tolist()) == {-1}
    assert set(large.unique().tolist()) == {-1, 0}
    assert all(each.eq(-1).all() for each in targets(levels, boxes[:0]))


def test_the_largest_piece() -> None:
    masks = torch.zeros(3, 20, 30, dtype=torch.bool)
    masks[0, 2:6, 2:6] = True
    masks[0, 10:18, 10:25] = True
    masks[1, 5, 5] = masks[1, 6, 6] = masks[1, 9, 20] = True  # diagonal neighbours are one piece
    spiral = torch.tensor([[1, 1, 1, 1, 1], [0, 0, 0, 0, 1], [1, 1, 1, 0, 1], [1, 0, 0, 0, 1], [1, 1, 1, 1, 1]])
    masks[2, 5:10, 5:10] = spiral.bool()
    found = largest_pieces(masks)
    assert found.flatten(1).sum(1).tolist() == [120, 2, int(spiral.sum())]
    assert not found[0, :8].any()


@pytest.mark.parametrize("host", HOSTS)
def test_an_adapter_goes_into_either_host(host: str, tmp_path: Path) -> None:
    surgery.save_adapter(_fitted()[0], tmp_path / "head")
    assert sum(file.stat().st_size for file in (tmp_path / "head").iterdir()) < 1_000_000
    own = surgery.load_adapter(model(host), tmp_path / "head")
    found = found_in(own, frame())
    expected = found_in(_fitted()[0], frame())
    if host == "sam2":
        assert torch.equal(found.masks, expected.masks)
    else:  # the hosts resize pictures differently
        assert abs(len(found.masks) - len(expected.masks)) <= 3
    assert surgery.status(own).parameters_added > 0
    verified = CliRunner().invoke(main, ["verify", str(tmp_path / "head"), "--model", "demo", "--host", host])
    assert "proposal head" in verified.stdout and "is the base model" in verified.stdout, verified.output
    surgery.save_adapter(own, tmp_path / "again")
    for file in (tmp_path / "head").iterdir():
        assert file.read_bytes() == (tmp_path / "again" / file.name).read_bytes()
    surgery.desparsify(own)
    assert not any("proposals" in name for name in own.state_dict())


def test_an_adapter_of_other_weights_is_refused(tmp_path: Path) -> None:
    surgery.save_adapter(_fitted()[0], tmp_path / "head")
    own = model("sam2")
    with torch.no_grad():
        own.sam_prompt_encoder.point_embeddings[2].weight.add_(0.5)
    with pytest.raises(AdapterMismatchError, match="other weights"):
        surgery.load_adapter(own, tmp_path / "head")
    assert not any(map(is_patched, own.modules()))
    with pytest.warns(UnprovenBaseWarning):
        surgery.load_adapter(own, tmp_path / "head", force=True)


def test_a_damaged_adapter_is_refused(tmp_path: Path) -> None:
    folder = surgery.save_adapter(_fitted()[0], tmp_path / "head")
    whole = (folder / "adapter_model.safetensors").read_bytes()
    (folder / "adapter_model.safetensors").write_bytes(whole[:-8] + np.float32([math.nan, 0]).tobytes())
    with pytest.raises(surgery.AdapterError, match="not finite"):
        surgery.load_adapter(model("sam2"), folder)
    (folder / "adapter_model.safetensors").write_bytes(whole[:200])
    with pytest.raises(surgery.AdapterError, match="safetensors"):
        surgery.load_adapter(model("sam2"), folder)


def test_a_head_with_weights_that_are_not_finite(tmp_path: Path) -> None:
    own = fitted()
    head = bound_of(own).head
    assert head is not None
    head.scales.fill_(math.nan)
    with pytest.raises(WeightsError, match="not finite"):
        surgery.save_adapter(own, tmp_path / "head")
    with pytest.raises(WeightsError, match="not finite"):
        surgery.everything(own, frame())


def test_a_head_that_was_never_fitted() -> None:
    own = surgery.sparsify(model("sam2"), recipe("everything"))
    with pytest.raises(ModelStateError, match="fit_everything"):
        surgery.everything(own, frame())
    with pytest.raises(ModelStateError, match="not fitted"):
        surgery.save_adapter(own, "nowhere")


@pytest.mark.parametrize("host", HOSTS)
def test_no_proposal_gives_no_mask(host: str, tmp_path: Path) -> None:
    surgery.save_adapter(_fitted()[0], tmp_path / "head")
    none = recipe("everything", **QUICK, **{"boxes.least": 1.0})
    own = surgery.sparsify(model(host), none, adapter=tmp_path / "head")
    found = surgery.everything(own, frame())
    assert len(found["masks"] if host == "transformers" else found) == 0 == bound_of(own).prompts
    rest = none.with_values({"everything.boxes.residual_points": 3})
    found = surgery.everything(surgery.sparsify(own, rest, adapter=tmp_path / "head"), frame())
    assert bound_of(own).prompts == 9 and len(found)


def test_one_mask_a_box_is_the_hosts_single_one() -> None:
    from sam2.sam2_image_predictor import SAM2ImagePredictor

    own = fitted()
    predictor = SAM2ImagePredictor(own)
    predictor._bb_feat_sizes = [(64, 64), (32, 32), (16, 16)]
    predictor.set_image(frame())
    bound = bound_of(own)
    driver = bound.driver()
    with torch.no_grad():
        boxes, _ = bound.proposed(driver, driver.encode(frame()), frame())
    scale = torch.tensor([256, 200, 256, 200]) / 256
    expected, scores, _ = predictor.predict(box=(boxes * scale).numpy(), multimask_output=False)
    one = bound.surgery.recipe.with_values({"everything.boxes.masks": 1, "everything.boxes.filters": False,
                                            "everything.filters.nms": 1.0, "everything.folded": False})  # fmt: skip
    head = copy.deepcopy(bound.head)
    surgery.sparsify(own, one)
    bound_of(own).head.load_state_dict(head.state_dict())  # type: ignore[union-attr]
    found = found_in(own, frame())
    order = found.scores.argsort(descending=True)
    ranked = scores[:, 0].argsort()[::-1]
    assert torch.allclose(found.scores[order], torch.from_numpy(scores[ranked, 0].copy()), atol=1e-5)
    assert (found.masks.numpy()[order] != expected[ranked, 0].astype(bool)).mean() < 1e-3


# ------------------------------------------------------------------------------------------------------- fitting fails


def test_a_broken_promise_leaves_the_model_as_it_was() -> None:
    own = surgery.sparsify(model("sam2"), "exact")
    strict = recipe("everything", **{**QUICK, "max_recall_drop": 0.001, "boxes.max_prompts": 1, "boxes.masks": 1})
    with pytest.raises(CalibrationError, match=r"promised 0\.001"):
        surgery.fit_everything(own, _pictures(), strict, steps=2, progress=False)
    assert surgery.status(own).recipe == surgery.Recipe.load("exact")


def test_a_teacher_without_masks_names_its_thresholds() -> None:
    with pytest.raises(CalibrationError, match=r"predicted IoU 0\.999 and stability 0\.6"):
        surgery.fit_everything(
            model("sam2"), _pictures(), recipe("everything", **QUICK, **{"filters.iou": 0.999}), progress=False
        )


def test_too_few_pictures_and_nothing_to_fit() -> None:
    with pytest.raises(CalibrationError, match="3 pictures; expected 8"):
        surgery.fit_everything(model("sam2"), _pictures()[:3], recipe("everything"), progress=False)
    with pytest.raises(CalibrationError, match="nothing to fit"):
        surgery.fit_everything(model("sam2"), _pictures(), "everything-exact", progress=False)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"everything.boxes.max_prompts": 0}, "max_prompts"),
        ({"everything.points": 0}, "points"),
        ({"everything.boxes.proposer": "hub"}, "needs a detector"),
        ({"everything.boxes.detector": "a/b"}, "is for proposer hub"),
        ({"everything.boxes.masks": 2}, "masks"),
        ({"everything.filters.iou": float("nan")}, "iou"),
    ],
)
def test_settings_out_of_range(changes: dict[str, Any], words: str) -> None:
    with pytest.raises(RecipeError, match=words):
        surgery.Recipe.load("everything").with_values(changes)


# --------------------------------------------------------------------------------------------------------------- hub


@pytest.fixture(scope="module")
def detector(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small object detector with random weights, saved as from the Hub."""
    from transformers import YolosConfig, YolosForObjectDetection, YolosImageProcessor

    torch.manual_seed(0)
    config = YolosConfig(hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=32,
                         image_size=[64, 64], patch_size=16, num_detection_tokens=20)  # fmt: skip
    folder = tmp_path_factory.mktemp("detector")
    YolosForObjectDetection(config).save_pretrained(folder)
    YolosImageProcessor(size={"height": 64, "width": 64}).save_pretrained(folder)
    return folder


@pytest.mark.parametrize("host", HOSTS)
def test_a_detector_of_the_hub(host: str, detector: Path) -> None:
    found = []
    for most in (20, 3):
        boxes = {"boxes.detector": str(detector), "boxes.least": 0.0, "boxes.nms": 1.0, "boxes.max_prompts": most}
        published = recipe("published-everything", **boxes)
        own = surgery.sparsify(model(host), published)
        masks = found_in(own, frame()).masks
        assert bound_of(own).prompts == len(masks) <= most
        found.append(len(masks))
    assert found[0] > found[1] > 0


def test_a_detector_without_boxes(detector: Path) -> None:
    none = recipe("published-everything", **{"boxes.detector": str(detector), "boxes.least": 1.0})
    assert surgery.everything(surgery.sparsify(model("sam2"), none), frame()) == []


def test_a_detector_that_is_not_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    own = surgery.sparsify(model("sam2"), recipe("published-everything", **{"boxes.detector": str(tmp_path)}))
    with pytest.raises(surgery.HubError, match=str(tmp_path)):
        surgery.everything(own, frame())


# ---------------------------------------------------------------------------------------------------------- pictures


@pytest.mark.parametrize("host", HOSTS)
def test_pictures_of_every_form(host: str) -> None:
    from PIL import Image

    own = surgery.sparsify(model(host), recipe(points=3))
    whole = frame()
    grey = np.asarray(Image.fromarray(whole).convert("L"))
    expected = surgery.everything(own, whole)
    alpha = np.concatenate([whole, np.full_like(whole[..., :1], 7)], 2)
    for form in (Image.fromarray(whole), alpha, whole.astype(np.float32) / 255, np.asfortranarray(whole)):
        assert same(surgery.everything(own, form), expected)
    assert same(surgery.everything(own, grey), surgery.everything(own, grey[..., None].repeat(3, 2)))
    for shape in ((1, 1), (1, 300), (301, 2)):
        surgery.everything(own, np.zeros((*shape, 3), np.uint8))


@pytest.mark.parametrize(
    ("picture", "words"),
    [
        (np.zeros((4, 4, 2), np.uint8), "shape"),
        (np.zeros((0, 4, 3), np.uint8), "shape"),
        (np.zeros((2, 4, 4, 3), np.uint8), "shape"),
        (np.full((4, 4, 3), 2.0), "floats from 2 to 2"),
        (np.full((4, 4, 3), np.nan), "nan"),
        (np.zeros((4, 4, 3), np.int32), "int32"),
        (np.broadcast_to(np.uint8(0), (20_000, 20_000, 3)), "20000 x 20000"),
        ("no picture", "shape"),
    ],
)
def test_what_is_no_picture(picture: Any, words: str) -> None:
    own = surgery.sparsify(model("sam2"), recipe(points=1))
    with pytest.raises(surgery.PictureError, match=words):
        surgery.everything(own, picture)

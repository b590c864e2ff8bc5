"""Precision is measured against the stock model's own precision, and one that ruins the masks is not chosen."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

import surgery
import surgery.demo as demo
from surgery.calibration import PromiseError, calibrate
from surgery.calibration.fidelity import reference_of
from surgery.calibration.search import settings_of
from surgery.engine import require_surgery
from surgery.operations import Precision
from surgery.recipe import Recipe
from surgery.tracking import track
from surgery.video import labels_from_logits
from surgery.video.prompts import BoxPrompt
from tests.calibration.test_calibrate import clip_of
from tests.calibration.test_calibrate import recipe as routed

torch.set_num_threads(1)
HOSTS = ("sam2", "transformers")


def alone(promise: float = 0.1, **search: Any) -> Recipe:
    return Recipe.from_dict(
        {
            "metadata": {"name": "half", "description": "Half precision alone."},
            "operations": [{"type": "precision", "dtype": "fp16"}],
            "calibration": {
                "max_drop": promise, "max_clip_drop": promise,
                "search": {f"precision.{key}": values for key, values in search.items()},
            },
        }
    )  # fmt: skip


def overflowing(host: str) -> Any:
    """The demo model with one hidden layer scaled up by 2^16 and the next down: equal in fp32, infinite in fp16."""
    model = demo.load(host=host)  # type: ignore[arg-type]
    layer = model.memory_attention.layers[1]
    with torch.no_grad():
        for part in ("linear1.weight", "linear1.bias"):
            layer.get_parameter(part).mul_(2.0**16)
        layer.linear2.weight.mul_(2.0**-16)
    return model


@pytest.mark.parametrize("host", HOSTS)
def test_a_precision_that_overflows_is_noticed_and_another_chosen(host: str) -> None:
    model = overflowing(host)
    clips = [clip_of(number, 6) for number in range(2)]
    report = calibrate(model, clips, alone(dtype=["fp16", "bf16"]), runs=4, progress=False)
    assert report.kept and report.search.chosen.values == {"precision.dtype": "bf16"}
    assert surgery.status(model).recipe.find(Precision) == Precision(dtype="bf16")  # type: ignore[union-attr]
    by_dtype = {setting.values["precision.dtype"]: setting for setting in report.search.settings}
    assert by_dtype["fp16"].from_state.drop > 0.3  # type: ignore[union-attr]
    assert by_dtype["fp16"].risks["precision"] > 1 > by_dtype["bf16"].risks["precision"] > 0

    report = calibrate(model, clips, alone(keep_fp32=[[], ["encoder"], ["memory_attention"]]), runs=4, progress=False)
    assert report.kept and report.search.chosen.recipe.find(Precision).keep_fp32 == ("memory_attention",)
    assert {setting.cost for setting in report.search.settings} == {1.0}, "half precision does not change FLOPs"


def test_a_promise_that_the_only_precision_breaks_is_an_error_and_leaves_the_model() -> None:
    model = overflowing("sam2")
    clip = clip_of(5, 5)
    before = [result.logits[1] for result in track(model, clip.video, clip.prompts)]
    with pytest.raises(PromiseError, match="no setting keeps the promise"):
        calibrate(model, [clip_of(0, 6), clip_of(1, 6)], alone(), progress=False)
    assert not surgery.status(model).sparse
    after = [result.logits[1] for result in track(model, clip.video, clip.prompts)]
    np.testing.assert_array_equal(after, before)


@pytest.mark.parametrize("host", HOSTS)
def test_the_reference_is_the_stock_precision(host: str) -> None:
    clip = clip_of(3, 5)
    model = demo.load(host=host)  # type: ignore[arg-type]
    stock = [labels_from_logits(result.logits) for result in track(model, clip.video, clip.prompts)]
    surgery.sparsify(model, alone(dtype=["bf16"]).with_overrides(["precision.cast=weights", "precision.dtype=bf16"]))
    reference = reference_of(model, clip)
    assert all(np.array_equal(reference.labels[index], labels) for index, labels in enumerate(stock))


@pytest.mark.parametrize("cast", ["autocast", "weights"])
@pytest.mark.parametrize("host", HOSTS)
def test_a_precision_on_trial_leaves_the_teacher_alone(host: str, cast: str) -> None:
    """With two objects memory attention shares a self-attention between them: never that of the trial."""
    clip = clip_of(3, 4)
    prompts = (*clip.prompts, BoxPrompt(100, 20, 160, 80, obj_id=2))
    model = demo.load(host=host)  # type: ignore[arg-type]
    stock = [result.logits for result in track(model, clip.video, prompts)]
    surgery.sparsify(model, alone().with_values({"precision.cast": cast}))
    trial = Precision(cast=cast)  # type: ignore[arg-type]
    observer = Precision.simulate(require_surgery(model), [trial])
    with require_surgery(model).observed_by(observer):
        teacher = [result.logits for result in track(model, clip.video, prompts)]
    for one, other in zip(teacher, stock, strict=True):
        assert all(np.array_equal(one[obj_id], other[obj_id]) for obj_id in other)
    errors = observer.errors["memory_attention", trial]
    assert len(errors) == 6 and all(0 < error < 0.1 for error in errors), "two objects on three tracked frames"


def test_a_shortcut_is_fitted_in_the_stock_precision_and_measured_in_its_own() -> None:
    plain = routed(search={"routing.budget": [0.5]})
    half = plain.model_copy(update={"operations": (*plain.operations, Precision(cast="weights"))})
    reports = []
    for recipe in (plain, half):
        model = demo.load(host="sam2")
        reports.append(calibrate(model, [clip_of(0, 5), clip_of(1, 5)], recipe, runs=1, progress=False))
    one, two = reports
    assert one.explained == two.explained is not None
    assert one.record.against_dense.drop != two.record.against_dense.drop
    assert surgery.status(model).recipe.find(Precision) == Precision(cast="weights")  # type: ignore[union-attr]
    assert require_surgery(model).observer is None


@pytest.mark.parametrize(
    ("keep", "effort"), [((), 0.5), (("memory_attention",), 0.7), (("encoder", "memory_attention"), 1.0)]
)
def test_half_precision_counts_half(keep: tuple[str, ...], effort: float) -> None:
    shares = {"encoder": 0.6, "memory_attention": 0.4}
    assert sum(Precision(keep_fp32=keep).weighed(shares).values()) == pytest.approx(effort)  # type: ignore[arg-type]


def test_settings_of_equal_precision_are_one() -> None:
    search = [["encoder", "mask_decoder"], ["mask_decoder", "encoder"], []]
    assert len(settings_of(alone(keep_fp32=search))) == 2

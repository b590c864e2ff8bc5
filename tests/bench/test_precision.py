"""A recipe with a precision of its own: whose precision the settings are, and what the row says."""

from __future__ import annotations

from typing import Any

import pytest
import torch

import surgery
from surgery.bench import Settings, benchmark
from surgery.core.cost import gflop
from surgery.engine import require_surgery
from surgery.hosts import view_of
from surgery.operations import Precision
from surgery.recipe import Recipe
from tests.hosts.drive import STEADY, make, video

BRIEF: dict[str, Any] = {"frames": 2, "warm": 1, "module_frames": 0}
HOSTS = ("sam2", "transformers")


def half(**fields: Any) -> Recipe:
    return STEADY.model_copy(update={"operations": (*STEADY.operations, Precision(**fields))})


def seen_in(model: Any, recipe: Recipe, settings: Settings) -> tuple[dict[str, Any], dict[str, set[torch.dtype]]]:
    """The row, and what a layer of memory attention and one between the parts gave; copies keep hooks."""
    seen: dict[str, set[torch.dtype]] = {"part": set(), "between": set()}
    between = getattr(model, "obj_ptr_proj", None) or model.object_pointer_proj
    layers = {
        "part": view_of(model).memory_attention().layers[0].linear1,  # type: ignore[index, union-attr]
        "between": next(module for module in between.modules() if isinstance(module, torch.nn.Linear)),
    }
    for name, layer in layers.items():
        layer.register_forward_hook(lambda module, args, out, name=name: seen[name].add(out.dtype))
    return benchmark(model, recipe, settings=settings).row, seen


@pytest.mark.parametrize("host", HOSTS)
def test_stock_fp32_against_half_precision_parts(host: str) -> None:
    model = make(host, localised=False).model
    recipe = half(cast="weights", keep_fp32=["mask_decoder"])
    row, seen = seen_in(model, recipe, Settings(frames=2, warm=3, module_frames=1, windows=0.25))
    assert row["precision"] == "stock fp32, sparse bf16 by weights, mask_decoder fp32"
    assert row["sparse_precision"] == {"dtype": "bf16", "cast": "weights", "keep_fp32": ["mask_decoder"]}
    assert row["settings"]["precision"] == "fp32"
    assert seen == {"part": {torch.float32, torch.bfloat16}, "between": {torch.float32}}
    assert row["predicted"] > 1
    assert {parameter.dtype for parameter in model.parameters()} == {torch.float32}


@pytest.mark.parametrize(("host", "cast"), [("sam2", "autocast"), ("transformers", "weights")])
def test_the_settings_precision_is_the_stock_models_and_not_applied_twice(host: str, cast: str) -> None:
    settings = Settings(precision="bf16", cast=cast, **BRIEF)
    row, seen = seen_in(make(host, localised=False).model, half(dtype="fp16"), settings)
    assert row["precision"] == "stock bf16, sparse fp16 by autocast"
    assert seen == {"part": {torch.bfloat16, torch.float16}, "between": {torch.bfloat16, torch.float32}}


def test_without_its_own_both_models_have_the_settings_precision() -> None:
    row, seen = seen_in(make("sam2", localised=False).model, STEADY, Settings(precision="bf16", **BRIEF))
    assert (row["precision"], row["sparse_precision"]) == ("bf16", None)
    assert seen == {"part": {torch.bfloat16}, "between": {torch.bfloat16}}


def test_counting_flops_leaves_no_copies_of_weights_behind() -> None:
    """A count runs on fake tensors; copies made then would be fake for ever."""
    driver = make("sam2")
    surgery.sparsify(driver.model, half(cast="weights"))
    plain = make("sam2")
    surgery.sparsify(plain.model, STEADY)
    halved, stock = require_surgery(driver.model), require_surgery(plain.model)
    assert gflop(halved, "encoder", {"windows": 0.25}) == gflop(stock, "encoder", {"windows": 0.25})
    expected = make("sam2")
    surgery.sparsify(expected.model, half(cast="weights"))
    ours, theirs = driver.track(video(4)), expected.track(video(4))
    assert all(torch.equal(a, b) for a, b in zip(ours, theirs, strict=True))

"""Weights that are quantised, or not there: one clear error and an untouched model, or it works."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

import surgery
from surgery import ModelStateError, UnsupportedModelError
from surgery.adapters import save_adapter
from surgery.core.patching import is_patched
from surgery.core.weights import quantised_layer
from surgery.digests import weights_digest
from surgery.operations import CompileParts, Precision, SparseWindowRouting
from surgery.recipe import Recipe
from tests.hosts.drive import HOSTS, STEADY, make, video
from tests.hosts.sessions import same

pytestmark = pytest.mark.filterwarnings("ignore:.*quantiz:DeprecationWarning", "ignore:.*quantiz:UserWarning")
# Never sure of an object: the windows are also those that the decoder attends to.
UNSURE = Recipe(
    metadata={"name": "unsure", "description": "Saliency on every frame."},
    operations=[SparseWindowRouting(score_gate=1e9)],
)


def quantised(model: Any, inplace: bool = False) -> Any:
    return torch.ao.quantization.quantize_dynamic(model, {nn.Linear}, dtype=torch.qint8, inplace=inplace)


def untouched(model: nn.Module) -> bool:
    return not any(is_patched(module) for module in model.modules())


@pytest.mark.parametrize(("host", "recipe"), [("sam2", "turbo"), ("transformers", "memory-only")])
def test_a_quantised_model_is_refused_before_anything_is_touched(host: str, recipe: str) -> None:
    model = quantised(make(host).model)
    with pytest.raises(UnsupportedModelError, match=r"is quantised.*sparsify the model first and quantise it then"):
        surgery.sparsify(model, recipe)
    assert untouched(model)


class Coded(torch.Tensor):
    """A weight as torchao's: says it is floating-point, and can do next to nothing."""

    @classmethod
    def __torch_function__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is torch.isfinite:
            raise NotImplementedError("isfinite")
        return super().__torch_function__(func, types, args, kwargs)

    def dequantize(self) -> torch.Tensor:
        return self.as_subclass(torch.Tensor)


def test_weights_of_a_class_that_dequantises_are_quantised() -> None:
    model = make("transformers").model
    layer = model.memory_attention.layers[0].linear1
    layer.weight = nn.Parameter(layer.weight.detach().as_subclass(Coded), requires_grad=False)
    with pytest.raises(UnsupportedModelError, match=r"memory_attention\.layers\.0\.linear1 \(Linear\) is quantised"):
        surgery.sparsify(model, "balanced")
    assert untouched(model)
    assert quantised_layer(nn.Linear(2, 2)) is None


@pytest.mark.parametrize(
    ("recipe", "inplace"), [(STEADY, False), (UNSURE, True), ("exact", False)], ids=["steady", "saliency", "exact"]
)
@pytest.mark.parametrize("host", HOSTS)
def test_a_sparse_model_can_be_quantised(host: str, recipe: Any, inplace: bool) -> None:
    stock, driver = make(host), make(host)
    stock.model = quantised(stock.model)
    expected = stock.track(video(4))
    surgery.sparsify(driver.model, recipe)
    driver.model = quantised(driver.model, inplace)
    found = driver.track(video(4))
    assert all(torch.isfinite(mask).all() for mask in found)
    if recipe == "exact":
        assert same(found, expected)
    state = surgery.status(driver.model)
    assert state.sparse and state.calibration is None
    if state.span is not None:
        with pytest.raises(ModelStateError, match="is quantised; save the adapter before"):
            save_adapter(driver.model, "never-written")
    with pytest.raises(UnsupportedModelError, match="is quantised"):
        surgery.sparsify(driver.model, "fast")
    assert surgery.status(driver.model).recipe == state.recipe
    assert weights_digest(driver.model.state_dict()) == weights_digest(driver.model.state_dict())
    surgery.desparsify(driver.model)
    assert untouched(driver.model) and same(driver.track(video(4)), expected)


@pytest.mark.parametrize(("operation", "how"), [(Precision(), "in half precision"), (CompileParts(), "compiled")])
def test_half_precision_and_compiling_say_that_quantised_layers_cannot(operation: Any, how: str) -> None:
    driver = make("transformers")
    recipe = Recipe(metadata={"name": "half", "description": "One operation."}, operations=[operation])
    surgery.sparsify(driver.model, recipe)
    driver.model = quantised(driver.model)
    with pytest.raises(ModelStateError, match=rf"was quantised after the surgery, and the recipe runs the part {how}"):
        driver.track(video(2))


@pytest.mark.parametrize(("part", "named"), [("", r"\w"), ("memory_encoder", r"memory_encoder\.\w")])
@pytest.mark.parametrize("host", HOSTS)
def test_weights_on_the_meta_device_are_refused(host: str, part: str, named: str) -> None:
    model = make(host).model
    model.get_submodule(part).to("meta")
    with pytest.raises(ModelStateError, match=rf"^{named}.* is on the meta device.*expected loaded weights"):
        surgery.sparsify(model, "exact")
    assert untouched(model)


def test_offloaded_weights_name_accelerate() -> None:
    from accelerate import cpu_offload

    model = make("transformers").model
    cpu_offload(model.memory_attention, execution_device=torch.device("cpu"))
    with pytest.raises(ModelStateError, match=r"offloaded \(accelerate dispatch"):
        surgery.sparsify(model, "balanced")

"""Layers in few bits: each is run alone, the harmful ones may be skipped, and what is chosen keeps the promise."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import surgery
import surgery.demo as demo
import surgery.operations.quantize.bound as bound
from surgery.calibration import calibrate
from surgery.operations import Quantize
from surgery.operations.quantize import backends
from surgery.recipe import Recipe
from tests.calibration.test_calibrate import clip_of

torch.set_num_threads(1)
HARMFUL = "image_encoder.trunk.blocks.1.proj"
NAMES = (HARMFUL, "image_encoder.trunk.blocks.3.attn.proj", "image_encoder.trunk.blocks.4.mlp.layers.0")
pytestmark = pytest.mark.skipif(not backends.engines(), reason="this torch has no int8 layers for CPUs")


def alone(**search: Any) -> Recipe:
    operation = {"type": "quantize"}
    plan = {"max_drop": 0.05, "max_clip_drop": 0.1, "search": {f"quantize.{key}": each for key, each in search.items()}}
    return Recipe.from_dict(
        {"metadata": {"name": "few", "description": "Few bits."}, "operations": [operation], "calibration": plan}
    )


@pytest.fixture
def few_layers(monkeypatch: pytest.MonkeyPatch) -> None:
    """Calibration knows of three layers of the encoder, and what one of them computes is wrong."""
    plain, found = backends.packed, Quantize.trials

    def packed(layer: nn.Linear, *how: Any) -> Callable[[Tensor], Tensor]:
        run = plain(layer, *how)
        harmful = (layer.in_features, layer.out_features) == (24, 48)
        return (lambda tokens: -run(tokens)) if harmful else run

    def trials(self: Quantize, host: Any) -> dict[str, Any]:
        return {name: each for name, each in found(self, host).items() if name in NAMES}

    monkeypatch.setattr(bound, "packed", packed)
    monkeypatch.setattr(Quantize, "trials", trials)


@pytest.mark.parametrize("host", ["sam2", "transformers"])
def test_a_layer_that_ruins_the_masks_is_found_and_skipped(host: str, few_layers: None) -> None:
    model = demo.load(host=host)  # type: ignore[arg-type]
    report = calibrate(model, [clip_of(number, 4) for number in range(2)], alone(), runs=3, progress=False)
    assert set(report.sensitivity) == set(NAMES)
    assert next(iter(report.sensitivity)) == HARMFUL and report.sensitivity[HARMFUL] > 0.1
    assert all(report.sensitivity[name] < 0.05 for name in NAMES[1:])
    assert report.kept and report.search.chosen.values == {"quantize.skip": [HARMFUL]}
    chosen = surgery.status(model).recipe
    assert chosen is not None and chosen.find(Quantize) == Quantize(skip=(HARMFUL,))
    by_count = {len(setting.values["quantize.skip"]): setting for setting in report.search.settings}
    assert by_count[0].from_state.drop > 0.1 > by_count[1].from_state.drop  # type: ignore[union-attr]
    assert by_count[0].effort < by_count[1].effort < by_count[2].effort
    assert f"`{HARMFUL}`" in report.as_markdown() and report.as_dict()["sensitivity"] == report.sensitivity


def test_a_recipe_that_searches_by_itself_runs_no_layer_alone(few_layers: None) -> None:
    model = demo.load(host="sam2")
    clips = [clip_of(number, 4) for number in range(2)]
    report = calibrate(model, clips, alone(skip=[[], ["*.proj"]]), runs=2, progress=False)
    assert report.sensitivity == {} and report.search.chosen.values == {"quantize.skip": ["*.proj"]}


def test_few_bits_count_a_third_and_every_layer_that_is_skipped_a_little() -> None:
    shares = {"encoder": 0.6, "memory_attention": 0.4}
    assert sum(Quantize().weighed(shares).values()) == pytest.approx(0.6)  # type: ignore[arg-type]
    more = Quantize(skip=("a", "b")).weighed(shares)  # type: ignore[arg-type]
    assert 0.2 < more["encoder"] < 0.21 and more["memory_attention"] == 0.4

"""Models by name: both hosts build the same SAM 2.1 sizes with the same random weights."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from surgery.bench.clip import LoopingClip
from surgery.core.driver import follow
from surgery.errors import ModelLoadError
from surgery.hosts import hosts, loader_of, view_of
from surgery.hosts.sam21 import SIZES, random_weights
from surgery.hosts.transformers.keymap import to_stock
from surgery.loading import load_model
from surgery.operations.window_routing.geometry import span_of


@pytest.mark.parametrize("size", SIZES)
def test_both_hosts_have_the_same_structure(size: str) -> None:
    stock = loader_of("sam2").build(SIZES[size])
    with torch.device("meta"):
        hf = loader_of("transformers").build(SIZES[size])
    shapes = {name: tensor.shape for name, tensor in stock.state_dict().items()}
    state = {name: torch.zeros(tensor.shape) for name, tensor in hf.state_dict().items()}
    assert {name: tensor.shape for name, tensor in to_stock(state).items()} == shapes
    views = view_of(stock), view_of(hf)
    blocks = [[view.block_info(index) for index in range(len(view.blocks()))] for view in views]
    assert blocks[0] == blocks[1]
    assert views[0].image_size() == views[1].image_size() == 1024
    assert span_of(views[0]) == span_of(views[1])


def test_weights_are_drawn_by_name_and_leave_masks_empty() -> None:
    head = "sam_mask_decoder.output_hypernetworks_mlps.0.layers.2"
    score = "sam_mask_decoder.pred_obj_score_head.layers.2.bias"
    shapes: dict[str, Any] = {
        "b.weight": (64, 256), "a.norm.weight": (8,), "a.norm.bias": (8,), "c.gamma": (4,),
        f"{head}.weight": (32, 256), f"{head}.bias": (32,), score: (1,),
    }  # fmt: skip
    drawn = random_weights(shapes)
    turned = random_weights(dict(reversed(shapes.items())))
    assert all(torch.equal(drawn[name], turned[name]) for name in shapes)
    assert drawn["b.weight"].abs().max() <= 1 / 16 and drawn["b.weight"].std() > 0.03
    assert (drawn["a.norm.weight"] == 1).all() and (drawn["a.norm.bias"] == 0).all() and (drawn["c.gamma"] < 1e-5).all()
    assert not drawn[f"{head}.weight"].any() and not drawn[f"{head}.bias"].any() and drawn[score] == 8


@pytest.mark.parametrize(
    ("spec", "how", "message"),
    [
        ("random:tiny", {"host": "sma2"}, "did you mean 'sam2'"),
        ("random:tny", {}, "unknown size"),
        ("random:tiny", {"host": "transformers", "vos": True}, "VOS predictor"),
        ("user/model", {"vos": True}, "VOS predictor"),
    ],
)
def test_what_cannot_be_built_is_refused(spec: str, how: dict[str, Any], message: str) -> None:
    with pytest.raises(ModelLoadError, match=message):
        load_model(spec, device="cpu", **how)


@pytest.mark.slow
def test_both_hosts_compute_the_same_at_full_size() -> None:
    clip = LoopingClip(1024, 2, 1, torch.device("cpu"))
    features = []
    with torch.inference_mode():
        for host in hosts():
            model = load_model("random:tiny", host.name, "cpu")
            view = view_of(model)
            features.append(view.stride16_of(view.image_encoder()(clip[0][None])).numpy())
            masks = list(follow(view_of(model), clip, clip.masks))
            assert not (masks[1] > 0).any(), "random weights find nothing on a tracked frame"
    np.testing.assert_allclose(features[0], features[1], atol=1e-4)
    assert features[0].std() > 0.01

"""Routed encoder features against the published code, with the released shortcut weights."""

from __future__ import annotations

import pytest
import torch

import surgery
from surgery.operations.window_routing.policy import WindowState
from tests.conftest import shared
from tests.hosts.routes import on_route, router_of
from tests.parity.fixtures import manifest, relative, seeded_input, stock_predictor, tensors

TOLERANCE = 2e-4


@pytest.mark.slow
@pytest.mark.parametrize(("size", "fixture", "recipe", "weights"), [
    ("b+", "encoder_base_plus", "published-base-plus", "bypass_bottleneck_base.pth"),
    ("l", "encoder_large", "published-large", "bypass_bottleneck_large.pth"),
])  # fmt: skip
@torch.inference_mode()
def test_routed_features_match(size: str, fixture: str, recipe: str, weights: str) -> None:
    expected, info = tensors(fixture), manifest(fixture)
    image = seeded_input("image", (1, 3, 1024, 1024), "smooth", info["digests"]["image"])
    released = torch.load(shared("official", weights), map_location="cpu", weights_only=True)
    model = stock_predictor(size)
    model.use_high_res_features_in_sam = False

    stock = model.forward_image(image)["backbone_fpn"]
    assert relative(stock[-1][0, :, ::4, ::4], expected["stock"]) < TOLERANCE

    surgery.sparsify(model, recipe)
    router_of(model).shortcut.load_state_dict(released)
    for case, windows in (("routedA", "windowsA"), ("routedB", "windowsB"), ("routedAll", None)):
        levels = forced_features(model, image, None if windows is None else expected[windows].tolist())
        assert relative(levels[-1][0, :, ::4, ::4], expected[case]) < TOLERANCE, case
        for level in (0, 1):
            assert torch.equal(levels[level], stock[level]), "stride 4 and 8 do not pass through routed blocks"

    surgery.desparsify(model)
    again = model.forward_image(image)["backbone_fpn"]
    assert all(torch.equal(a, b) for a, b in zip(again, stock, strict=True))


def forced_features(model: object, image: torch.Tensor, windows: list[int] | None) -> list[torch.Tensor]:
    """Encoder output of a model under surgery with exactly `windows` computed (None: all)."""
    router = router_of(model)
    chosen = list(range(router.grid.count)) if windows is None else windows
    with on_route(model, router.route(WindowState(), chosen, image.device)):
        return model.image_encoder(image)["backbone_fpn"]  # type: ignore[attr-defined]

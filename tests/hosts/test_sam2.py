"""What only stock sam2 has: the compiling VOS predictor, and the image predictor that must be refused."""

from __future__ import annotations

from typing import Any

import pytest
import torch

import surgery
from surgery import UnsupportedModelError
from surgery.demo import model as demo
from tests.hosts.drive import StockDriver, make, video
from tests.hosts.test_hosts import close


def vos_twin(monkeypatch: pytest.MonkeyPatch) -> StockDriver:
    """The small model as a SAM2VideoPredictorVOS whose compiled parts run on the eager backend."""
    plain = make("sam2")
    original = torch.compile

    def cheap(function: Any, **how: Any) -> Any:
        how.pop("mode", None)
        return original(function, backend="eager", **how)

    monkeypatch.setattr(torch, "compile", cheap)
    from tests.hosts import drive

    for name in ("BLOCKS", "GLOBALS"):
        monkeypatch.setattr(demo, name, getattr(drive, name))
    model = demo.build("sam2", vos=True)
    model.load_state_dict(plain.model.state_dict())
    torch._dynamo.reset()
    return StockDriver(model)


def test_vos_predictor(monkeypatch: pytest.MonkeyPatch) -> None:
    """fullgraph compilation of memory attention and decoder goes through the grafts, with a bounded set of graphs."""
    driver = vos_twin(monkeypatch)
    plain = make("sam2")
    surgery.sparsify(plain.model, "balanced")
    surgery.sparsify(driver.model, "balanced")
    torch._dynamo.utils.counters.clear()
    close(driver.track(video(12)), plain.track(video(12)), 2e-5)
    graphs = torch._dynamo.utils.counters["stats"]["unique_graphs"]
    close(driver.track(video(16), 2), plain.track(video(16), 2), 2e-5)
    assert graphs <= 16
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] <= graphs + 2
    assert surgery.status(driver.model).keys_kept == surgery.status(plain.model).keys_kept
    surgery.desparsify(driver.model)


def test_image_predictor_is_refused() -> None:
    from sam2.modeling.sam2_base import SAM2Base
    from sam2.sam2_image_predictor import SAM2ImagePredictor

    model = demo.build("sam2")
    with pytest.raises(UnsupportedModelError, match="build_sam2_video_predictor"):
        surgery.sparsify(SAM2ImagePredictor(model))
    model.__class__ = SAM2Base
    with pytest.raises(UnsupportedModelError, match="no previous frame"):
        surgery.sparsify(model)


@pytest.mark.parametrize("config", ["sam2.1/sam2.1_hiera_t", "sam2/sam2_hiera_t"])
def test_released_configurations_are_read_off_the_model(config: str) -> None:
    """Blocks, windows and widths of the real sizes, 2.0 and 2.1, without running them."""
    from sam2.build_sam import build_sam2_video_predictor

    model = build_sam2_video_predictor(f"configs/{config}.yaml", None, device="cpu")
    surgery.sparsify(model, "balanced")
    status = surgery.status(model)
    assert (status.span, status.window, status.windows) == ((4, 9), 14, 25)
    assert status.parameters_added == 384 * 384 + 384 * 3 + 192

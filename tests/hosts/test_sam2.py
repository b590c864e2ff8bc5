"""What only stock sam2 has: the compiling VOS predictor, and the image predictor that must be refused."""

from __future__ import annotations

from typing import Any

import pytest
import torch

import surgery
from surgery import UnsupportedModelError
from surgery.demo import model as demo
from surgery.engine import require_surgery
from surgery.operations import CompileParts
from surgery.operations.compile import Compilation
from tests.hosts.drive import StockDriver, make, video
from tests.hosts.routes import force
from tests.hosts.sessions import close


def vos_twin(monkeypatch: pytest.MonkeyPatch) -> StockDriver:
    """The small model as a SAM2VideoPredictorVOS whose compiled parts run on the eager backend."""
    plain = make("sam2")
    original = torch.compile

    def cheap(function: Any, **how: Any) -> Any:
        return original(function, **{**how, "mode": None, "backend": "eager"})

    monkeypatch.setattr(torch, "compile", cheap)
    from tests.hosts import drive

    for name in ("BLOCKS", "GLOBALS"):
        monkeypatch.setattr(demo, name, getattr(drive, name))
    model = demo.build("sam2", vos=True)
    model.load_state_dict(plain.model.state_dict())
    torch._dynamo.reset()
    torch._dynamo.utils.counters.clear()
    return StockDriver(model)


def test_vos_predictor(monkeypatch: pytest.MonkeyPatch) -> None:
    """fullgraph compilation of memory attention and decoder goes through the patches, with a bounded set of graphs."""
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


def test_the_encoder_a_vos_predictor_compiled_itself_takes_every_window_count(monkeypatch: pytest.MonkeyPatch) -> None:
    """It has a graph for each shape it is not told about, and fails at the ninth."""
    driver = vos_twin(monkeypatch)
    surgery.sparsify(driver.model, "published-large")
    for name in ("memory_attention", "memory_encoder", "sam_prompt_encoder", "sam_mask_decoder"):
        vars(getattr(driver.model, name)).pop("forward")
    session = driver.session(video(14))
    driver.click(session, 0, {1: (40, 110)})
    run = driver.propagate(session)
    for number in range(14):
        force(driver.model, range(number) if number > 1 else None)
        next(run)
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] <= 4


def test_operation_compile_takes_over_what_a_vos_predictor_compiled(monkeypatch: pytest.MonkeyPatch) -> None:
    driver, plain = vos_twin(monkeypatch), make("sam2")
    own = {name: vars(module)["forward"] for name, module in driver.model.named_modules() if "forward" in vars(module)}
    assert len(own) == 5
    parts = ("memory_encoder", "mask_decoder")
    settings = CompileParts(backend="eager", parts=parts)
    surgery.sparsify(plain.model, "memory-only")
    surgery.sparsify(driver.model, "memory-only", compile=settings)
    kept = {name for name, module in driver.model.named_modules() if "forward" in vars(module)}
    assert kept == {"image_encoder", "memory_attention", "sam_prompt_encoder"}
    for name in kept:
        # What the predictor keeps compiled is proven above.
        vars(driver.model.get_submodule(name)).pop("forward")
    close(driver.track(video(4)), plain.track(video(4)), 2e-5)
    compilation = require_surgery(driver.model).find(Compilation)
    assert compilation is not None and all(compilation.spent[part].graphs > 0 for part in parts)
    for name in kept:
        vars(driver.model.get_submodule(name))["forward"] = own[name]
    surgery.desparsify(driver.model)
    assert all(vars(driver.model.get_submodule(name))["forward"] is forward for name, forward in own.items())


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

"""What only the transformers host has: streaming, save_pretrained, attention implementations, accelerate, refusals."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import (
    Sam2VideoModel,
)

import surgery
from surgery import UnsupportedModelError
from surgery.demo import model as demo
from surgery.hosts.transformers.driver import new_processor
from tests.hosts.drive import PADDED, SIZE, STEADY, UNPADDED, TransformersDriver, make, square, video
from tests.hosts.sessions import close, same


def stream(driver: TransformersDriver, frames: torch.Tensor) -> list[torch.Tensor]:
    session = driver.session(None)
    masks = []
    for number, frame in enumerate(frames):
        if number == 0:
            new_processor(SIZE).add_inputs_to_inference_session(
                session, frame_idx=0, obj_ids=[1], input_masks=[square(30, 90)], original_size=(256, 256)
            )
        masks.append(driver.model(session, frame=frame).pred_masks[0].clone())
    return masks


@pytest.mark.parametrize("windows", [UNPADDED, PADDED], ids=["unpadded", "padded"])
def test_streaming(windows: tuple[int, ...]) -> None:
    driver = make("transformers", windows)
    assert isinstance(driver, TransformersDriver)
    stock = stream(driver, video(12))
    surgery.sparsify(driver.model, "exact")
    assert same(stream(driver, video(12)), stock)
    surgery.sparsify(driver.model, STEADY)
    sparse = stream(driver, video(12))
    assert not same(sparse, stock)
    status = surgery.status(driver.model)
    assert status.windows_kept is not None
    assert status.windows_kept < 1
    assert status.dense_frames == {"first frame or jump": 1}


def test_saved_model_loads_in_stock_transformers(tmp_path: Path) -> None:
    driver = make("transformers")
    stock = driver.track(video(5))
    surgery.sparsify(driver.model, "balanced")
    driver.track(video(5))
    driver.model.save_pretrained(tmp_path)
    loaded, report = Sam2VideoModel.from_pretrained(tmp_path, output_loading_info=True)
    assert not report["missing_keys"]
    assert len(report["unexpected_keys"]) == 6
    assert loaded.config.architectures == ["Sam2VideoModel"]
    # The file is memory-mapped at addresses for which a CPU may take other kernels: its weights go where ours lie.
    twin = make("transformers", localised=False)
    assert not same(twin.track(video(5)), stock)
    twin.model.load_state_dict(loaded.state_dict())
    assert same(twin.track(video(5)), stock)
    mapped = TransformersDriver(loaded.eval()).track(video(5))
    close(mapped, stock, 1e-4)
    surgery.sparsify(loaded, "exact")
    assert same(TransformersDriver(loaded).track(video(5)), mapped)


def test_attention_implementation_can_be_switched() -> None:
    driver = make("transformers")
    surgery.sparsify(driver.model, "balanced")
    sdpa = driver.track(video(9))
    driver.model.set_attn_implementation("eager")
    close(driver.track(video(9)), sdpa, 2e-5)


def test_hidden_states_are_still_recorded() -> None:
    driver = make("transformers")
    stock = driver.model.vision_encoder(video(1), output_hidden_states=True).hidden_states
    surgery.sparsify(driver.model, "balanced")
    ours = driver.model.vision_encoder(video(1), output_hidden_states=True).hidden_states
    assert same(list(ours), list(stock))


def test_accelerate_prepare_and_dispatch() -> None:
    from accelerate import Accelerator, cpu_offload

    driver = make("transformers")
    surgery.sparsify(driver.model, "balanced")
    expected = driver.track(video(9))
    prepared = TransformersDriver(Accelerator(cpu=True).prepare(driver.model))
    assert same(prepared.track(video(9)), expected)

    other = make("transformers")
    surgery.sparsify(other.model, "balanced")
    for part in (other.model.vision_encoder, other.model.memory_attention):
        cpu_offload(part, execution_device=torch.device("cpu"))
    assert same(other.track(video(9)), expected)


def test_reduced_precision_model() -> None:
    driver = make("transformers")
    assert isinstance(driver, TransformersDriver)
    surgery.sparsify(driver.model.to(torch.bfloat16), "balanced")
    session = driver.session(video(9).bfloat16(), torch.bfloat16)
    driver.click(session, 0, {1: (40, 110)})
    masks = [mask for _, found in driver.propagate(session) for mask in found.values()]
    assert len(masks) == 9
    assert all(mask.dtype == torch.bfloat16 and torch.isfinite(mask).all() for mask in masks)


def test_every_other_model_is_refused_for_what_it_is() -> None:
    """By class: an EdgeTamVideoModel may have a Hiera backbone, whose structure alone would pass."""
    import transformers

    reasons = {
        "Sam3VideoModel": "is of SAM 3, which is not supported yet",
        "Sam3TrackerVideoModel": "is of SAM 3, which is not supported yet",
        "Sam3TrackerModel": "is of SAM 3, which is not supported yet",
        "Sam3Model": "is of SAM 3, which is not supported yet",
        "EdgeTamVideoModel": "is of EdgeTAM, which is not supported yet",
        "EdgeTamModel": "is of EdgeTAM, which is not supported yet",
        "Sam2Model": "is for pictures: it has no memory and no previous frame",
        "SamModel": "is for pictures: it has no memory and no previous frame",
        "SamHQModel": "is for pictures: it has no memory and no previous frame",
        "BertModel": "is not a SAM 2 video model",
    }
    for name, reason in reasons.items():
        kind = getattr(transformers, name)
        # No weights: the class alone tells.
        model = kind.__new__(kind)
        torch.nn.Module.__init__(model)
        with pytest.raises(UnsupportedModelError, match=rf"^{name} {reason}.*expected a Sam2VideoModel"):
            surgery.sparsify(model)


def test_structures_that_cannot_be_routed_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    def refused(match: str, recipe: str = "balanced") -> Any:
        model = demo.build("transformers")
        with pytest.raises(UnsupportedModelError, match=match):
            surgery.sparsify(model, recipe)
        return model

    monkeypatch.setattr(demo, "GLOBALS", ())
    model = refused("none of the 15 encoder blocks has global attention")
    surgery.sparsify(model, "memory-only")
    monkeypatch.setattr(demo, "GLOBALS", (4,))
    refused("do not form a routable span")
    monkeypatch.setattr(demo, "GLOBALS", (8, 13))
    monkeypatch.setattr(demo, "WINDOWS", (8, 4, 16, 2))
    refused("single window")

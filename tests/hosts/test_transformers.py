"""What only hosts of transformers have: streaming, save_pretrained, attention implementations, accelerate, refusals."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
import transformers

import surgery
from surgery import UnsupportedModelError
from surgery.demo import model as demo
from tests.hosts.drive import PADDED, ROUNDING, SAM3, SIZE, STEADY, UNPADDED, TransformersDriver, make, square, video
from tests.hosts.sessions import close, same


@pytest.fixture(params=["transformers", SAM3])
def host(request: pytest.FixtureRequest) -> str:
    return request.param


def stream(driver: TransformersDriver, frames: torch.Tensor) -> list[torch.Tensor]:
    session = driver.session(None)
    masks = []
    for number, frame in enumerate(frames):
        if number == 0:
            driver.processor(SIZE).add_inputs_to_inference_session(
                session, frame_idx=0, obj_ids=[1], input_masks=[square(30, 90)], original_size=(256, 256)
            )
        masks.append(driver.model(session, frame=frame).pred_masks[0].clone())
    return masks


@pytest.mark.parametrize("windows", [UNPADDED, PADDED], ids=["unpadded", "padded"])
def test_streaming(host: str, windows: tuple[int, ...]) -> None:
    driver = make(host, windows)
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


def test_saved_model_loads_in_stock_transformers(host: str, tmp_path: Path) -> None:
    driver = make(host)
    stock = driver.track(video(5))
    surgery.sparsify(driver.model, "balanced")
    driver.track(video(5))
    driver.model.save_pretrained(tmp_path)
    loaded, report = type(driver.model).__bases__[1].from_pretrained(tmp_path, output_loading_info=True)
    assert not report["missing_keys"]
    assert len(report["unexpected_keys"]) == 6
    assert loaded.config.architectures == [type(loaded).__name__]
    # The file is memory-mapped at addresses for which a CPU may take other kernels: its weights go where ours lie.
    twin = make(host, localised=False)
    assert not same(twin.track(video(5)), stock)
    twin.model.load_state_dict(loaded.state_dict())
    assert same(twin.track(video(5)), stock)
    mapped = type(driver)(loaded.eval()).track(video(5))
    close(mapped, stock, 1e-4)
    surgery.sparsify(loaded, "exact")
    assert same(type(driver)(loaded).track(video(5)), mapped)


def test_attention_implementation_can_be_switched(host: str) -> None:
    driver = make(host)
    surgery.sparsify(driver.model, "balanced")
    sdpa = driver.track(video(9))
    driver.model.set_attn_implementation("eager")
    close(driver.track(video(9)), sdpa, ROUNDING[host])


def test_hidden_states_are_still_recorded(host: str) -> None:
    driver = make(host)
    stock = driver.model.vision_encoder(video(1), output_hidden_states=True).hidden_states
    surgery.sparsify(driver.model, "balanced")
    ours = driver.model.vision_encoder(video(1), output_hidden_states=True).hidden_states
    assert same(list(ours), list(stock))


def test_accelerate_prepare_and_dispatch(host: str) -> None:
    from accelerate import Accelerator, cpu_offload

    driver = make(host)
    surgery.sparsify(driver.model, "balanced")
    expected = driver.track(video(9))
    prepared = type(driver)(Accelerator(cpu=True).prepare(driver.model))
    assert same(prepared.track(video(9)), expected)

    other = make(host)
    surgery.sparsify(other.model, "balanced")
    for part in (other.model.vision_encoder, other.model.memory_attention):
        cpu_offload(part, execution_device=torch.device("cpu"))
    assert same(other.track(video(9)), expected)


def test_reduced_precision_model(host: str) -> None:
    driver = make(host)
    assert isinstance(driver, TransformersDriver)
    surgery.sparsify(driver.model.to(torch.bfloat16), "balanced")
    session = driver.session(video(9).bfloat16(), torch.bfloat16)
    driver.click(session, 0, {1: (40, 110)})
    masks = [mask for _, found in driver.propagate(session) for mask in found.values()]
    assert len(masks) == 9
    assert all(mask.dtype == torch.bfloat16 and torch.isfinite(mask).all() for mask in masks)


def test_every_other_model_is_refused_for_what_it_is() -> None:
    """By class: an EdgeTamVideoModel may have a Hiera backbone, whose structure alone would pass."""
    reasons = {
        "Sam3TrackerVideoModel": "has no vision encoder, as within a Sam3VideoModel",
        "Sam3TrackerModel": "is for pictures: it has no memory and no previous frame",
        "Sam3Model": "is for pictures: it has no memory and no previous frame",
        "EdgeTamVideoModel": "is of EdgeTAM: its encoder has no windows to skip",
        "EdgeTamModel": "is of EdgeTAM: its encoder has no windows to skip",
        "Sam2Model": "is for pictures: it has no memory and no previous frame",
        "SamModel": "is for pictures: it has no memory and no previous frame",
        "SamHQModel": "is for pictures: it has no memory and no previous frame",
        "BertModel": "is not a SAM 2 video model",
    }
    kinds = [getattr(transformers, name) for name in reasons]
    # As a later release of the library may call its own.
    for name in ("Sam31TrackerVideoModel", "Sam3_1VideoModel"):
        kinds.append(type(name, (transformers.PreTrainedModel,), {"__module__": "transformers.models.sam3_1"}))
        reasons[name] = "is of SAM 3.1, whose memory holds several objects at once"
    for kind in kinds:
        # No weights: the class alone tells.
        model = kind.__new__(kind)
        torch.nn.Module.__init__(model)
        expected = "Sam3Tracker" if kind.__name__.startswith("Sam3") else "Sam2"
        with pytest.raises(
            UnsupportedModelError, match=rf"{kind.__name__} {reasons[kind.__name__]}.*{expected}VideoModel"
        ):
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

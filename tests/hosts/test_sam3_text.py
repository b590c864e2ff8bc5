"""`Sam3VideoModel`: memory retrieval and query routing in its tracker, and nothing that its detector would see."""

from __future__ import annotations

import copy
import functools
import pickle
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from torch import Tensor

import surgery
from surgery import ModelLoadError, ModelStateError, UnsupportedModelError
from surgery.core.patching import is_patched
from surgery.core.session import VideoState
from surgery.engine import require_surgery
from surgery.hosts import view_of
from surgery.loading import load_model
from surgery.operations import SparseMemoryRetrieval, SparseQueryRouting, TrimCaches
from surgery.recipe import Recipe
from tests.hosts.drive import SAM3, SIZE, make, video

HOST = "transformers_sam3_text"
LOW = 64


def recipe(*operations: Any) -> Recipe:
    return Recipe(metadata={"name": "text", "description": "Of its tracker."}, operations=operations)


SPARSE = recipe(SparseMemoryRetrieval(keep=0.1, warm_up=False), SparseQueryRouting(budget=0.3, rolling=0))
EXACT = recipe(SparseMemoryRetrieval(keep=1.0))


@functools.cache
def _model() -> Any:
    tracker = make(SAM3).model
    small: dict[str, Any] = {"hidden_size": 128, "num_attention_heads": 4}
    detector = transformers.Sam3Config(
        vision_config=tracker.config.vision_config.to_dict(),
        text_config={"model_type": "clip_text_model", "vocab_size": 99, "hidden_size": 64, "intermediate_size": 64,
                     "projection_dim": 32, "num_hidden_layers": 1, "num_attention_heads": 2,
                     "max_position_embeddings": 32},
        geometry_encoder_config={**small, "num_layers": 1, "intermediate_size": 64},
        detr_encoder_config={**small, "num_layers": 1, "intermediate_size": 64},
        detr_decoder_config={**small, "num_layers": 1, "intermediate_size": 64, "num_queries": 4},
        mask_decoder_config=small,
    )  # fmt: skip
    config = transformers.Sam3VideoConfig(
        detector_config=detector.to_dict(), tracker_config=tracker.config.to_dict(), low_res_mask_size=LOW,
        hotstart_delay=0, hotstart_unmatch_thresh=0, hotstart_dup_thresh=0, fill_hole_area=0,
        recondition_every_nth_frame=0,
    )  # fmt: skip
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(3)
        model = transformers.Sam3VideoModel(config).eval()
    model.tracker_model.load_state_dict(
        {name: value for name, value in tracker.state_dict().items() if not name.startswith("vision_encoder.")}
    )
    model.detector_model.vision_encoder.load_state_dict(tracker.vision_encoder.state_dict())
    model.tracker_neck.load_state_dict(tracker.vision_encoder.neck.state_dict())
    return model


def squares(frame: int, count: int) -> Tensor:
    """What the detector of `model` finds: [count, LOW, LOW], the moving square of the videos and one that stays."""
    masks = torch.zeros(2, LOW, LOW)
    left = (20 + 5 * frame) * LOW // SIZE
    masks[0, 90 * LOW // SIZE : 130 * LOW // SIZE, left : left + 40 * LOW // SIZE] = 1.0
    masks[1, 2:12, 50:60] = 1.0
    return masks[:count]


@pytest.fixture
def model(monkeypatch: pytest.MonkeyPatch) -> Any:
    """A small one. Its detector runs, and finds what it is told to: a second object on the third frame."""

    def found(self: Any, inference_session: Any, vision_embeds: Any) -> Any:
        frame = max(inference_session.cache._vision_features, default=-1) + 1
        masks = squares(frame, 1 if frame < 2 else 2)
        return {0: {"bbox": torch.zeros(len(masks), 4), "mask": masks, "scores": torch.full((len(masks),), 0.9)}}

    monkeypatch.setattr(transformers.Sam3VideoModel, "run_detection", found)
    return copy.deepcopy(_model())


def session(frames: Tensor) -> Any:
    made = transformers.Sam3VideoInferenceSession(
        video=frames, video_height=SIZE, video_width=SIZE, dtype=torch.float32
    )
    made.add_prompt("a square")
    return made


def track(model: Any, frames: int = 10, held: Any = None) -> list[Tensor]:
    held = session(video(frames)) if held is None else held
    return [mask for out in model.propagate_in_video_iterator(held) for mask in out.obj_id_to_mask.values()]


def same(one: list[Tensor], other: list[Tensor]) -> bool:
    return len(one) == len(other) and all(map(torch.equal, one, other))


def test_nothing_left_out_is_stock_and_undo_is_too(model: Any) -> None:
    classes = [type(module) for module in model.modules()]
    stock = track(model)
    assert len(stock) > 15, "a second object was found"
    surgery.sparsify(model, EXACT)
    assert view_of(model).name == HOST
    assert same(track(model), stock)
    surgery.sparsify(model, SPARSE)
    held = session(video(10))
    sparse = track(model, held=held)
    assert not same(sparse, stock) and all(torch.isfinite(mask).all() for mask in sparse)
    status = surgery.status(model)
    assert status.keys_kept < 0.9 and status.queries_kept < 0.9 and status.windows_kept is None
    assert any(isinstance(each, VideoState) for each in vars(held).values())
    with surgery.disabled(model):
        assert same(track(model), stock)
    surgery.desparsify(model)
    assert [type(module) for module in model.modules()] == classes
    assert not any(isinstance(each, VideoState) for each in vars(held).values())
    assert same(track(model), stock)


def test_copies_are_independent_and_videos_interleave(model: Any) -> None:
    surgery.sparsify(model, SPARSE)
    expected = track(model)
    for twin in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        assert same(track(twin), expected)
    runs = [model.propagate_in_video_iterator(session(video(10, seed))) for seed in (0, 1)]
    together = [[*first.obj_id_to_mask.values()] for first, _ in zip(*runs, strict=True)]
    assert same([mask for masks in together for mask in masks], expected)


def test_what_the_session_no_longer_reads_is_given_back(model: Any) -> None:
    stock = track(model)
    surgery.sparsify(model, recipe(TrimCaches()))
    held = session(video(10))
    assert same(track(model, held=held), stock)
    outputs = [out for each in held.output_dict_per_obj.values() for store in each.values() for out in store.values()]
    assert not any("high_res_masks" in out for out in outputs)
    assert len({out["maskmem_pos_enc"].data_ptr() for out in outputs}) == 1


@pytest.mark.parametrize("name", ["balanced", "exact"])
def test_window_routing_is_refused_with_the_reason(model: Any, name: str) -> None:
    with pytest.raises(UnsupportedModelError, match=r"finds new objects anywhere in a frame.*memory-only"):
        surgery.sparsify(model, name)
    assert not any(is_patched(module) for module in model.modules())


def test_its_tracker_alone_is_refused(model: Any) -> None:
    with pytest.raises(UnsupportedModelError, match="has no vision encoder, as within a Sam3VideoModel"):
        surgery.sparsify(model.tracker_model, "memory-only")
    assert not any(is_patched(module) for module in model.modules())


def test_other_sessions_and_tools_that_have_no_words_are_refused(model: Any) -> None:
    surgery.sparsify(model, "memory-only")
    other = make(SAM3).session(video(3))
    before = dict(vars(other))
    with pytest.raises(ModelStateError, match="is a Sam3TrackerVideoInferenceSession; expected a Sam3VideoInference"):
        model(other, frame_idx=0)
    assert vars(other) == before
    with pytest.raises(UnsupportedModelError, match="prompted with words"):
        view_of(model).drive(video(3), (SIZE, SIZE))
    assert require_surgery(model).states is not None


def test_a_saved_one_is_read_as_its_tracker_unless_asked_otherwise(model: Any, tmp_path: Path) -> None:
    """As `facebook/sam3` is saved."""
    model.save_pretrained(tmp_path / "both")
    found = load_model(str(tmp_path / "both"), device="cpu")
    twin = make(SAM3)
    assert type(found) is type(twin.model)
    ours, theirs = found.state_dict(), twin.model.state_dict()
    assert ours.keys() == theirs.keys() and all(torch.equal(ours[name], theirs[name]) for name in theirs)
    whole = load_model(str(tmp_path / "both"), HOST, "cpu", weights=False)
    assert type(whole) is type(model)
    with pytest.raises(ModelLoadError, match="a model of type 'sam3_video', expected 'sam2_video'"):
        load_model(str(tmp_path / "both"), "transformers", "cpu")
    found.save_pretrained(tmp_path / "tracker")
    assert type(load_model(str(tmp_path / "tracker"), device="cpu", weights=False)) is type(found)
    with pytest.raises(ModelLoadError, match="a model of type 'sam3_tracker_video', expected 'sam3_video'"):
        load_model(str(tmp_path / "tracker"), HOST, "cpu")

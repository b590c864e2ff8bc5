"""The demo model: its architecture, its weights in both hosts, and that both hosts compute the same masks."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

pytest.importorskip("sam2")
pytest.importorskip("transformers")

from surgery.demo import build, load, make_clip, write_davis
from surgery.demo.model import BLOCKS, GLOBALS, IMAGE_SIZE
from surgery.errors import ModelLoadError
from surgery.hosts.transformers.driver import new_processor
from surgery.hosts.transformers.keymap import KeymapError, to_stock, to_transformers


@pytest.fixture(scope="module")
def pair() -> tuple[Any, Any]:
    """The model in both hosts with the same random weights, none of them zero."""
    stock = build("sam2", seed=3)
    generator = torch.Generator().manual_seed(3)
    state = stock.state_dict()
    for key, value in state.items():
        if value.abs().max() < 1e-5 or "norm" in key:
            state[key] = value + 0.1 * torch.randn(value.shape, generator=generator)
    state["sam_mask_decoder.pred_obj_score_head.layers.2.bias"] = torch.tensor([5.0])
    stock.load_state_dict(state)
    hf = build("transformers")
    hf.load_state_dict(to_transformers(state))
    return stock, hf


def test_keymap_is_total_and_inverts(pair: tuple[Any, Any]) -> None:
    stock, hf = (model.state_dict() for model in pair)
    assert set(to_transformers(stock)) == set(hf)
    back = to_stock(hf)
    assert set(back) == set(stock)
    assert all(torch.equal(back[key], stock[key]) for key in stock)


@pytest.mark.parametrize("key", ["extra.weight", "image_encoder.trunk.blocks.x.norm1.weight", "no_mem_embed2"])
def test_keymap_refuses_unknown_names(pair: tuple[Any, Any], key: str) -> None:
    stock, hf = (model.state_dict() for model in pair)
    with pytest.raises(KeymapError, match="not a weight"):
        to_transformers({**stock, key: torch.zeros(1)})
    with pytest.raises(KeymapError, match="not a weight"):
        to_stock({**hf, key: torch.zeros(1)})


def test_keymap_refuses_missing_and_contradicting_tensors(pair: tuple[Any, Any]) -> None:
    stock, hf = (dict(model.state_dict()) for model in pair)
    del stock["sam_prompt_encoder.point_embeddings.2.weight"]
    with pytest.raises(KeymapError, match=r"lacks sam_prompt_encoder.point_embeddings.2.weight"):
        to_transformers(stock)
    hf["shared_image_embedding.positional_embedding"] = hf["shared_image_embedding.positional_embedding"] + 1
    with pytest.raises(KeymapError, match="differ"):
        to_stock(hf)


def test_architecture_is_routable_and_small(pair: tuple[Any, Any]) -> None:
    stock, hf = pair
    blocks = stock.image_encoder.trunk.blocks
    stage3 = range(sum(BLOCKS[:2]), sum(BLOCKS[:3]))
    inner = [index for index in stage3 if blocks[index].q_stride is None]
    windowed = [index for index in inner if blocks[index].window_size > 0]
    assert len(windowed) >= 8
    assert [index for index in inner if blocks[index].window_size == 0] == list(GLOBALS)
    assert stage3[-1] == GLOBALS[-1]
    grid, window = IMAGE_SIZE // 16, blocks[windowed[0]].window_size
    assert grid % window == 0
    assert (grid // window) ** 2 >= 16
    assert stock.hidden_dim == 128
    assert stock.mem_dim == 64
    assert sum(parameter.numel() for parameter in stock.parameters()) * 2 < 12e6
    assert sum(p.numel() for p in hf.parameters()) == sum(p.numel() for p in stock.parameters())


def test_both_hosts_track_the_same_masks(
    pair: tuple[Any, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Both hosts store memories as bfloat16, where a last-bit difference of the inputs may become one of 1/256. Kept in
    # float32, what is left is the model itself.
    monkeypatch.setattr(torch, "bfloat16", torch.float32)
    ours, theirs = _track_both(pair, tmp_path, boxes=True)
    assert (ours - theirs).abs().max() < 1e-5


def test_mask_prompts_agree_up_to_what_the_hosts_do_differently(pair: tuple[Any, Any], tmp_path: Path) -> None:
    # Stock sam2 stores a memory of the prompt at a quarter of its size and takes another token's pointer.
    ours, theirs = _track_both(pair, tmp_path, boxes=False)
    assert torch.equal(ours[0] > 0, theirs[0] > 0)
    assert (ours[1:] - theirs[1:]).abs().max() < 1e-2 * ours[1:].abs().max()


def _track_both(pair: tuple[Any, Any], folder: Path, boxes: bool) -> tuple[torch.Tensor, torch.Tensor]:
    """Track two objects over four frames in both hosts: mask logits [4, 2, 256, 256] each."""
    stock, hf = pair
    clip = make_clip(3, frames=4, size=IMAGE_SIZE, objects=2)
    images = write_davis([clip], folder)[0]
    frames = np.stack([np.asarray(Image.open(path)) for path in sorted(images.iterdir())])
    masks = [clip.labels[0] == label for label in (1, 2)]
    state = stock.init_state(str(images))
    session = new_processor(IMAGE_SIZE).init_video_session(
        video=torch.from_numpy(frames).movedim(-1, 1), inference_device="cpu", dtype=torch.float32
    )
    for label, mask in enumerate(masks, start=1):
        if boxes:
            stock.add_new_points_or_box(state, 0, label, box=_box(mask))
        else:
            stock.add_new_mask(state, 0, label, torch.from_numpy(mask))
    prompt = {"input_boxes": [[_box(mask) for mask in masks]]} if boxes else {"input_masks": masks}
    new_processor(IMAGE_SIZE).add_inputs_to_inference_session(session, frame_idx=0, obj_ids=[1, 2], **prompt)
    hf(session, frame_idx=0)
    ours = torch.stack([logits[:, 0] for _, _, logits in stock.propagate_in_video(state)])
    theirs = torch.stack(
        [
            torch.nn.functional.interpolate(out.pred_masks, (IMAGE_SIZE, IMAGE_SIZE), mode="bilinear")[:, 0]
            for out in hf.propagate_in_video_iterator(session)
        ]
    )
    return ours, theirs


def _box(mask: np.ndarray) -> list[float]:
    ys, xs = np.nonzero(mask)
    return [float(xs.min()), float(ys.min()), float(xs.max()), float(ys.max())]


def test_build_is_seeded_and_leaves_the_global_generator_alone() -> None:
    torch.manual_seed(1)
    before = torch.get_rng_state()
    first, second = (build("sam2", seed=5).no_mem_embed for _ in range(2))
    assert torch.equal(first, second)
    assert torch.equal(before, torch.get_rng_state())


def test_unknown_host_and_missing_weights_are_clear_errors(tmp_path: Path) -> None:
    with pytest.raises(ModelLoadError, match="did you mean 'transformers'"):
        build("transformer")
    with pytest.raises(ModelLoadError, match="vos=True needs host='sam2'"):
        build("transformers", vos=True)
    with pytest.raises(ModelLoadError, match=r"no demo weights at .*none\.safetensors: expected a safetensors file"):
        load("sam2", weights=tmp_path / "none.safetensors")


@pytest.mark.parametrize("host", ["sam2", "transformers"])
def test_weights_load_in_either_host(pair: tuple[Any, Any], tmp_path: Path, host: str) -> None:
    from safetensors.torch import save_file

    path = tmp_path / "w.safetensors"
    stock = {key: value.half().contiguous() for key, value in pair[0].state_dict().items()}
    save_file(stock, path)
    model = load(host, weights=path)
    state = model.state_dict() if host == "sam2" else to_stock(model.state_dict())
    assert all(torch.equal(state[key], value.float()) for key, value in stock.items())
    assert not model.training
    save_file({key: value for key, value in stock.items() if "obj_ptr_proj" not in key}, path)
    with pytest.raises(ModelLoadError, match="does not hold weights of the demo model"):
        load(host, weights=path)

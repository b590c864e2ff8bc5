"""What only SAM 3's tracker has: rotary positions in its encoder, no stages, 3 x 3 windows, patches of 14 pixels."""

from __future__ import annotations

import functools
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

import surgery
from surgery import AdapterMismatchError, ModelStateError, UnsupportedModelError
from surgery.core.patching import is_patched
from surgery.core.seams import BlockCall
from surgery.demo.clips import make_clip
from surgery.engine import require_surgery
from surgery.hosts import view_of
from surgery.hosts.transformers_sam3.loader import Sam3, Sam3TrackerLoader
from surgery.loading import load_model
from surgery.operations.exact_savings import KeptCode
from surgery.operations.window_routing.policy import WindowState
from surgery.recipe import Recipe
from tests.hosts.drive import FAMILIES, PADDED, SAM3, STEADY, TWINS, UNPADDED, make, sam3_small, video
from tests.hosts.routes import force, levels_of, router_of
from tests.hosts.sessions import begun, same

GLOBALS = ("packed", "cached", "dense")


@functools.cache
def clip() -> Any:
    return make_clip(5, 9, difficulty="easy", objects=2)


def tracked(model: Any, objects: int = 2, dtype: torch.dtype = torch.float32) -> list[Tensor]:
    """Masks of the frames of a clip, which the tools' own driver streams."""
    view = view_of(model)
    frames = torch.stack([view.driver.pixels(frame, view.image_size()) for frame in clip().frames]).to(dtype)
    driver = view.drive(frames, clip().frames.shape[1:3])
    for obj_id in range(1, objects + 1):
        driver.add_mask(0, obj_id, np.roll(clip().labels[0] == 1 + obj_id % 2, 11 * (obj_id - 1), 1))
    with torch.inference_mode():
        return [logits.clone() for _, logits in driver.steps(0, len(frames) - 1)]


@pytest.mark.parametrize(("objects", "dtype"), [(10, torch.float32), (2, torch.bfloat16)], ids=["ten", "bf16"])
def test_exact_is_bit_equal_and_so_is_the_way_back(objects: int, dtype: torch.dtype) -> None:
    model = sam3_small().to(dtype)
    stock = tracked(model, objects, dtype)
    assert stock[0].shape == (objects, 1, 72, 72)
    surgery.sparsify(model, "exact")
    assert same(tracked(model, objects, dtype), stock)
    # Random masks are unsure everywhere.
    surgery.sparsify(model, Recipe.load("fast", ["routing.object.unsure=null", "retrieval.unsure=null"]))
    sparse = tracked(model, objects, dtype)
    assert not same(sparse, stock) and all(torch.isfinite(mask).all() for mask in sparse)
    status = surgery.status(model)
    assert status.windows == 9 and status.windows_kept < 1 and status.keys_kept < 0.7
    surgery.desparsify(model)
    assert same(tracked(model, objects, dtype), stock)


@pytest.mark.parametrize("windows", [UNPADDED, PADDED], ids=["unpadded", "padded"])
@torch.no_grad()
def test_every_window_packed_has_the_features_of_stock(windows: tuple[int, ...]) -> None:
    model = make(SAM3, windows, localised=False).model
    stock = model.vision_encoder.backbone(video(1)).last_hidden_state
    surgery.sparsify(model, STEADY)
    router = router_of(model)
    assert (router.span.entry, router.span.exit) == (0, 5)
    (found,) = levels_of(model, video(1), router.route(WindowState(), range(router.grid.count), torch.device("cpu")))
    assert (found - stock).abs().max() < 2e-6


@torch.no_grad()
def test_packed_tokens_take_their_own_rows_of_the_rotary_tables() -> None:
    """Against angles from the definition, by complex numbers: half of a head turns by the column, half by the row."""
    model = sam3_small()
    surgery.sparsify(model, STEADY)
    view, router = view_of(model), router_of(model)
    number = next(index for index in router.span.routed if not view.block_info(index).window)
    block: Any = view.blocks()[number]
    config, side = model.config.vision_config.backbone_config, view.frame_side()
    places = torch.from_numpy(router.grid.token_ids([1, 5]))
    tokens = torch.randn(1, len(places), 1, config.hidden_size, generator=torch.Generator().manual_seed(1))
    heads, width = config.num_attention_heads, config.hidden_size // config.num_attention_heads
    speed = config.rope_parameters["rope_theta"] ** -(torch.arange(0, width // 2, 2) / (width // 2))
    scale = config.window_size / side
    angles = torch.cat([(places % side * scale)[:, None] * speed, (places // side * scale)[:, None] * speed], 1)

    def turned(project: Any) -> Tensor:
        pairs = torch.view_as_complex(project(tokens[0, :, 0]).reshape(len(places), heads, -1, 2).contiguous())
        return torch.view_as_real(pairs * torch.polar(torch.ones_like(angles), angles)[:, None]).flatten(-2)

    attention = block.attention
    query, key, value = turned(attention.q_proj), turned(attention.k_proj), attention.v_proj(tokens[0, :, 0])
    value = value.reshape(len(places), heads, width)
    weights = torch.einsum("nhd,mhd->hnm", query, key).div(width**0.5).softmax(-1)
    expected = attention.o_proj(torch.einsum("hnm,mhd->nhd", weights, value).flatten(1))
    call = BlockCall(block, number, {})
    assert (call.attend(tokens, places)[0, :, 0] - expected).abs().max() < 2e-6
    found = call.qkv(tokens, places)
    for one, other in zip(found.unbind(1), (query, key, value), strict=True):
        assert (one - other).abs().max() < 2e-6
    assert (call.attended(*found.unbind(1)) - expected).abs().max() < 2e-6
    wrong = call.attend(tokens, places.roll(1))[0, :, 0]
    assert (wrong - expected).abs().max() > 1e-4, "the positions matter"


def test_the_kinds_of_globals_differ_only_where_windows_are_skipped() -> None:
    model, masks = sam3_small(), {}
    for kind in GLOBALS:
        surgery.sparsify(model, Recipe.load("balanced", [f"routing.stages.globals={kind}"]))
        force(model, [3, 4, 5])
        masks[kind] = tracked(model)
        assert surgery.status(model).windows_kept == pytest.approx((1 + 7 / 3) / 8, abs=0.1)
    assert not same(masks["packed"], masks["cached"]) and not same(masks["cached"], masks["dense"])


def test_recipes_say_what_they_fit() -> None:
    """Those that say so can be applied; those that do not ask for stages, or are for released shortcuts of SAM 2."""
    models = {FAMILIES[host]: make(host).model for host in (TWINS[0], SAM3)}
    for name in surgery.list_recipes():
        recipe = Recipe.load(name)
        assert set(recipe.metadata.fits) <= set(models) and recipe.metadata.fits
        for family in recipe.metadata.fits:
            surgery.sparsify(models[family], recipe)
    with pytest.raises(UnsupportedModelError, match=r"no stage comes before the routed span.*use span: stage3"):
        surgery.sparsify(models["SAM 3"], "turbo")


@pytest.mark.parametrize(
    ("override", "reason"),
    [
        ("routing.stages.span=tiles", "no stage comes before the routed span"),
        ("routing.stages.stage4=routed", "no stage comes after the routed span"),
    ],
)
def test_settings_for_stages_are_refused(override: str, reason: str) -> None:
    model = make(SAM3).model
    with pytest.raises(UnsupportedModelError, match=reason):
        surgery.sparsify(model, Recipe.load("balanced", [override]))
    assert not any(is_patched(module) for module in model.modules())


def test_images_that_are_no_whole_number_of_patches_are_refused() -> None:
    model = Sam3TrackerLoader().build(Sam3(96, 2, 192, 2, (1,), 4, 250, 16, 128, 128, 1, 256, 256))
    with pytest.raises(
        UnsupportedModelError, match=r"images of 250 px .* tokens of 16 px; the nearest are 240 and 256"
    ):
        surgery.sparsify(model)
    assert not any(is_patched(module) for module in model.modules())
    single = Sam3TrackerLoader().build(Sam3(96, 2, 192, 2, (1,), 16, 256, 16, 128, 128, 1, 256, 256))
    with pytest.raises(UnsupportedModelError, match="single window"):
        surgery.sparsify(single)


def test_adapters_of_the_other_family_are_refused(tmp_path: Path) -> None:
    models = {host: surgery.sparsify(make(host).model, "balanced") for host in ("transformers", SAM3)}
    for host, model in models.items():
        surgery.save_adapter(model, tmp_path / host)
    card = (tmp_path / SAM3 / "README.md").read_text()
    assert "SAM 3 surgery adapter" in card and "Sam3TrackerVideoModel.from_pretrained" in card
    assert "Sam2VideoModel" not in card and "Sam3Tracker" not in (tmp_path / "transformers" / "README.md").read_text()
    for host, other, match in (
        (SAM3, "transformers", "made for SAM 2, this is a SAM 3 model"),
        ("transformers", SAM3, "made for SAM 3, this is a SAM 2 model"),
    ):
        model = make(host).model
        with pytest.raises(AdapterMismatchError, match=match):
            surgery.load_adapter(model, tmp_path / other)
        assert not any(is_patched(module) for module in model.modules())
        surgery.load_adapter(model, tmp_path / host)


def test_another_models_session_is_refused_and_left_alone() -> None:
    driver, other = make(SAM3), make("transformers").session(video(3))
    surgery.sparsify(driver.model, "balanced")
    before = dict(vars(other))
    with pytest.raises(ModelStateError, match="is a Sam2VideoInferenceSession; expected a Sam3TrackerVideoInference"):
        driver.model(other, frame_idx=0)
    assert vars(other) == before
    surgery.desparsify(driver.model)
    sam2 = make("transformers")
    surgery.sparsify(sam2.model, "balanced")
    with pytest.raises(ModelStateError, match="is a Sam3TrackerVideoInferenceSession; expected a Sam2VideoInference"):
        sam2.model(inference_session=driver.session(video(3)), frame_idx=0)


def test_the_tiled_position_code_is_made_once_for_a_video() -> None:
    driver = make(SAM3)
    surgery.sparsify(driver.model, "exact")
    session, run = begun(driver, video(4), 2, {1: (70, 120)})
    code = driver.state(session).states[KeptCode].code
    assert code.shape == (1, 256, 96)
    next(run)
    assert driver.state(session).states[KeptCode].code is code
    with torch.no_grad():
        driver.model.vision_encoder.backbone.embeddings.position_embeddings.add_(1.0)
    next(run)
    assert torch.equal(driver.state(session).states[KeptCode].code, code + 1.0)


def test_random_weights_are_by_name_and_find_nothing() -> None:
    one, other = (load_model("random:sam3-small", device="cpu") for _ in range(2))
    assert all(map(torch.equal, one.state_dict().values(), other.state_dict().values()))
    view = view_of(one)
    sizes = (view.image_size(), view.frame_side(), view.mask_side(), view.patch_stride(), view.bank_size())
    assert sizes == (252, 18, 72, 14, 7) and view.name == SAM3
    surgery.sparsify(one, "balanced")
    assert all(bool((mask <= 0).all()) for mask in tracked(one, 1)[1:])
    assert require_surgery(one).stats.last.windows != tuple(range(9)), "windows are chosen by the attention"

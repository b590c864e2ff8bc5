"""What is saved comes back: same host, other host, other precision, other recipe."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
import yaml
from safetensors.torch import load_file

import surgery
from surgery import AdapterMismatchError, ModelStateError, Recipe
from surgery.adapters import Adapter, read_adapter
from surgery.operations.window_routing.shortcut import make_shortcut
from tests.adapters.folders import CARD, CONFIG, FILES, PREFIX, WEIGHTS, content, edit_config, fitted, untouched
from tests.hosts.drive import PADDED, Driver, make, video
from tests.hosts.routes import router_of

HOSTS = ("sam2", "transformers")
FRAMES = 6


def shortcut_state(driver: Driver) -> dict[str, torch.Tensor]:
    return router_of(driver.model).shortcut.state_dict()


@pytest.mark.parametrize("host", HOSTS)
def test_masks_are_bit_equal_after_a_round_trip_and_agree_in_the_other_host(host: str, tmp_path: Path) -> None:
    driver = fitted(host)
    expected = driver.track(video(FRAMES))
    folder = surgery.save_adapter(driver.model, tmp_path / "a")
    untrained = make(host)
    surgery.sparsify(untrained.model, "balanced")
    assert any(not torch.equal(a, b) for a, b in zip(untrained.track(video(FRAMES)), expected, strict=True))

    again = make(host)
    assert surgery.load_adapter(again.model, folder) is again.model
    assert all(torch.equal(a, b) for a, b in zip(again.track(video(FRAMES)), expected, strict=True))
    assert surgery.status(again.model).adapter == str(folder)
    assert surgery.status(again.model).recipe == Recipe.load("balanced")

    other = make(HOSTS[1 - HOSTS.index(host)])
    surgery.load_adapter(other.model, str(folder))
    for a, b in zip(other.track(video(FRAMES)), expected, strict=True):
        assert (a - b).abs().max() <= 1e-5


def test_both_hosts_write_the_same_adapter_and_two_saves_the_same_bytes(saved: Path, tmp_path: Path) -> None:
    driver = fitted("transformers")
    first, second = (surgery.save_adapter(driver.model, tmp_path / name) for name in ("first", "second"))
    assert content(first) == content(second)
    assert set(content(first)) == FILES
    theirs, mine = load_file(saved / WEIGHTS), load_file(first / WEIGHTS)
    assert list(theirs) == list(mine)
    assert all(torch.equal(theirs[name], mine[name]) for name in mine)
    assert json.loads((saved / CONFIG).read_text()) == json.loads((first / CONFIG).read_text())


@pytest.mark.parametrize("kind", ["identity", "bottleneck", "ffn", "attention"])
@pytest.mark.parametrize("windows", [None, PADDED], ids=["unpadded", "padded"])
def test_every_shortcut_comes_back(kind: str, windows: tuple[int, ...] | None, tmp_path: Path) -> None:
    recipe = Recipe.load("balanced", [f"routing.shortcut.type={kind}", "routing.score_gate=-0.1"])
    driver = fitted("sam2", recipe, *([windows] if windows else []))
    folder = surgery.save_adapter(driver.model, tmp_path / "a")
    again = make("sam2", *([windows] if windows else []))
    surgery.load_adapter(again.model, folder)
    mine, theirs = shortcut_state(driver), shortcut_state(again)
    assert list(mine) == list(theirs)
    assert all(torch.equal(mine[name], theirs[name]) for name in mine)
    assert surgery.status(again.model).recipe == recipe
    assert read_adapter(folder).config.window == (6 if windows else 4)


def test_the_folder_holds_added_tensors_only_under_stock_names(saved: Path) -> None:
    tensors = load_file(saved / WEIGHTS)
    leaves = {f"{part}.{leaf}" for part in ("norm", "down_project", "up_project") for leaf in ("weight", "bias")}
    assert set(tensors) == {PREFIX + leaf for leaf in leaves} | {"thresholds.saliency_mass", "thresholds.score_gate"}
    assert tensors["thresholds.score_gate"].shape == ()
    assert tensors["thresholds.saliency_mass"].item() == 0.7
    config = json.loads((saved / CONFIG).read_text())
    assert (config["entry_block"], config["exit_block"], config["channels"], config["window"]) == (3, 8, 96, 4)
    assert config["schema_version"] == 2


def test_the_card_has_valid_front_matter_and_the_recipe(saved: Path) -> None:
    card = (saved / CARD).read_text()
    _, front, body = card.split("---\n", 2)
    assert yaml.safe_load(front)["library_name"] == "surgery"
    assert Recipe.parse(body.split("```yaml\n")[1].split("```")[0]) == Recipe.load("balanced")
    assert "9,552 parameters" in body


def test_a_read_adapter_can_be_given_to_sparsify_and_shares_nothing_with_the_model(saved: Path) -> None:
    adapter = read_adapter(saved)
    assert sum(value.numel() for value in adapter.tensors.values()) == 9552
    assert all(value.dtype == torch.float32 and value.device.type == "cpu" for value in adapter.tensors.values())
    driver = make("sam2")
    surgery.sparsify(driver.model, adapter=adapter)
    with torch.no_grad():
        for parameter in shortcut_state(driver).values():
            parameter.fill_(7)
    assert not any(bool((value == 7).all()) for value in adapter.tensors.values()), "the model has its own tensors"


@pytest.mark.parametrize(
    ("size", "blocks", "channels", "parameters"),
    [("base-plus", (6, 20), 448, 202_272), ("large", (9, 43), 576, 333_792)],
)
def test_everything_added_for_the_released_sizes_fits_in_1_4_mb_in_fp32(
    size: str, blocks: tuple[int, int], channels: int, parameters: int, saved: Path
) -> None:
    small = read_adapter(saved)
    base = small.config.base_model
    config = small.config.model_copy(
        update={
            "entry_block": blocks[0],
            "exit_block": blocks[1],
            "channels": channels,
            "base_model": base.model_copy(update={"id": f"facebook/sam2.1-hiera-{size}"}),
        }
    )
    tensors = make_shortcut("bottleneck", channels).state_dict()
    adapter = Adapter("made up", config, small.recipe, tensors)
    assert adapter.parameters == parameters
    assert all(value.dtype == torch.float32 for value in tensors.values())
    assert sum(map(len, adapter.files().values())) <= 1_400_000


# ------------------------------------------------------------------------------------------------ which models it fits


def test_a_half_precision_copy_of_the_base_is_accepted_both_ways(saved: Path, tmp_path: Path) -> None:
    half = make("sam2")
    half.model.to(torch.bfloat16)
    surgery.load_adapter(half.model, saved)
    assert all(value.dtype == torch.bfloat16 for value in shortcut_state(half).values())
    back = surgery.save_adapter(half.model, tmp_path / "half")
    mine, theirs = (json.loads((folder / CONFIG).read_text()) for folder in (back, saved))
    for config in (mine, theirs):
        found = config["base_model"].pop("fingerprint")
        assert found["bfloat16"] == read_adapter(saved).config.base_model.fingerprint.bfloat16
    assert mine == theirs
    full = make("sam2")
    surgery.load_adapter(full.model, back)
    assert all(value.dtype == torch.float32 for value in shortcut_state(full).values())


def test_other_routed_weights_are_refused_unless_forced(saved: Path) -> None:
    driver = make("sam2")
    with torch.no_grad():
        driver.model.image_encoder.trunk.blocks[5].mlp.layers[0].weight[0, 0] += 1
    with untouched(driver.model), pytest.raises(AdapterMismatchError, match="force=True"):
        surgery.load_adapter(driver.model, saved)
    surgery.load_adapter(driver.model, saved, force=True)
    assert surgery.status(driver.model).sparse
    assert all(torch.equal(value, read_adapter(saved).tensors[name]) for name, value in shortcut_state(driver).items())


@pytest.mark.parametrize("index", [3, 8])
def test_the_first_and_the_last_block_of_the_span_count(index: int, saved: Path) -> None:
    driver = make("sam2")
    with torch.no_grad():
        driver.model.image_encoder.trunk.blocks[index].norm1.bias[0] += 1
    with pytest.raises(AdapterMismatchError, match="other weights"):
        surgery.load_adapter(driver.model, saved)


def test_weights_outside_the_span_do_not_matter(saved: Path) -> None:
    driver = make("sam2")
    with torch.no_grad():
        driver.model.image_encoder.trunk.blocks[2].norm1.bias.add_(1)
        driver.model.sam_mask_decoder.iou_token.weight.add_(1)
    surgery.load_adapter(driver.model, saved)


@pytest.mark.parametrize("host", HOSTS)
def test_an_adapter_for_other_windows_is_refused_even_when_forced(host: str, saved: Path) -> None:
    driver = make(host, PADDED)
    for force in (False, True):
        with untouched(driver.model), pytest.raises(AdapterMismatchError, match=r"windows of 4.*windows of 6"):
            surgery.load_adapter(driver.model, saved, force=force)


def test_an_adapter_for_other_blocks_is_refused_even_when_forced(folder: Path, stock: Driver) -> None:
    edit_config(folder, lambda config: config.update(exit_block=7))
    for force in (False, True):
        with untouched(stock.model), pytest.raises(AdapterMismatchError, match=r"blocks 3\.\.7.*blocks 3\.\.8"):
            surgery.load_adapter(stock.model, folder, force=force)


# ------------------------------------------------------------------------------------------------ with another recipe


def test_another_recipe_may_use_the_same_shortcut(saved: Path) -> None:
    driver = make("sam2")
    surgery.load_adapter(driver.model, saved, recipe="fast")
    assert surgery.status(driver.model).recipe == Recipe.load("fast")
    assert torch.equal(shortcut_state(driver)["norm.bias"], read_adapter(saved).tensors["norm.bias"])


def test_a_recipe_with_another_shortcut_is_refused(saved: Path, stock: Driver) -> None:
    with untouched(stock.model), pytest.raises(AdapterMismatchError, match=r"'bottleneck'.*'identity'"):
        surgery.load_adapter(stock.model, saved, recipe="exact")


def test_loading_replaces_an_earlier_surgery(saved: Path) -> None:
    driver = make("sam2")
    surgery.sparsify(driver.model, "published-large")
    surgery.load_adapter(driver.model, saved)
    assert surgery.status(driver.model).recipe == Recipe.load("balanced")
    surgery.desparsify(driver.model)
    assert not surgery.status(driver.model).sparse
    with pytest.raises(ModelStateError, match="not under surgery"):
        surgery.save_adapter(driver.model, saved)

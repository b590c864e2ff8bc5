"""Adapters written by released versions keep loading, for ever. `adapters/<version>-<what>` are never rewritten.

Each was saved from `tests.adapters.folders.fitted`, whose weights come from fixed seeds; their shortcuts and base are
compared with the ones made here.
"""

from __future__ import annotations

import json
import shutil
import warnings
from pathlib import Path

import pytest
import torch

import surgery
from surgery import AdapterError, Recipe
from surgery.adapters import read_adapter
from surgery.operations import SparseWindowRouting
from tests.adapters.folders import CONFIG, edit_config, fitted
from tests.hosts.drive import make

FOLDER = Path(__file__).parent / "adapters"
# Built-in recipes may change, so what each folder holds is spelt out: recipe name, shortcut, operations.
HELD = {
    "0.1.0-balanced": ("balanced", "bottleneck", 2),
    "0.1.0-published": ("published-large", "bottleneck", 2),
    "0.1.0-identity": ("exact", "identity", 2),
}


def test_every_folder_is_listed() -> None:
    assert {path.name for path in FOLDER.iterdir()} == set(HELD)


@pytest.mark.parametrize("name", HELD)
@pytest.mark.parametrize("host", ["sam2", "transformers"])
def test_an_old_adapter_loads_silently_on_its_base(name: str, host: str) -> None:
    recipe, shortcut, operations = HELD[name]
    driver = make(host)
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        surgery.load_adapter(driver.model, FOLDER / name)
    assert surgery.status(driver.model).sparse
    like = Recipe.load("balanced", [f"routing.shortcut.type={shortcut}"])
    expected = fitted("sam2", like).model.image_encoder.trunk.blocks[3].shortcut.state_dict()
    found = read_adapter(FOLDER / name).tensors
    assert set(found) == set(expected)
    assert all(torch.equal(found[key], expected[key]) for key in found)
    held = read_adapter(FOLDER / name).recipe
    assert (held.metadata.name, len(held.operations)) == (recipe, operations)
    assert (
        held.find(SparseWindowRouting) is not None and held.find(SparseWindowRouting).skipped.shortcut.type == shortcut
    )


@pytest.mark.parametrize("name", HELD)
def test_an_old_adapter_is_still_refused_on_other_weights(name: str) -> None:
    driver = make("sam2")
    with torch.no_grad():
        driver.model.image_encoder.trunk.blocks[5].mlp.layers[0].weight.mul_(1.01)
    with pytest.raises(surgery.AdapterMismatchError, match="force=True"):
        surgery.load_adapter(driver.model, FOLDER / name)


@pytest.mark.parametrize("name", HELD)
def test_saving_an_old_adapter_again_writes_the_current_schema(name: str, tmp_path: Path) -> None:
    driver = make("sam2")
    surgery.load_adapter(driver.model, FOLDER / name)
    folder = surgery.save_adapter(driver.model, tmp_path / "new")
    assert json.loads((folder / CONFIG).read_text())["schema_version"] == 2
    assert (folder / "adapter_model.safetensors").read_bytes() == (
        FOLDER / name / "adapter_model.safetensors"
    ).read_bytes()


def test_a_field_of_the_future_is_named(tmp_path: Path) -> None:
    folder = Path(shutil.copytree(FOLDER / "0.1.0-balanced", tmp_path / "a"))
    edit_config(folder, lambda config: config.update(schema_version=2, token_routing=1))
    with pytest.raises(AdapterError, match="token_routing: unknown key, or one of a newer surgery"):
        read_adapter(folder)
    edit_config(folder, lambda config: config.update(schema_version=7, library_version="5.0"))
    with pytest.raises(AdapterError, match=r"schema_version is 7, written by a newer surgery \('5\.0'\).*upgrade"):
        read_adapter(folder)


def test_schema_one_is_as_strict_as_it_was(tmp_path: Path) -> None:
    folder = Path(shutil.copytree(FOLDER / "0.1.0-balanced", tmp_path / "a"))
    original = (folder / CONFIG).read_text()
    for change in (
        lambda config: config["base_model"].update(fingerprint=None),
        lambda config: config["base_model"].update(fingerprint="bf16-sha256:xyz"),
        lambda config: config["base_model"].update(fingerprint={"bfloat16": "0" * 64}),
    ):
        edit_config(folder, change)
        with pytest.raises(AdapterError, match=CONFIG):
            read_adapter(folder)
        (folder / CONFIG).write_text(original)

"""Saving: complete or not at all, never over somebody else's files, never what could not be loaded."""

from __future__ import annotations

import itertools
import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

import surgery
from surgery import AdapterError, ModelStateError, Recipe, WeightsError
from surgery.adapters import read_adapter
from tests.adapters.folders import CONFIG, FILES, content, fitted, untouched
from tests.hosts.drive import Driver, make


@pytest.fixture(scope="module")
def driver() -> Driver:
    return fitted("sam2")


def test_parents_are_made_and_the_path_is_returned(driver: Driver, tmp_path: Path) -> None:
    target = tmp_path / "deep" / "er" / "adapter"
    with untouched(driver.model):
        assert surgery.save_adapter(driver.model, str(target)) == target
    assert set(content(target)) == FILES
    assert {path.name for path in target.parent.iterdir()} == {"adapter"}, "nothing temporary is left"
    assert os.stat(target).st_mode & 0o055 == 0o055, "others may read it, as they may any other folder"


def test_an_empty_folder_and_an_older_adapter_are_replaced(driver: Driver, folder: Path, tmp_path: Path) -> None:
    (folder / "README.md").unlink()
    other = make("sam2")
    surgery.sparsify(other.model, "fast")
    surgery.save_adapter(other.model, folder)
    assert read_adapter(folder).recipe == Recipe.load("fast")
    assert set(content(folder)) == FILES
    empty = tmp_path / "empty"
    empty.mkdir()
    surgery.save_adapter(driver.model, empty)
    assert set(content(empty)) == FILES
    assert {path.name for path in tmp_path.iterdir()} == {"adapter", "empty"}


def test_the_working_directory_can_be_the_adapter(
    driver: Driver, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(folder)
    surgery.save_adapter(driver.model, ".")
    assert content(folder) == content(surgery.save_adapter(driver.model, tmp_path / "fresh"))
    assert {path.name for path in tmp_path.iterdir()} == {"adapter", "fresh"}


# ------------------------------------------------------------------------------------------------ other people's files


def peft(folder: Path) -> None:
    """Another library's adapter: the same file names."""
    (folder / CONFIG).write_text(json.dumps({"peft_type": "LORA", "r": 8}))


def damaged(folder: Path) -> None:
    (folder / CONFIG).write_text('{"library": "surgery"')


FOREIGN: dict[str, Callable[[Path], Any]] = {
    "one file more": lambda folder: (folder / "notes.txt").write_text("mine"),
    "a hidden file": lambda folder: (folder / ".gitattributes").write_text("mine"),
    "a folder inside": lambda folder: (folder / "checkpoints").mkdir(),
    "no configuration": lambda folder: (folder / CONFIG).unlink(),
    "another library's adapter": peft,
    "an unreadable configuration": damaged,
    "a configuration nested deeply": lambda folder: (folder / CONFIG).write_text("[" * 100_000),
}


@pytest.mark.parametrize("what", FOREIGN, ids=str)
def test_a_folder_that_is_not_ours_is_never_replaced(what: str, driver: Driver, folder: Path) -> None:
    FOREIGN[what](folder)
    before = sorted(path.name for path in folder.iterdir())
    bytes_before = {path.name: path.read_bytes() for path in folder.iterdir() if path.is_file()}
    with pytest.raises(AdapterError, match="not an adapter folder of surgery"):
        surgery.save_adapter(driver.model, folder)
    assert sorted(path.name for path in folder.iterdir()) == before
    assert all((folder / name).read_bytes() == value for name, value in bytes_before.items())


def test_files_and_links_are_never_replaced(driver: Driver, folder: Path, tmp_path: Path) -> None:
    file, link, dangling = tmp_path / "file", tmp_path / "link", tmp_path / "dangling"
    file.write_text("mine")
    link.symlink_to(folder)
    dangling.symlink_to(tmp_path / "nowhere")
    for path in (file, link, dangling):
        with pytest.raises(AdapterError, match="choose another path"):
            surgery.save_adapter(driver.model, path)
    assert file.read_text() == "mine"
    assert link.is_symlink()
    assert dangling.is_symlink()
    for path in (file / "below", Path("a" * 5000), Path("a\0b")):
        with pytest.raises(AdapterError, match="cannot be written"):
            surgery.save_adapter(driver.model, path)


# ------------------------------------------------------------------------------------------------ interrupted


def interrupt(patch: pytest.MonkeyPatch, turn: int, error: BaseException) -> list[str]:
    """Make the `turn`-th call that changes the disk fail; returns the log of such calls."""
    calls: list[str] = []

    def wrap(module: Any, name: str) -> None:
        original = getattr(module, name)

        def call(*args: Any, **kwargs: Any) -> Any:
            calls.append(name)
            if len(calls) == turn:
                raise error
            return original(*args, **kwargs)

        patch.setattr(module, name, call)

    for name in ("rename", "replace", "fsync", "chmod"):
        wrap(os, name)
    return calls


@pytest.mark.parametrize("error", [OSError(28, "No space left on device"), KeyboardInterrupt()], ids=["full", "ctrl-c"])
@pytest.mark.parametrize("exists", [True, False], ids=["replacing", "new"])
def test_an_interrupted_save_leaves_the_old_adapter_or_nothing(
    error: BaseException, exists: bool, driver: Driver, saved: Path, tmp_path: Path
) -> None:
    target = tmp_path / "adapter"
    if exists:
        shutil.copytree(saved, target)
    other = make("sam2")
    surgery.sparsify(other.model, "fast")
    before = content(target) if exists else None
    expected = AdapterError if isinstance(error, OSError) else KeyboardInterrupt
    for turn in itertools.count(1):
        with pytest.MonkeyPatch.context() as patch:
            calls = interrupt(patch, turn, error)
            try:
                surgery.save_adapter(other.model, target)
            except expected:
                assert len(calls) >= turn
            else:
                break
        assert (content(target) if target.exists() else None) == before, calls
        assert [path.name for path in tmp_path.iterdir()] == (["adapter"] if exists else []), calls
    assert turn > 6, "every step of the save was interrupted once"
    assert read_adapter(target).recipe == Recipe.load("fast")
    assert [path.name for path in tmp_path.iterdir()] == ["adapter"]


# ------------------------------------------------------------------------------------------------ nothing to save


def test_models_with_nothing_to_save_are_refused(tmp_path: Path) -> None:
    model = make("sam2").model
    with pytest.raises(ModelStateError, match="call sparsify"):
        surgery.save_adapter(model, tmp_path / "a")
    surgery.sparsify(model, "memory-only")
    with untouched(model), pytest.raises(ModelStateError, match="no window routing"):
        surgery.save_adapter(model, tmp_path / "a")
    assert not (tmp_path / "a").exists()


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_shortcut_that_could_not_be_loaded_is_not_saved(value: float, folder: Path) -> None:
    driver = fitted("sam2")
    before = content(folder)
    with torch.no_grad():
        driver.model.image_encoder.trunk.blocks[3].shortcut.down_project.bias[2] = value
    with pytest.raises(WeightsError, match=r"down_project\.bias"):
        surgery.save_adapter(driver.model, folder)
    assert content(folder) == before

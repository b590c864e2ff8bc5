"""The released shortcuts as adapters; the real files when they are at hand, made-up ones of the same form always."""

from __future__ import annotations

import io
import os
import pickle
import zipfile
from collections import OrderedDict
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

import surgery
from surgery import AdapterError, AdapterMismatchError, Recipe
from surgery.adapters import UnprovenBaseWarning, import_published, read_adapter
from surgery.adapters import published as module
from surgery.adapters.published import _Release
from surgery.hosts.sam21 import Sam21
from surgery.operations.window_routing.shortcut import SHORTCUTS
from tests.adapters.folders import CARD, content
from tests.conftest import shared
from tests.hosts.drive import BLOCKS, GLOBALS, UNPADDED, make

SIZES = {"base": ("base-plus", 448, 202_272, 14), "large": ("large", 576, 333_792, 16)}


def checkpoint(path: Path, channels: int = 448, **other: Any) -> Path:
    draw = torch.Generator().manual_seed(0)
    shapes = SHORTCUTS["bottleneck"](channels).state_dict()
    state = OrderedDict((name, torch.randn(value.shape, generator=draw)) for name, value in shapes.items())
    torch.save(OrderedDict({**state, **other}), path)
    return path


def imported(source: Path, out: Path, **how: Any) -> Any:
    with pytest.warns(UnprovenBaseWarning, match="no fingerprint"):
        return import_published(source, out, **how)


@pytest.mark.parametrize("size", SIZES)
def test_the_released_files(size: str, tmp_path: Path) -> None:
    name, channels, parameters, window = SIZES[size]
    source = shared("official", f"bypass_bottleneck_{size}.pth")
    imported(source, tmp_path / "out")
    adapter = read_adapter(tmp_path / "out")
    config = adapter.config
    assert (config.channels, adapter.parameters, config.window) == (channels, parameters, window)
    assert config.base_model.id == f"facebook/sam2.1-hiera-{name}"
    assert config.base_model.fingerprint is None
    assert config.provenance is not None and config.provenance.origin == (
        f"github.com/jingjing0419/Efficient-SAM2, bypass/ckpt/{source.name}"
    )
    assert adapter.recipe == Recipe.load(f"published-{name}")
    expected = torch.load(source, map_location="cpu", weights_only=True)
    assert set(expected) == set(adapter.tensors)
    assert all(torch.equal(adapter.tensors[key], value) for key, value in expected.items())
    assert sum(map(len, content(tmp_path / "out").values())) < 1_400_000
    card = (tmp_path / "out" / CARD).read_text()
    assert config.provenance.sha256 in card and "no fingerprint is recorded" in card


@pytest.mark.parametrize(("size", "channels"), [("base-plus", 448), ("large", 576)])
def test_made_up_files_of_that_form(size: str, channels: int, tmp_path: Path) -> None:
    adapter = imported(checkpoint(tmp_path / "x.pth", channels), tmp_path / "out")
    assert adapter.recipe.metadata.name == f"published-{size}"
    assert adapter.config.provenance.origin.endswith("not the released file")
    first = content(tmp_path / "out")
    imported(tmp_path / "x.pth", tmp_path / "out")
    assert content(tmp_path / "out") == first


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    """The small test model in the place of base+."""
    release = _Release(Sam21("large", 24, 1, BLOCKS, GLOBALS, UNPADDED), "x.pth", "0" * 64)
    monkeypatch.setattr(module, "_RELEASES", (release,))


@pytest.mark.usefixtures("small")
@pytest.mark.parametrize("host", ["sam2", "transformers"])
def test_with_the_base_model_the_fingerprint_is_recorded(host: str, tmp_path: Path, recwarn: Any) -> None:
    import_published(checkpoint(tmp_path / "x.pth", 96), tmp_path / "out", model=make(host).model)
    driver = make("sam2")
    surgery.load_adapter(driver.model, tmp_path / "out")
    assert not [one for one in recwarn if issubclass(one.category, UnprovenBaseWarning)]
    assert surgery.status(driver.model).recipe == Recipe.load("published-large")
    again = surgery.save_adapter(driver.model, tmp_path / "again")
    assert read_adapter(again).config.provenance == read_adapter(tmp_path / "out").config.provenance


@pytest.mark.usefixtures("small")
def test_without_it_loading_warns_and_works(tmp_path: Path) -> None:
    imported(checkpoint(tmp_path / "x.pth", 96), tmp_path / "out")
    driver = make("transformers")
    with pytest.warns(UnprovenBaseWarning, match="weights were not compared"):
        surgery.load_adapter(driver.model, tmp_path / "out")


def test_another_structure_is_refused(tmp_path: Path) -> None:
    with pytest.raises(AdapterMismatchError, match="channels"):
        import_published(checkpoint(tmp_path / "x.pth"), tmp_path / "out", model=make("sam2").model)
    assert not (tmp_path / "out").exists()


# ------------------------------------------------------------------------------------------------------ hostile files


class Bomb:
    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, ("executed",)


def zipped(code: bytes, **more: bytes) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, data in {"x/data.pkl": code, "x/version": b"3", **more}.items():
            archive.writestr(name, data)
    return buffer.getvalue()


def saved(value: Any) -> bytes:
    buffer = io.BytesIO()
    torch.save(value, buffer)
    return buffer.getvalue()


def good(**other: Any) -> dict[str, Tensor]:
    return {**SHORTCUTS["bottleneck"](448).state_dict(), **other}


HOSTILE: dict[str, tuple[Any, str]] = {
    "a plain pickle": (lambda: pickle.dumps(Bomb()), "not a torch checkpoint"),
    "an old-style checkpoint": (lambda: _legacy(good()), "not a torch checkpoint"),
    "empty": (lambda: b"", "not a torch checkpoint"),
    "a bomb inside": (lambda: saved({"a": Bomb()}), "nothing was executed"),
    "a bomb by protocol 4": (lambda: zipped(pickle.dumps({"a": Bomb()}, protocol=4)), "nothing was executed"),
    "a bomb by protocol 0": (lambda: zipped(pickle.dumps({"a": Bomb()}, protocol=0)), "nothing was executed"),
    "a broken pickle": (lambda: zipped(b"\x80\x02}q\x00("), "not readable"),
    "no pickle": (lambda: zipped(b"").replace(b"data.pkl", b"data.txt"), "not readable"),
    "two pickles": (lambda: zipped(b"N.", **{"y/data.pkl": b"N."}), "not readable"),
    "a zip bomb": (lambda: zipped(b"N.", **{"x/data/0": bytes(50_000_000)}), "unpacks to more"),
    "truncated": (lambda: saved(good())[:-3000], "not a torch checkpoint"),
    "a list": (lambda: saved([torch.zeros(1)]), "holds a list"),
    "a tensor": (lambda: saved(torch.zeros(1)), "holds a Tensor"),
    "a number inside": (lambda: saved(good(extra=3)), "'extra' is a int"),
    "another type": (lambda: saved(good(extra=torch.zeros(2).double())), "float64 tensor"),
    "sparse": (lambda: saved(good(extra=torch.eye(3).to_sparse())), "expected a dense"),
    "not finite": (lambda: saved(good(**{"norm.bias": torch.full((448,), float("nan"))})), "not finite"),
    "one tensor more": (lambda: saved(good(extra=torch.zeros(2))), "width 448"),
    "one tensor fewer": (lambda: saved({"norm.bias": torch.zeros(448)}), "width 448"),
    "another width": (lambda: saved(SHORTCUTS["bottleneck"](96).state_dict()), "width 448"),
    "another branch": (lambda: saved(SHORTCUTS["ffn"](448).state_dict()), "width 448"),
}  # fmt: skip


def _legacy(value: Any) -> bytes:
    buffer = io.BytesIO()
    torch.save(value, buffer, _use_new_zipfile_serialization=False)
    return buffer.getvalue()


@pytest.mark.parametrize("what", HOSTILE, ids=str)
def test_anything_else_is_refused_and_nothing_executed(
    what: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    data, words = HOSTILE[what]
    (tmp_path / "x.pth").write_bytes(data())
    with pytest.raises(AdapterError, match=words):
        import_published(tmp_path / "x.pth", tmp_path / "out")
    assert {path.name for path in tmp_path.iterdir()} == {"x.pth"}


def test_missing_and_huge_files_are_refused(tmp_path: Path) -> None:
    with pytest.raises(AdapterError, match="missing"):
        import_published(tmp_path / "none.pth", tmp_path / "out")
    with open(tmp_path / "x.pth", "wb") as file:
        file.truncate(10**10)
    with pytest.raises(AdapterError, match="larger than"):
        import_published(tmp_path / "x.pth", tmp_path / "out")

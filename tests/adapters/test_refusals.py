"""Damaged, foreign and hostile adapter folders: one clear error each, and the model is as it was."""

from __future__ import annotations

import json
import math
import pickle
import struct
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

import surgery
from surgery import AdapterError, AdapterMismatchError, Recipe
from tests.adapters.folders import CONFIG, PREFIX, RECIPE, WEIGHTS, edit_config, edit_tensors, untouched
from tests.hosts.drive import Driver

NORM, UP = f"{PREFIX}norm.weight", f"{PREFIX}up_project.weight"
GATE, MASS = "thresholds.score_gate", "thresholds.saliency_mass"


def refused(folder: Path | str, *drivers: Driver, words: str, kind: type[AdapterError] = AdapterError) -> None:
    for driver in drivers:
        for force in (False, True):
            with untouched(driver.model), pytest.raises(AdapterError) as caught:
                surgery.load_adapter(driver.model, folder, force=force)
            assert type(caught.value) is kind
            assert words in str(caught.value)


# ------------------------------------------------------------------------------------------------ folders and files


@pytest.mark.parametrize("name", [CONFIG, WEIGHTS, RECIPE])
def test_a_missing_file_is_named(name: str, folder: Path, stock: Driver, sparse: Driver) -> None:
    (folder / name).unlink()
    refused(folder, stock, sparse, words=name)


@pytest.mark.parametrize("name", [CONFIG, WEIGHTS, RECIPE])
def test_a_folder_in_the_place_of_a_file_is_refused(name: str, folder: Path, stock: Driver) -> None:
    (folder / name).unlink()
    (folder / name).mkdir()
    refused(folder, stock, words=name)


def test_a_path_that_is_no_folder_is_refused(folder: Path, stock: Driver, sparse: Driver) -> None:
    refused(folder / WEIGHTS, stock, sparse, words="no adapter folder")
    for nowhere in (folder / "none", "", "a" * 5000, "a\0b", "./facebook/sam2-adapter", Path("facebook/sam2-adapter")):
        refused(nowhere, stock, words="" if nowhere == "" else "no adapter folder")


def test_an_empty_folder_is_refused(tmp_path: Path, stock: Driver) -> None:
    refused(tmp_path, stock, words=f"{CONFIG}: missing")


def test_the_card_is_not_needed(folder: Path) -> None:
    (folder / "README.md").unlink()
    from surgery.adapters import read_adapter

    assert read_adapter(folder).config.channels == 96


# ------------------------------------------------------------------------------------------------ safetensors


def header(data: Any, body: bytes = b"") -> bytes:
    text = data if isinstance(data, bytes) else json.dumps(data).encode()
    return struct.pack("<Q", len(text)) + text + body


def one_tensor(shape: list[int], start: int) -> bytes:
    return header({UP: {"dtype": "F32", "shape": shape, "data_offsets": [start, start + 4]}}, b"\0" * 4)


class Bomb:
    """Runs when unpickled."""

    def __reduce__(self) -> tuple[Any, ...]:
        return pytest.fail, ("a pickle was executed",)


GARBAGE: dict[str, Callable[[bytes], bytes]] = {
    "empty": lambda good: b"",
    "four bytes": lambda good: good[:4],
    "header alone": lambda good: good[: 8 + struct.unpack("<Q", good[:8])[0]],
    "last byte missing": lambda good: good[:-1],
    "one byte more": lambda good: good + b"\0",
    "half": lambda good: good[: len(good) // 2],
    "header of 2^60 bytes": lambda good: struct.pack("<Q", 2**60) + good[8:],
    "header of 2^64 - 1 bytes": lambda good: struct.pack("<Q", 2**64 - 1) + good[8:],
    "header longer than the file": lambda good: struct.pack("<Q", len(good)) + good[8:],
    "pickle": lambda good: pickle.dumps(Bomb()),
    "git lfs pointer": lambda good: b"version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 39096\n",
    "web page": lambda good: b"<!DOCTYPE html><html>404</html>",
    "header that is a list": lambda good: header([]),
    "header nested deeply": lambda good: header(b"[" * 50_000),
    "shape that overflows": lambda good: one_tensor([2**62, 8], 0),
    "shape larger than its data": lambda good: one_tensor([96, 48], 0),
    "offsets outside": lambda good: one_tensor([1], 4),
    "no tensors": lambda good: header({}),
}  # fmt: skip


@pytest.mark.parametrize("damage", GARBAGE, ids=str)
def test_what_is_no_safetensors_file_is_refused(damage: str, folder: Path, stock: Driver, sparse: Driver) -> None:
    (folder / WEIGHTS).write_bytes(GARBAGE[damage]((folder / WEIGHTS).read_bytes()))
    refused(folder, stock, sparse, words=WEIGHTS)


def test_a_torch_pickle_is_refused_unread(folder: Path, stock: Driver) -> None:
    torch.save({UP: Bomb()}, folder / WEIGHTS)
    refused(folder, stock, words="not a readable safetensors file")


@pytest.mark.parametrize(("name", "limit"), [(WEIGHTS, 10**9), (CONFIG, 10**8), (RECIPE, 10**8)])
def test_a_huge_file_is_refused_unread(name: str, limit: int, folder: Path, stock: Driver) -> None:
    with open(folder / name, "r+b") as file:
        file.truncate(limit)  # sparse: takes no space
    start = time.perf_counter()
    refused(folder, stock, words="larger than")
    assert time.perf_counter() - start < 2


def put(name: str, value: Tensor | None) -> Callable[[dict[str, Tensor]], Any]:
    def change(tensors: dict[str, Tensor]) -> None:
        tensors.pop(name, None)
        if value is not None:
            tensors[name] = value

    return change


def with_value(name: str, value: float) -> Callable[[dict[str, Tensor]], Any]:
    def change(tensors: dict[str, Tensor]) -> None:
        tensors[name].view(-1)[-1] = value

    return change


TENSORS: dict[str, tuple[Callable[[dict[str, Tensor]], Any], str]] = {
    "missing weight": (put(UP, None), f"missing: ['{UP}']"),
    "missing threshold": (put(GATE, None), f"missing: ['{GATE}']"),
    "extra tensor": (put("no_mask_embed", torch.zeros(2)), "not expected: ['no_mask_embed']"),
    "extra threshold": (put("thresholds.keep", torch.tensor(0.5)), "not expected"),
    "other block": (lambda t: t.update({UP.replace("3", "4"): t.pop(UP)}), "not expected"),
    "wrong shape": (put(UP, torch.zeros(48, 96)), "expected torch.float32 (96, 48)"),
    "flat": (put(UP, torch.zeros(96 * 48)), "expected torch.float32 (96, 48)"),
    "threshold with a shape": (put(GATE, torch.tensor([5.0])), "expected torch.float64 ()"),
    "int8": (put(UP, torch.zeros(96, 48, dtype=torch.int8)), "expected torch.float32"),
    "bool": (put(NORM, torch.ones(96, dtype=torch.bool)), "expected torch.float32"),
    "complex": (put(NORM, torch.ones(96, dtype=torch.complex64)), "expected torch.float32"),
    "float8": (put(NORM, torch.ones(96).to(torch.float8_e5m2)), "expected torch.float32"),
    "double beyond float": (put(NORM, torch.full((96,), 1e300, dtype=torch.float64)), "expected torch.float32"),
    "integer threshold": (put(GATE, torch.tensor(5)), "expected torch.float64"),
    "nan weight": (with_value(UP, math.nan), f"{UP} has values that are not finite"),
    "inf weight": (with_value(NORM, math.inf), f"{NORM} has values that are not finite"),
    "nan threshold": (with_value(GATE, math.nan), f"{GATE} has values that are not finite"),
    "inf threshold": (with_value(MASS, -math.inf), f"{MASS} has values that are not finite"),
    "gate differs": (with_value(GATE, 4.0), "score_gate differs"),
    "mass differs": (with_value(MASS, 0.70001), "saliency_mass differs"),
}  # fmt: skip


@pytest.mark.parametrize("damage", TENSORS, ids=str)
def test_unexpected_tensors_are_refused(damage: str, folder: Path, stock: Driver) -> None:
    change, words = TENSORS[damage]
    edit_tensors(folder, change)
    refused(folder, stock, words=words)


@pytest.mark.parametrize(
    ("dtype", "shape", "size"), [("F4", [2], 1), ("F6_E2M3", [4], 3), ("F8_E8M0", [1], 1), ("X9", [1], 1)]
)
def test_number_formats_of_the_future_are_refused(
    dtype: str, shape: list[int], size: int, folder: Path, stock: Driver
) -> None:
    names = [
        PREFIX + f"{part}.{leaf}" for part in ("norm", "down_project", "up_project") for leaf in ("weight", "bias")
    ]
    entries = {
        name: {"dtype": dtype, "shape": shape, "data_offsets": [n * size, (n + 1) * size]}
        for n, name in enumerate([*names, GATE, MASS])
    }
    (folder / WEIGHTS).write_bytes(header(entries, b"\1" * size * 8))
    refused(folder, stock, words=WEIGHTS)


def test_half_precision_weights_are_read(folder: Path) -> None:
    from surgery.adapters import read_adapter

    edit_tensors(folder, lambda tensors: tensors.update({UP: tensors[UP].bfloat16()}))
    assert read_adapter(folder).tensors["up_project.weight"].dtype == torch.float32


# ------------------------------------------------------------------------------------------------ configuration


def setting(**values: Any) -> Callable[[dict[str, Any]], Any]:
    return lambda config: config.update(values)


def threshold(**values: Any) -> Callable[[dict[str, Any]], Any]:
    return lambda config: config["thresholds"].update(values)


CONFIGS: dict[str, tuple[Callable[[dict[str, Any]], Any], str]] = {
    "a list": (lambda config: [config], "schema_version is None"),
    "a number": (lambda config: 3, "schema_version is None"),
    "newer schema": (setting(schema_version=3), "schema_version is 3, written by a newer surgery"),
    "schema 0": (setting(schema_version=0), "schema_version is 0; this version of surgery reads 1 to 2"),
    "schema as text": (setting(schema_version="1"), "schema_version is '1'"),
    "schema as a boolean": (setting(schema_version=True), "schema_version is True"),
    "schema as a float": (setting(schema_version=1.0), "schema_version is 1.0"),
    "no schema": (lambda config: config.pop("schema_version") and None, "schema_version is None"),
    "unknown key": (setting(chanels=96), "chanels"),
    "unknown key of the base": (lambda config: config["base_model"].update(sha="x"), "base_model.sha"),
    "unknown shortcut": (setting(shortcut="conv"), "shortcut: Input should be 'bottleneck'"),
    "other library": (setting(library="peft"), "library"),
    "channels as text": (setting(channels="96"), "channels"),
    "channels as a boolean": (setting(window=True), "window"),
    "fractional block": (setting(entry_block=3.0), "entry_block"),
    "negative block": (setting(entry_block=-1), "entry_block"),
    "no window": (setting(window=0), "window"),
    "absurd width": (setting(channels=10**9), "channels"),
    "absurd width, wide shortcut": (setting(channels=8193, shortcut="ffn"), "channels"),
    "no fingerprint": (lambda config: config["base_model"].pop("fingerprint") and None, "fingerprint"),
    "fingerprint that is a number": (lambda config: config["base_model"].update(fingerprint=3), "fingerprint"),
    "nan threshold": (threshold(score_gate=math.nan), "score_gate"),
    "inf threshold": (threshold(score_gate=math.inf), "score_gate"),
    "threshold as text": (threshold(score_gate="5.0"), "score_gate"),
    "threshold as a boolean": (threshold(saliency_mass=True), "saliency_mass"),
    "threshold missing": (lambda config: config["thresholds"].pop("score_gate") and None, "score_gate"),
    "threshold unknown": (threshold(keep=0.5), "keep"),
    "threshold differs": (threshold(score_gate=4.0), "score_gate differs"),
    "thresholds as a list": (setting(thresholds=[0.7, 5.0]), "thresholds"),
}


@pytest.mark.parametrize("damage", CONFIGS, ids=str)
def test_unexpected_configuration_is_refused(damage: str, folder: Path, stock: Driver) -> None:
    change, words = CONFIGS[damage]
    edit_config(folder, change)
    refused(folder, stock, words=words)


@pytest.mark.parametrize(
    "text",
    [b"", b"{", b"\xff\xfe", b"[" * 200_000, b'{"a":' * 100_000, b"null", b"9" * 5000, b"NaN", b"schema_version: 1"],
    ids=lambda text: repr(text[:8]),
)
def test_what_is_no_json_object_is_refused(text: bytes, folder: Path, stock: Driver, sparse: Driver) -> None:
    (folder / CONFIG).write_bytes(text)
    refused(folder, stock, sparse, words=CONFIG)


# ------------------------------------------------------------------------------------------------ recipe


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", RECIPE),
        ("schema: 1", "metadata: missing"),
        ("!!python/object/apply:os.system ['exit 1']", "not valid YAML"),
        ("&a [*a]", "alias"),
        (Recipe.load("memory-only").to_yaml(), "must have sparse_window_routing"),
        (Recipe.load("balanced", ["routing.score_gate=4"]).to_yaml(), "score_gate differs"),
        (Recipe.load("balanced", ["routing.saliency_mass=0.71"]).to_yaml(), "saliency_mass differs"),
    ],
)
def test_a_recipe_that_does_not_fit_is_refused(text: str, words: str, folder: Path, stock: Driver) -> None:
    (folder / RECIPE).write_text(text)
    refused(folder, stock, words=words)


def test_a_recipe_with_another_shortcut_than_the_weights_is_refused(folder: Path, stock: Driver) -> None:
    (folder / RECIPE).write_text(Recipe.load("balanced", ["routing.shortcut.type=ffn"]).to_yaml())
    refused(folder, stock, words="'bottleneck'", kind=AdapterMismatchError)


def test_a_refusal_by_recipe_name_leaves_the_earlier_surgery(folder: Path, sparse: Driver) -> None:
    with untouched(sparse.model), pytest.raises(surgery.RecipeError):
        surgery.load_adapter(sparse.model, folder, recipe="balancd")
    assert surgery.status(sparse.model).recipe == Recipe.load("fast")

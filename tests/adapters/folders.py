"""Helpers: a fitted small model, its adapter folder, damage done to it, and proof that a model was left alone."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

import surgery
from tests.hosts.drive import UNPADDED, Driver, make
from tests.hosts.routes import router_of

CONFIG, WEIGHTS, RECIPE, CARD = "adapter_config.json", "adapter_model.safetensors", "recipe.yaml", "README.md"
FILES = {CONFIG, WEIGHTS, RECIPE, CARD}
PREFIX = "image_encoder.trunk.blocks.3.shortcut."


def fitted(host: str, recipe: str | surgery.Recipe = "balanced", windows: tuple[int, ...] = UNPADDED) -> Driver:
    """A small model under surgery whose shortcut does something, the same in both hosts."""
    driver = make(host, windows)
    surgery.sparsify(driver.model, recipe)
    generator = torch.Generator().manual_seed(8)
    with torch.no_grad():
        for _, parameter in sorted(router_of(driver.model).shortcut.named_parameters()):
            parameter.add_(torch.randn(parameter.shape, generator=generator) * 0.1)
    return driver


def content(folder: Path) -> dict[str, bytes]:
    """Every file of a folder, by name."""
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def edit_config(folder: Path, change: Callable[[dict[str, Any]], Any]) -> None:
    """Change the configuration in place; what `change` returns, if anything, replaces it."""
    data = json.loads((folder / CONFIG).read_text())
    result = change(data)
    (folder / CONFIG).write_text(json.dumps(data if result is None else result))


def edit_tensors(folder: Path, change: Callable[[dict[str, Tensor]], Any]) -> None:
    """Change the tensors in place and write a well-formed safetensors file."""
    tensors = {name: value.clone() for name, value in load_file(folder / WEIGHTS).items()}
    change(tensors)
    save_file(tensors, folder / WEIGHTS)


@contextmanager
def untouched(model: Any) -> Iterator[None]:
    """The model is the same before and after: classes, attributes, keys, bytes, hooks and status."""

    def look() -> tuple[Any, ...]:
        modules = list(model.modules())
        hooks = [len(module._forward_hooks) + len(module._forward_pre_hooks) for module in modules]
        return (
            [type(module) for module in modules],
            [set(vars(module)) for module in modules],
            hooks,
            surgery.status(model),
        )

    before, tensors = look(), {key: value.clone() for key, value in model.state_dict().items()}
    identity = {key: value.data_ptr() for key, value in model.state_dict().items()}
    yield
    after = model.state_dict()
    assert look() == before
    assert list(after) == list(tensors)
    assert all(torch.equal(after[key], value) for key, value in tensors.items())
    assert {key: value.data_ptr() for key, value in after.items()} == identity, "the very same tensors"

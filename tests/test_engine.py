"""Questions about what is no model are errors, and leave nothing behind."""

from __future__ import annotations

from typing import Any

import pytest
import torch

import surgery
from surgery import UnsupportedModelError


def enter(thing: Any) -> None:
    with surgery.disabled(thing):
        pass


@pytest.mark.parametrize("thing", [None, "facebook/sam2.1-hiera-tiny", {}, torch.nn.Linear], ids=repr)
@pytest.mark.parametrize("call", ["status", "desparsify", "disabled", "sparsify"])
def test_what_is_no_model_is_refused(call: str, thing: Any) -> None:
    with pytest.raises(UnsupportedModelError, match=rf"expected a video model.*, got {type(thing).__name__}"):
        enter(thing) if call == "disabled" else getattr(surgery, call)(thing)


def test_a_stock_module_is_stock() -> None:
    model = torch.nn.Linear(2, 2)
    assert not surgery.status(model).sparse and surgery.desparsify(model) is model

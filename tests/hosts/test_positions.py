"""Position codes of the encoder are made once, on either host, and are those the host makes."""

from __future__ import annotations

import copy
from collections import Counter
from typing import Any

import pytest
import torch
from torch import Tensor

import surgery
from surgery.core.patching import host_class
from surgery.engine import require_surgery
from surgery.hosts import view_of
from surgery.operations.exact_savings import MOST_CODES, BoundSavings, KeptCode
from tests.hosts.drive import STEADY, TWINS, Driver, make, video
from tests.hosts.sessions import begun, copied, interleaved, same


@pytest.fixture(params=TWINS)
def host(request: pytest.FixtureRequest) -> str:
    return request.param


def parts(driver: Driver) -> tuple[Any, Any]:
    """The trunk, and the module that makes the neck's codes."""
    trunk, neck = view_of(driver.model).modules("code")
    return trunk, neck


def kept_codes(model: Any) -> dict[Any, Tensor]:
    """Those of the neck."""
    savings = require_surgery(model).find(BoundSavings)
    assert savings is not None
    return savings._codes


def counting(original: Any, kind: type, name: str, counts: Counter[str]) -> Any:
    """kind: with the class of ours in front; stock models and other parts are not counted."""

    def run(self: Any, *args: Any) -> Tensor:
        if isinstance(self, kind):
            counts[name] += 1
        out: Tensor = original(self, *args)
        return out

    return run


@pytest.fixture
def made(host: str, monkeypatch: pytest.MonkeyPatch) -> Counter[str]:
    """How often the host made a trunk code, and a sine code."""
    driver, counts = make(host), Counter[str]()
    surgery.sparsify(driver.model, "exact")
    methods = {"trunk": "_get_pos_embed", "neck": "_pe" if host == "sam2" else "forward"}
    for module, (name, method) in zip(parts(driver), methods.items(), strict=True):
        own = host_class(module)
        monkeypatch.setattr(own, method, counting(getattr(own, method), type(module), name, counts))
    return counts


@pytest.mark.parametrize("recipe", ["exact", STEADY, "memory-only"])
def test_codes_are_made_once_for_a_video(host: str, made: Counter[str], recipe: Any) -> None:
    driver = make(host)
    stock = driver.track(video(5))
    surgery.sparsify(driver.model, recipe)
    masks = driver.track(video(5))
    levels = 4 if host == "transformers" else 0
    assert made == {"trunk": 1, **({"neck": levels} if levels else {})}, "stock sam2 has its sine codes already"
    if recipe == "exact":
        assert same(masks, stock)
    driver.track(video(5))
    assert made["trunk"] == 2, "a session keeps its own"
    assert made["neck"] == levels
    surgery.desparsify(driver.model)
    assert same(driver.track(video(5)), stock)


def test_changed_weights_make_a_new_code(host: str, made: Counter[str]) -> None:
    driver = make(host)
    surgery.sparsify(driver.model, "exact")
    trunk, _ = parts(driver)
    session, run = begun(driver, video(7), 3, {1: (70, 120)})
    assert made["trunk"] == 1
    with torch.no_grad():
        trunk.pos_embed.add_(1.0)
    next(run)
    assert made["trunk"] == 2
    trunk.pos_embed_window = torch.nn.Parameter(trunk.pos_embed_window.detach() + 1.0)
    next(run)
    assert made["trunk"] == 3
    code = driver.state(session).states[KeptCode].code
    with torch.no_grad():
        assert torch.equal(code, trunk._get_pos_embed(code.shape[1:3]))
    next(run)
    assert made["trunk"] == 4, "only the call outside of the video made another"
    for _ in range(2):  # the second copy may come to lie where the first weights lay
        trunk.pos_embed.data = trunk.pos_embed.data + 1.0
    next(run)
    assert made["trunk"] == 5


def test_precision_and_gradients_have_codes_of_their_own(host: str) -> None:
    driver = make(host)
    surgery.sparsify(driver.model, "exact")
    session, run = begun(driver, video(4), 1, {1: (70, 120)})
    before = driver.state(session).states[KeptCode].code
    with torch.autocast("cpu", torch.bfloat16):
        next(run)
        assert driver.state(session).states[KeptCode].code is not before
    trunk, _ = parts(driver)
    with torch.enable_grad():
        assert trunk._get_pos_embed((64, 64)).requires_grad


def test_interleaved_and_copied_sessions(host: str) -> None:
    driver = make(host)
    surgery.sparsify(driver.model, STEADY)
    interleaved(driver, [video(5, seed) for seed in (0, 1)])
    copied(driver)


def test_copies_of_a_model_hold_no_codes() -> None:
    driver = make("transformers")
    surgery.sparsify(driver.model, STEADY)
    driver.track(video(3))
    assert 0 < len(kept_codes(driver.model)) <= MOST_CODES
    assert kept_codes(copy.deepcopy(driver.model)) == {}


def test_the_number_of_kept_codes_is_bounded() -> None:
    driver = make("transformers")
    surgery.sparsify(driver.model, "exact")
    _, code = parts(driver)
    stock = make("transformers").model.vision_encoder.neck.position_encoding
    for side in range(2, 30):
        shape = torch.Size((1, 8, side, side))
        found = code(shape, torch.device("cpu"), torch.float32)
        assert torch.equal(found, stock(shape, torch.device("cpu"), torch.float32))
    assert len(kept_codes(driver.model)) == MOST_CODES


def test_stock_sam2_codes_are_views_of_its_own_cache() -> None:
    driver = make("sam2")
    surgery.sparsify(driver.model, "exact")
    driver.track(video(2))
    _, neck = parts(driver)
    code = neck(torch.zeros(1, 8, 16, 16))
    assert code.data_ptr() == neck.cache[16, 16].data_ptr()
    with surgery.disabled(driver.model):
        other = neck(torch.zeros(1, 8, 16, 16))
        assert torch.equal(other, code)
        assert other.data_ptr() != code.data_ptr()

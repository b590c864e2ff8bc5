"""Position codes of the encoder are made once, on either host, and are those the host makes."""

from __future__ import annotations

import copy
from collections import Counter
from typing import Any

import pytest
import torch
from torch import Tensor

import surgery
from surgery.engine import require_view
from surgery.graft import host_class
from surgery.hosts import view_of
from surgery.hosts.positions import MOST_CODES, NeckCodes, Trunk
from tests.hosts.drive import STEADY, Driver, make, video
from tests.hosts.sessions import begun, copied, interleaved, same


@pytest.fixture(params=("sam2", "transformers"))
def host(request: pytest.FixtureRequest) -> str:
    return request.param


def part(driver: Driver, kind: type) -> Any:
    (found,) = (each for each in view_of(driver.model).image_encoder().modules() if isinstance(each, kind))
    return found


def counting(original: Any, kind: type, counts: Counter[str]) -> Any:
    def run(self: Any, *args: Any) -> Tensor:
        if isinstance(self, kind):
            counts[kind.__name__] += 1
        out: Tensor = original(self, *args)
        return out

    return run


@pytest.fixture
def made(host: str, monkeypatch: pytest.MonkeyPatch) -> Counter[str]:
    """How often the host made a trunk code, and a sine code."""
    driver, counts = make(host), Counter[str]()
    surgery.sparsify(driver.model, "exact")
    for kind, name in ((Trunk, "_get_pos_embed"), (NeckCodes, "_pe" if host == "sam2" else "forward")):
        own = host_class(part(driver, kind))
        monkeypatch.setattr(own, name, counting(getattr(own, name), kind, counts))
    return counts


@pytest.mark.parametrize("recipe", ["exact", STEADY, "memory-only"])
def test_codes_are_made_once_for_a_video(host: str, made: Counter[str], recipe: Any) -> None:
    driver = make(host)
    stock = driver.track(video(5))
    surgery.sparsify(driver.model, recipe)
    masks = driver.track(video(5))
    levels = 4 if host == "transformers" else 0
    assert made == {"Trunk": 1, **({"NeckCodes": levels} if levels else {})}, "stock sam2 has its sine codes already"
    if recipe == "exact":
        assert same(masks, stock)
    driver.track(video(5))
    assert made["Trunk"] == 2, "a session keeps its own"
    assert made["NeckCodes"] == levels
    surgery.desparsify(driver.model)
    assert same(driver.track(video(5)), stock)


def test_changed_weights_make_a_new_code(host: str, made: Counter[str]) -> None:
    driver = make(host)
    surgery.sparsify(driver.model, "exact")
    trunk = part(driver, Trunk)
    session, run = begun(driver, video(7), 3, {1: (70, 120)})
    assert made["Trunk"] == 1
    with torch.no_grad():
        trunk.pos_embed.add_(1.0)
    next(run)
    assert made["Trunk"] == 2
    trunk.pos_embed_window = torch.nn.Parameter(trunk.pos_embed_window.detach() + 1.0)
    next(run)
    assert made["Trunk"] == 3
    code = driver.state(session).trunk_code.code
    with torch.no_grad():
        assert torch.equal(code, trunk._get_pos_embed(code.shape[1:3]))
    next(run)
    assert made["Trunk"] == 4, "only the call outside of the video made another"
    for _ in range(2):  # the second copy may come to lie where the first weights lay
        trunk.pos_embed.data = trunk.pos_embed.data + 1.0
    next(run)
    assert made["Trunk"] == 5


def test_precision_and_gradients_have_codes_of_their_own(host: str) -> None:
    driver = make(host)
    surgery.sparsify(driver.model, "exact")
    session, run = begun(driver, video(4), 1, {1: (70, 120)})
    before = driver.state(session).trunk_code
    with torch.autocast("cpu", torch.bfloat16):
        next(run)
        assert driver.state(session).trunk_code is not before
    trunk = part(driver, Trunk)
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
    binding = require_view(driver.model).binding
    assert 0 < len(binding.codes) <= MOST_CODES
    assert require_view(copy.deepcopy(driver.model)).binding.codes == {}


def test_the_number_of_kept_codes_is_bounded() -> None:
    driver = make("transformers")
    surgery.sparsify(driver.model, "exact")
    code = part(driver, NeckCodes)
    stock = make("transformers").model.vision_encoder.neck.position_encoding
    for side in range(2, 30):
        shape = torch.Size((1, 8, side, side))
        found = code(shape, torch.device("cpu"), torch.float32)
        assert torch.equal(found, stock(shape, torch.device("cpu"), torch.float32))
    assert len(require_view(driver.model).binding.codes) == MOST_CODES


def test_stock_sam2_codes_are_views_of_its_own_cache() -> None:
    driver = make("sam2")
    surgery.sparsify(driver.model, "exact")
    driver.track(video(2))
    neck = part(driver, NeckCodes)
    code = neck(torch.zeros(1, 8, 16, 16))
    assert code.data_ptr() == neck.cache[16, 16].data_ptr()
    with surgery.disabled(driver.model):
        other = neck(torch.zeros(1, 8, 16, 16))
        assert torch.equal(other, code)
        assert other.data_ptr() != code.data_ptr()

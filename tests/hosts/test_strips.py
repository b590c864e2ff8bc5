"""Large maps strip by strip, on either host: what comes out is what the whole map gives."""

from __future__ import annotations

from collections import Counter
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

import surgery
from surgery.core.host import BlockInfo
from surgery.core.seams import BlockCall
from surgery.engine import require_surgery
from surgery.hosts import view_of
from surgery.operations import exact_savings
from surgery.operations.exact_savings import BoundSavings, before_global_stage, strips
from surgery.operations.exact_savings.strips import block_in_strips, in_strips
from surgery.recipe import Recipe
from tests.hosts.drive import PADDED, STEADY, UNPADDED, Driver, make, video
from tests.hosts.sessions import close, same
from tests.hosts.test_tiles import TILES

RECIPES = {"stage3": STEADY, "tiles": TILES, "early": TILES.with_overrides(["routing.early=0.5"])}


@pytest.fixture(params=("sam2", "transformers"))
def host(request: pytest.FixtureRequest) -> str:
    return request.param


def early_blocks(driver: Driver) -> list[nn.Module]:
    host = view_of(driver.model)
    return [host.blocks()[number] for number in before_global_stage(host)]


def layers_of(driver: Driver) -> list[Any]:
    return list(driver.model.memory_attention.layers)


def refuse_strips(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(strips, "STRIP_BYTES", 1)
    for module in (strips, exact_savings):
        monkeypatch.setattr(module, "in_strips", lambda *_: pytest.fail("this must run whole"))


def runs_of(driver: Driver, clip: Tensor) -> tuple[list[Tensor], Counter[str]]:
    """Masks, and how often an early attention and a memory feed-forward ran."""
    runs: Counter[str] = Counter()
    parts: dict[str, list[Any]] = {
        "attention": [block.attn for block in early_blocks(driver)],
        "feed-forward": [layer.linear1 for layer in layers_of(driver)],
    }
    hooks = [
        module.register_forward_hook(lambda *_, name=name: runs.update([name]))
        for name, modules in parts.items()
        for module in modules
    ]
    masks = driver.track(clip)
    for hook in hooks:
        hook.remove()
    return masks, runs


@pytest.mark.parametrize("windows", [UNPADDED, PADDED], ids=["unpadded", "padded"])
@pytest.mark.parametrize("recipe", RECIPES.values(), ids=RECIPES)
def test_strips_give_what_the_whole_map_gives(
    host: str, recipe: Recipe, windows: tuple[int, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    driver = make(host, windows)
    surgery.sparsify(driver.model, recipe)
    whole, once = runs_of(driver, video(4))
    layers, blocks = len(layers_of(driver)), len(early_blocks(driver))
    assert once == {"attention": 4 * blocks, "feed-forward": 3 * layers}, "small maps go whole"
    monkeypatch.setattr(strips, "STRIP_BYTES", 20_000)
    found, often = runs_of(driver, video(4))
    assert often["attention"] >= 4 * once["attention"]
    # The layer of transformers has no seam before its feed-forward.
    assert often["feed-forward"] >= once["feed-forward"] * (2 if host == "sam2" else 1)
    close(found, whole, 1e-4)


def test_feed_forward_in_strips_without_window_routing(monkeypatch: pytest.MonkeyPatch) -> None:
    driver = make("sam2")
    surgery.sparsify(driver.model, "memory-only")
    whole, once = runs_of(driver, video(4))
    monkeypatch.setattr(strips, "STRIP_BYTES", 20_000)
    found, often = runs_of(driver, video(4))
    assert often["attention"] == once["attention"] > 0, "the encoder stays the stock model's"
    assert often["feed-forward"] >= 2 * once["feed-forward"]
    close(found, whole, 1e-4)


def test_no_strips_where_every_bit_counts(host: str, monkeypatch: pytest.MonkeyPatch) -> None:
    driver = make(host)
    stock = driver.track(video(3))
    refuse_strips(monkeypatch)
    surgery.sparsify(driver.model, "exact")
    assert same(driver.track(video(3)), stock)
    surgery.sparsify(driver.model, STEADY)
    with surgery.disabled(driver.model):
        assert same(driver.track(video(3)), stock)


def test_a_model_in_training_mode_keeps_its_dropout(monkeypatch: pytest.MonkeyPatch) -> None:
    driver = make("sam2")
    surgery.sparsify(driver.model, STEADY)
    driver.model.memory_attention.train()
    monkeypatch.setattr(strips, "STRIP_BYTES", 1)
    runs = runs_of(driver, video(3))[1]
    assert runs["feed-forward"] == 2 * len(layers_of(driver))
    driver.model.eval()
    assert runs_of(driver, video(3))[1]["feed-forward"] > 2 * len(layers_of(driver))


@pytest.mark.parametrize(("device", "strip_count"), [("cpu", 8), ("meta", 1)])
def test_strips_are_for_cpus(device: str, strip_count: int, monkeypatch: pytest.MonkeyPatch) -> None:
    driver = make("sam2")
    surgery.sparsify(driver.model, STEADY)
    monkeypatch.setattr(strips, "STRIP_BYTES", 1)
    savings = require_surgery(driver.model).find(BoundSavings)
    assert savings is not None
    runs: dict[Any, Any] = {(patch.seam, patch.index): patch.run for patch in savings.patches()}
    seen: list[Tensor] = []

    def run(tokens: Tensor) -> Tensor:
        seen.append(tokens)
        return tokens

    runs["strip", None](None, 64, torch.zeros(1, 8, 4, device=device), run, None)
    assert len(seen) == strip_count
    window = view_of(driver.model).block_info(0).window
    block: Any = BlockCall(None, 0, {})  # type: ignore[arg-type]
    runs["block", 0](None, block, torch.zeros(1, 8 * window, window, 4, device=device), run)
    assert len(seen) == 2 * strip_count


def test_outside_of_a_video_blocks_run_as_stock(host: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Records of attentions would otherwise hold strips."""
    driver = make(host)
    surgery.sparsify(driver.model, STEADY)
    refuse_strips(monkeypatch)
    with torch.no_grad():
        view_of(driver.model).image_encoder()(video(1))


@pytest.mark.parametrize("recipe", RECIPES.values(), ids=RECIPES)
def test_half_precision_goes_in_strips_too(host: str, recipe: Recipe, monkeypatch: pytest.MonkeyPatch) -> None:
    driver = make(host)
    surgery.sparsify(driver.model, recipe)
    with torch.autocast("cpu", torch.bfloat16):
        whole = driver.track(video(3))
        monkeypatch.setattr(strips, "STRIP_BYTES", 20_000)
        close(driver.track(video(3)), whole, 0.5)


@settings(max_examples=60, deadline=None)
@given(
    count=st.integers(1, 5), windows=st.integers(1, 4), ragged=st.integers(0, 3), width=st.integers(1, 9),
    window=st.sampled_from([0, 1, 2, 3, 4]), pools=st.booleans(), limit=st.integers(1, 4000),
)  # fmt: skip
def test_every_strip_holds_whole_windows(
    count: int, windows: int, ragged: int, width: int, window: int, pools: bool, limit: int
) -> None:
    """A block that sums over each of its windows, pads the last ones and pools like Hiera."""
    info = BlockInfo(index=0, dim=2, heads=1, window=window, pools=pools)
    height = max(1, (window or 4) * windows - min(ragged, (window or 1) - 1))
    feature_map = torch.randn(count, height, width, 2, dtype=torch.float64)

    def run(maps: Tensor) -> Tensor:
        side = window or max(maps.shape[1:3])
        rows, cols = -(-maps.shape[1] // side), -(-maps.shape[2] // side)
        padded = torch.zeros(maps.shape[0], rows * side, cols * side, 2, dtype=maps.dtype)
        padded[:, : maps.shape[1], : maps.shape[2]] = maps
        split = padded.reshape(maps.shape[0], rows, side, cols, side, 2)
        mixed = (split + split.sum((2, 4), keepdim=True)).reshape(padded.shape)[:, : maps.shape[1], : maps.shape[2]]
        return mixed[:, ::2, ::2] if pools else mixed

    before = strips.STRIP_BYTES
    strips.STRIP_BYTES = limit
    try:
        found = block_in_strips(run, feature_map, info)
    finally:
        strips.STRIP_BYTES = before
    torch.testing.assert_close(found, run(feature_map))


def test_strips_are_no_larger_than_asked() -> None:
    seen: list[int] = []
    tokens = torch.zeros(1, 5000, 4)

    def run(strip: Tensor) -> Tensor:
        seen.append(strip.shape[1])
        return strip * 2

    assert in_strips(run, tokens, 1, 1, 2048).shape == tokens.shape
    assert seen == [1024] * 4 + [904], "8 MiB of 2048 values of 4 bytes are 1024 rows"

"""Tiles with extra early pieces and a motion margin, on either host."""

from __future__ import annotations

import copy
import pickle

import pytest
import torch
from torch._dynamo.testing import CompileCounter

import surgery
from surgery.operations.window_routing.policy import WindowState
from surgery.operations.window_routing.shortcut import Shortcut
from surgery.recipe import Recipe
from tests.hosts.drive import PADDED, UNPADDED, Driver, make, video
from tests.hosts.routes import encoder, encoder_gflop, force, levels_of, router_of
from tests.hosts.sessions import close, gather, interleaved, same
from tests.hosts.test_compile import graphs_compiled
from tests.hosts.test_tiles import STAGE3, TILES, dense_memory, routed

EARLY = TILES.with_overrides(["routing.early=0.5"])
both_paddings = pytest.mark.parametrize("windows", [UNPADDED, PADDED], ids=["unpadded", "padded"])


@pytest.fixture(params=("sam2", "transformers"))
def host(request: pytest.FixtureRequest) -> str:
    return request.param


def shortcut_of(driver: Driver) -> Shortcut:
    return router_of(driver.model).shortcut


def cut(host: str, recipe: Recipe, windows: tuple[int, ...] = UNPADDED) -> Driver:
    """A small model whose shortcut does something, the same for every recipe."""
    driver = make(host, windows)
    surgery.sparsify(driver.model, recipe)
    with torch.no_grad():
        for number, (_, parameter) in enumerate(sorted(shortcut_of(driver).named_parameters())):
            generator = torch.Generator().manual_seed(number if parameter.ndim else 0)
            parameter.add_(torch.randn(parameter.shape, generator=generator) * 0.05)
    return driver


def same_shortcut(driver: Driver, other: Driver) -> None:
    own = shortcut_of(other).state_dict()
    shortcut_of(driver).load_state_dict({name: own[name] for name in shortcut_of(driver).state_dict()})


@both_paddings
@torch.no_grad()
def test_with_all_pieces_early_the_first_stages_are_stock(host: str, windows: tuple[int, ...]) -> None:
    """The whole map then reaches the span, as with stage3."""
    driver = cut(host, TILES.with_overrides(["routing.early=1.0"]), windows)
    router, (before, now) = router_of(driver.model), (video(2)[:1], video(2, seed=4)[1:])
    memory = dense_memory(driver, before)
    memory.branch = torch.zeros_like(memory.span.reused)
    assert router.tiles is not None
    urgency = torch.zeros(router.tiles.count)
    route = router.route(WindowState(tiles=memory), [1], now.device, urgency)
    for found, stock in zip(levels_of(driver.model, now, route)[:2], levels_of(driver.model, now)[:2], strict=True):
        assert torch.equal(found, stock)


def test_extra_pieces_change_what_skipped_windows_return(host: str) -> None:
    few, more = cut(host, TILES), cut(host, EARLY)
    same_shortcut(few, more)
    for driver in (few, more):
        force(driver.model, [0])
    assert not same(few.track(video(6)), more.track(video(6)))


@both_paddings
@torch.no_grad()
def test_on_a_still_picture_all_is_as_it_was(host: str, windows: tuple[int, ...]) -> None:
    driver = cut(host, TILES, windows)
    pixels = video(2)[:1]
    memory, last = dense_memory(driver, pixels), levels_of(driver.model, pixels)
    for frame, limit in ((pixels, 1e-4), (video(2, seed=4)[1:], None)):
        found = routed(driver, frame, [1], memory)
        for level in (0, 1):
            moved = float((found[level] - last[level]).abs().max())
            assert moved < limit if limit is not None else moved > 0.1


@both_paddings
def test_every_window_equals_stock_with_extra_pieces(host: str, windows: tuple[int, ...]) -> None:
    driver = make(host, windows)
    stock = driver.track(video(5))
    surgery.sparsify(driver.model, EARLY)
    force(driver.model, range(router_of(driver.model).grid.count))
    close(driver.track(video(5)), stock, 5e-5)


def test_sessions_apart_and_copies_alike(host: str) -> None:
    driver = cut(host, EARLY.with_overrides(["routing.motion=2.0", "routing.budget=0.25", "routing.fill=true"]))
    clips = [video(7, seed) for seed in (1, 2)]
    sessions = interleaved(driver, clips)
    assert len(gather(driver, copy.deepcopy(sessions[0]), start=6)) == 1
    expected = driver.track(clips[0])
    for twin in (copy.deepcopy(driver.model), pickle.loads(pickle.dumps(driver.model))):
        assert same(type(driver)(twin).track(clips[0]), expected)
    surgery.desparsify(driver.model)
    assert same(driver.track(clips[0]), make(host).track(clips[0]))


@both_paddings
def test_compiled_encoder_matches_and_does_not_recompile(host: str, windows: tuple[int, ...]) -> None:
    # As many pieces on every frame as long as the windows' own fit.
    recipe = EARLY.with_overrides(["routing.early=0.8"])
    eager, compiled = cut(host, recipe, windows), cut(host, recipe, windows)
    torch._dynamo.reset()
    counter = CompileCounter()
    encoder(compiled.model).compile(backend=counter)
    schedule = [[1], [0, 1], [2, 5, 7], [8], [0, 3, 4], [2, 8], [3], [5], [0, 8], [0, 1, 2, 4]]
    graphs = graphs_compiled(eager, compiled, video(12), schedule, counter)
    assert graphs[-1] <= 6, graphs
    assert graphs[-1] == graphs[7], f"graphs grew while only window counts changed: {graphs}"


def test_operations_grow_with_the_early_share(host: str) -> None:
    few, half, most = (
        encoder_gflop(cut(host, TILES.with_overrides([f"routing.early={share}"])).model, [0])
        for share in (0.0, 0.5, 0.9)
    )
    assert few < half < most


def test_a_widened_frame_has_as_many_extra_pieces(host: str) -> None:
    """More windows than the budget do not take the pieces of the objects' borders."""
    free, within = (cut(host, EARLY.with_overrides([f"routing.budget={budget}"])).model for budget in (1.0, 1 / 3))
    within_budget, widened = [0, 1, 2], [0, 1, 2, 3, 4, 5]
    assert encoder_gflop(free, within_budget) == encoder_gflop(within, within_budget)
    assert encoder_gflop(free, widened) < encoder_gflop(within, widened)


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("routing.early=0.5", "early: 0.5 needs span: tiles"),
        ("routing.motion=-1", "routing.motion|motion"),
    ],
)
def test_fields_that_need_tiles(override: str, message: str) -> None:
    with pytest.raises(surgery.RecipeError, match=message):
        STAGE3.with_overrides([override])


def test_early_works_token_by_token() -> None:
    with pytest.raises(
        surgery.RecipeError, match=r"early: 0.5 needs skipped\.shortcut\.type: bottleneck, ffn or identity"
    ):
        EARLY.with_overrides(["routing.shortcut.type=attention"])


def test_what_was_refused_leaves_running_videos_alone(host: str) -> None:
    """Windows of 5 do not nest: the refusal comes before anything of the first surgery is undone."""
    driver = make(host, (8, 4, 5, 2))
    surgery.sparsify(driver.model, "balanced")
    expected = driver.track(video(8))
    session = driver.session(video(8))
    driver.click(session, 0, {7: (70, 120)})
    run = driver.propagate(session)
    found = []
    for number in range(8):
        found += next(run)[1].values()
        if number == 4:
            with pytest.raises(surgery.UnsupportedModelError):
                surgery.sparsify(driver.model, TILES)
    assert same(found, expected)

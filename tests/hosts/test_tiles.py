"""Tile routing on either host: early blocks on pieces, memory of skipped tiles, the life of a video, refusals."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor
from torch._dynamo.testing import CompileCounter

import surgery
from surgery import ModelStateError, UnsupportedModelError, WeightsError
from surgery.core.cost import stock_gflop
from surgery.core.patching import is_patched
from surgery.engine import require_surgery
from surgery.hosts import view_of
from surgery.operations import SparseWindowRouting
from surgery.operations.window_routing.blocks import Stages12Block
from surgery.operations.window_routing.matching import compared
from surgery.operations.window_routing.policy import WindowState
from surgery.operations.window_routing.reuse import RunMemory
from surgery.operations.window_routing.tiles import TileMemory
from surgery.recipe import Recipe
from tests.hosts.drive import PADDED, UNPADDED, Driver, make, video
from tests.hosts.routes import blocks_that_run, encoder, encoder_gflop, force, levels_of, router_of
from tests.hosts.sessions import close, copied, gather, interleaved, models_copied, reset_forgets, same, undone
from tests.hosts.test_compile import graphs_compiled

HOSTS = ("sam2", "transformers")
TILES = Recipe(
    metadata={"name": "tiles", "description": "Tile routing alone."},
    operations=[
        SparseWindowRouting(span="tiles", temporal=True, rolling=1, score_gate=0.0, candidates="best", dilation=1)
    ],
)
STAGE3 = TILES.with_overrides(["routing.span=stage3"])
both_paddings = pytest.mark.parametrize("windows", [UNPADDED, PADDED], ids=["unpadded", "padded"])


@pytest.fixture(params=HOSTS)
def host(request: pytest.FixtureRequest) -> str:
    return request.param


def tiled(host: str, windows: tuple[int, ...] = UNPADDED, extra: list[str] | None = None) -> Driver:
    driver = make(host, windows)
    surgery.sparsify(driver.model, TILES.with_overrides(extra or []))
    return driver


def dense_memory(driver: Driver, pixels: Tensor) -> TileMemory:
    """What a dense frame leaves behind: the stage outputs, what they were made of, and what the exit block received."""
    received: list[Tensor] = []
    blocks = view_of(driver.model).blocks()
    ends = (blocks[0], blocks[router_of(driver.model).span.exit])
    hooks = [block.register_forward_pre_hook(lambda module, args: received.append(args[0])) for block in ends]
    levels = [level.permute(0, 2, 3, 1).contiguous() for level in levels_of(driver.model, pixels)[:2]]
    for hook in hooks:
        hook.remove()
    embedding, leaving = received
    below = [embedding, *levels]
    side = leaving.shape[1]
    keys = [compared(map_, map_.shape[1] // out.shape[1]) for map_, out in zip(below, levels, strict=False)]
    span = RunMemory(leaving.flatten(0, 2), compared(levels[-1], levels[-1].shape[1] // side))
    return TileMemory(span, tuple(RunMemory(out.flatten(0, 2), key) for out, key in zip(levels, keys, strict=True)))


def routed(driver: Driver, pixels: Tensor, windows: list[int], memory: TileMemory) -> list[Tensor]:
    """Stage outputs when `windows` are computed and all others return what is remembered."""
    router = router_of(driver.model)
    assert router.tiles is not None
    route = router.route(WindowState(tiles=memory), windows, pixels.device)
    return levels_of(driver.model, pixels, route)


# --- the early blocks


@both_paddings
@torch.no_grad()
def test_early_stages_of_computed_tiles_are_the_stock_ones_and_of_skipped_tiles_reused(
    host: str, windows: tuple[int, ...]
) -> None:
    """Stages 1 and 2 and the stage change see no other tile, so they are right to rounding in any company."""
    driver = tiled(host, windows)
    grid = router_of(driver.model).grid
    before, now = video(2)[:1], video(2, seed=4)[1:]
    memory, stock = dense_memory(driver, before), levels_of(driver.model, now)
    last = levels_of(driver.model, before)
    still = routed(driver, before, [0], memory)
    for level in (0, 1):
        close([still[level]], [last[level]], 2e-5)
    for chosen in ([0], [1, 2], [grid.count - 1], [0, grid.cols, grid.count - 1]):
        found = routed(driver, now, chosen, memory)
        inside = torch.zeros(grid.tokens)
        inside[torch.from_numpy(grid.token_ids(chosen))] = 1
        for level in (0, 1):
            scale = found[level].shape[-1] // grid.width
            mask = inside.reshape(grid.height, grid.width).repeat_interleave(scale, 0).repeat_interleave(scale, 1) > 0
            if (~mask).any():
                error, old = ((each[level] - stock[level])[0][:, ~mask].square().mean() for each in (found, last))
                assert 0 < error < old
            assert (found[level][0][:, mask] - stock[level][0][:, mask]).abs().max() < 2e-5
            assert (found[level][0][:, mask] - last[level][0][:, mask]).abs().max() > 0.1


@both_paddings
@torch.no_grad()
def test_every_tile_through_the_early_blocks_is_bit_equal(host: str, windows: tuple[int, ...]) -> None:
    """The same windows in the same order go through the same kernels."""
    driver = tiled(host, windows)
    grid = router_of(driver.model).grid
    before, now = video(2)[:1], video(2, seed=4)[1:]
    stock = levels_of(driver.model, now)
    found = routed(driver, now, list(range(grid.count)), dense_memory(driver, before))
    for level in (0, 1):
        assert torch.equal(found[level], stock[level])
    for level in (2, 3):
        assert (found[level] - stock[level]).abs().max() < 1e-4


@both_paddings
def test_every_window_through_the_routed_path_equals_stock(host: str, windows: tuple[int, ...]) -> None:
    driver = make(host, windows)
    stock = driver.track(video(5))
    surgery.sparsify(driver.model, TILES)
    force(driver.model, range(router_of(driver.model).grid.count))
    close(driver.track(video(5)), stock, 2e-5)
    assert surgery.status(driver.model).dense_frames == {"first frame or jump": 1}


@both_paddings
@pytest.mark.parametrize("objects", [1, 3])
def test_all_windows_are_bit_equal_to_stock(host: str, windows: tuple[int, ...], objects: int) -> None:
    driver = make(host, windows)
    stock = driver.track(video(9), objects)
    surgery.sparsify(driver.model, Recipe.load("exact", ["routing.span=tiles", "routing.temporal=true"]))
    assert same(driver.track(video(9), objects), stock)


# --- videos


def test_a_still_video_stays_as_it_was(host: str) -> None:
    """Skipped tiles keep their last output, which on equal frames is the right one."""
    driver = make(host)
    still = video(1).repeat(6, 1, 1, 1)
    stock = driver.track(still)
    errors = {}
    forgetful = STAGE3.with_overrides(["routing.temporal=false"])
    for name, recipe in {"tiles": TILES, "forgetful": forgetful}.items():
        surgery.sparsify(driver.model, recipe)
        force(driver.model, [5])
        masks = driver.track(still)
        errors[name] = max(float((a - b).abs().max()) for a, b in zip(masks, stock, strict=True))
    # The chosen window sees itself only in the global blocks, so it changes a little; skipped ones do not.
    assert errors["tiles"] < 0.2 * errors["forgetful"]


@pytest.mark.parametrize(("reverse", "objects"), [(False, 1), (True, 1), (False, 3)])
@both_paddings
def test_hosts_agree(reverse: bool, objects: int, windows: tuple[int, ...]) -> None:
    masks, kept = {}, {}
    for host in HOSTS:
        driver = tiled(host, windows)
        session = driver.session(video(12))
        first = 11 if reverse else 0
        driver.click(session, first, {7 + index: (40 + 70 * index, 110) for index in range(objects)})
        masks[host] = gather(driver, session, start=first, reverse=reverse)
        status = surgery.status(driver.model)
        kept[host] = (status.windows_kept, status.dense_frames)
    close(masks["sam2"], masks["transformers"], 1e-5)
    assert kept["sam2"] == kept["transformers"]
    assert kept["sam2"][0] < 1.0


def test_interleaved_videos_equal_each_alone(host: str) -> None:
    driver = tiled(host)
    interleaved(driver, [video(8, seed) for seed in (1, 2)])


def test_a_prompt_a_cut_and_the_first_frame_renew_every_tile(host: str) -> None:
    driver = tiled(host, extra=["routing.refresh.scene_cut=0.6"])
    clip = torch.cat([video(6, 1), video(6, 2)])
    session = driver.session(clip)
    driver.click(session, 0, {1: (40, 110)})
    fresh = []
    for frame, _ in driver.propagate(session, count=9):
        state = driver.state(session)
        record = state.stats.last
        dense = frame == 0 or record.dense is not None
        stock = levels_of(driver.model, clip[frame : frame + 1])
        same_map = torch.equal(state.states[WindowState].tiles.levels[0].reused, stock[0][0].flatten(1).T)
        assert same_map == dense, frame
        fresh += [frame] if dense else []
    assert fresh == [0, 1, 6]
    driver.click(session, 8, {2: (200, 200)})
    now = levels_of(driver.model, clip[8:9])
    assert torch.equal(driver.state(session).states[WindowState].tiles.levels[1].reused, now[1][0].flatten(1).T)


def test_rolling_renews_every_tile(host: str) -> None:
    driver = tiled(host, extra=["routing.budget=0.25", "routing.rolling=16", "routing.refresh.start=false"])
    session = driver.session(video(20))
    driver.click(session, 0, {1: (40, 110)})
    start = None
    for frame, _ in driver.propagate(session):
        tiles = driver.state(session).states[WindowState].tiles
        if frame == 0:
            start = tiles
    assert surgery.status(driver.model).windows_kept == pytest.approx(0.25)
    for level, first in zip(tiles.levels, start.levels, strict=True):
        assert (level.reused != first.reused).any(-1).all(), (
            "frames carry noise, so a tile that was computed again has changed"
        )


def test_state_lives_on_the_session_and_goes_with_it(host: str) -> None:
    import gc
    import weakref

    driver = tiled(host)
    session = driver.session(video(6))
    driver.click(session, 0, {1: (40, 110)})
    gather(driver, session)
    memory = [weakref.ref(level.reused) for level in driver.state(session).states[WindowState].tiles.levels]
    for module in driver.model.modules():
        owned = [*vars(module).values(), *vars(vars(module).get("_surgery", module)).values()]
        assert not any(isinstance(value, TileMemory) for value in owned)
    gc.disable()
    try:
        del session
        assert all(level() is None for level in memory)
    finally:
        gc.enable()


def test_a_session_and_a_model_can_be_copied(host: str) -> None:
    driver = tiled(host)
    models_copied(driver)
    copied(driver)


def test_a_reset_forgets_the_tiles(host: str) -> None:
    reset_forgets(tiled(host))


# --- undo, settings, refusals


def test_desparsify_gives_the_stock_model_back(host: str) -> None:
    def check(model: Any) -> None:
        assert blocks_that_run(model, Stages12Block) == list(range(router_of(model).span.entry))

    undone(make(host), TILES, check)


def test_setting_another_recipe_moves_between_spans(host: str) -> None:
    """Calibration changes the recipe of a model under surgery; what it patches is undone with the rest."""
    from surgery.core.engine import reconfigure

    recipes = {"stage3": STAGE3, "tiles": TILES}
    expected = {}
    for span, recipe in recipes.items():
        driver = make(host)
        surgery.sparsify(driver.model, recipe)
        expected[span] = driver.track(video(7))
    assert not same(expected["stage3"], expected["tiles"])
    driver = make(host)
    surgery.sparsify(driver.model, recipes["stage3"])
    for span in ("tiles", "stage3", "tiles"):
        reconfigure(require_surgery(driver.model), recipes[span])
        assert same(driver.track(video(7)), expected[span]), span
    surgery.desparsify(driver.model)
    assert not any(is_patched(module) for module in driver.model.modules())


def test_windows_that_do_not_nest_are_refused(host: str) -> None:
    """Stage-3 windows of 5 cut through pieces of 2x2."""
    driver = make(host, (8, 4, 5, 2))
    with pytest.raises(UnsupportedModelError, match=r"pieces of 2 .* window of 5.*use span: stage3"):
        surgery.sparsify(driver.model, TILES)
    assert not any(is_patched(module) for module in driver.model.modules())
    surgery.sparsify(driver.model, Recipe.load("balanced"))
    kept = surgery.status(driver.model).recipe
    with pytest.raises(UnsupportedModelError):
        surgery.sparsify(driver.model, TILES)
    assert surgery.status(driver.model).recipe == kept


def test_a_patched_or_broken_early_block_is_refused(host: str) -> None:
    driver = make(host)
    recipe = TILES
    block = view_of(driver.model).blocks()[1]
    kind = type(block)
    block.forward = lambda *args, **kwargs: kind.forward(block, *args, **kwargs)
    with pytest.raises(ModelStateError, match="carries its own forward"):
        surgery.sparsify(driver.model, recipe)
    del block.forward
    with torch.no_grad():
        next(block.parameters()).view(-1)[0] = float("nan")
    with pytest.raises(WeightsError, match=r"blocks\.1\."):
        surgery.sparsify(driver.model, recipe)
    assert not any(is_patched(module) for module in driver.model.modules())


def test_tiles_need_memory() -> None:
    with pytest.raises(surgery.RecipeError, match=r"span: tiles needs skipped\.temporal: true"):
        Recipe.load("published-large", ["routing.span=tiles"])


@pytest.mark.parametrize("name", ["balanced", "turbo"])
@pytest.mark.parametrize("first", [True, False], ids=["ends", "begins"])
def test_autocast_that_ends_or_begins_within_a_video(host: str, name: str, first: bool) -> None:
    """What is kept of frames of one type is read by frames of another."""
    driver = make(host)
    surgery.sparsify(driver.model, name)
    session = driver.session(video(6))
    driver.click(session, 0, {1: (70, 120)})
    for start, half in ((0, first), (3, not first)):
        with torch.autocast("cpu", torch.bfloat16, enabled=half):
            for _, masks in driver.propagate(session, start, count=2):
                assert torch.isfinite(masks[1]).all()
    kept = surgery.status(driver.model).windows_kept
    assert kept is not None and kept < 1


# --- cost


@pytest.mark.parametrize(
    ("host", "windows"),
    [("sam2", PADDED), pytest.param("transformers", PADDED, marks=pytest.mark.slow)],
    indirect=["host"],
)
def test_compiled_encoder_matches_and_does_not_recompile(host: str, windows: tuple[int, ...]) -> None:
    frames = video(17)
    eager, compiled = tiled(host, windows), tiled(host, windows)
    torch._dynamo.reset()
    counter = CompileCounter()
    encoder(compiled.model).compile(backend=counter)
    grid = router_of(eager.model).grid
    # One window or several, computed or left, full or padded: each kind, then other counts.
    left = [[*range(grid.count - 1)], [*range(1, grid.count)]]
    schedule = [[1], [0, 1], [2, 5, 7], [8], *left, [0, 3, 4], [2, 8], [3], [5], [0, 8], [2, 4, 8], *left]
    graphs = graphs_compiled(eager, compiled, frames, schedule, counter)
    assert graphs[-1] <= 8, graphs
    assert graphs[-1] == graphs[9], f"graphs grew while only window counts changed: {graphs}"


@pytest.mark.parametrize(("host", "windows"), [("sam2", PADDED), ("transformers", UNPADDED)], indirect=["host"])
def test_the_count_of_operations_sees_skipped_tiles(host: str, windows: tuple[int, ...]) -> None:
    model = tiled(host, windows).model
    some = range(router_of(model).grid.count // 2)
    few, half = encoder_gflop(model, [0]), encoder_gflop(model, some)
    stage3 = encoder_gflop(tiled(host, windows, ["routing.span=stage3"]).model, some)
    # Maps are small here, so that matching is a twentieth of it all.
    assert few < half < 0.95 * stage3 < stage3 < stock_gflop(view_of(model), "encoder")


@pytest.mark.slow
@pytest.mark.parametrize(("size", "windows", "ratio"), [("tiny", 6, 2.17), ("base-plus", 6, 2.46), ("large", 4, 2.97)])
def test_predicted_ratio_of_the_released_sizes(size: str, windows: int, ratio: float) -> None:
    """Stock over tiled encoder GFLOP at 1024 px, about a quarter of the tiles, all of them full."""
    from surgery.bench.modules import middle_first
    from surgery.loading import load_model

    model = surgery.sparsify(load_model(f"random:{size}"), TILES)
    grid = router_of(model).grid
    chosen = sorted(middle_first(grid.rows, grid.cols)[:windows])
    assert stock_gflop(view_of(model), "encoder") / encoder_gflop(model, chosen) == pytest.approx(ratio, abs=0.01)


@pytest.mark.slow
@torch.inference_mode()
def test_tiles_of_a_released_size_are_the_stock_ones() -> None:
    """1024 px, windows of 14 on 64 tokens: padded border tiles included."""
    from surgery.loading import load_model

    model = surgery.sparsify(load_model("random:tiny"), TILES)
    router = router_of(model)
    grid, tiles = router.grid, router.tiles
    assert tiles is not None
    pixels = torch.randn(1, 3, 1024, 1024, generator=torch.Generator().manual_seed(0))
    stock = levels_of(model, pixels)
    chosen = [4, 12, 24]
    blank = tiles.blank(384, pixels.device, pixels.dtype)
    route = router.route(WindowState(tiles=blank), chosen, pixels.device)
    found = levels_of(model, pixels, route)
    inside = torch.zeros(grid.tokens)
    inside[torch.from_numpy(grid.token_ids(chosen))] = 1
    for level, scale in ((0, 4), (1, 2)):
        mask = inside.reshape(64, 64).repeat_interleave(scale, 0).repeat_interleave(scale, 1) > 0
        assert (found[level][0][:, mask] - stock[level][0][:, mask]).abs().max() < 1e-4
        assert not found[level][0][:, ~mask].any()

"""A routed stage 4 on either host: its blocks on packed windows, the life of a video, refusals, cost."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest
import torch
from torch import Tensor
from torch._dynamo.testing import CompileCounter

import surgery
from surgery import ModelStateError, UnsupportedModelError, WeightsError
from surgery.core.cost import stock_gflop
from surgery.core.patching import is_patched
from surgery.core.windows import WindowGrid
from surgery.engine import require_surgery
from surgery.hosts import view_of
from surgery.operations import SparseWindowRouting
from surgery.operations.window_routing.blocks import Stage4Block
from surgery.operations.window_routing.geometry import stage4_blocks
from surgery.operations.window_routing.matching import compared, reused_map
from surgery.operations.window_routing.policy import WindowState
from surgery.operations.window_routing.reuse import RunMemory
from surgery.recipe import Recipe
from tests.hosts.drive import Driver, make, video
from tests.hosts.routes import blocks_that_run, encoder, encoder_gflop, force, levels_of, router_of
from tests.hosts.sessions import begun, close, copied, gather, interleaved, models_copied, reset_forgets, same, undone
from tests.hosts.test_compile import graphs_compiled

HOSTS = ("sam2", "transformers")
UNPADDED, PADDED = (8, 4, 4, 2), (8, 4, 6, 3)
BLOCKS, TRAILING = (1, 1, 7, 2), (1, 1, 8, 2)
"""Depths; with TRAILING a windowed block of stage 3 lies between the exit and stage 4."""
ROUTED = Recipe(
    metadata={"name": "stage4", "description": "Window routing alone, stage 4 routed."},
    operations=[
        SparseWindowRouting(
            stage4="routed", temporal=True, rolling=1, budget=0.6, score_gate=0.0, candidates="best", dilation=1
        )
    ],
)
TILES = ["routing.span=tiles"]
both_paddings = pytest.mark.parametrize("windows", [UNPADDED, PADDED], ids=["unpadded", "padded"])
both_spans = pytest.mark.parametrize("extra", [[], TILES], ids=["stage3", "tiles"])


@pytest.fixture(params=HOSTS)
def host(request: pytest.FixtureRequest) -> str:
    return request.param


def cut(
    host: str,
    windows: tuple[int, ...] = UNPADDED,
    extra: list[str] | None = None,
    blocks: tuple[int, ...] = BLOCKS,
) -> Driver:
    driver = make(host, windows, blocks=blocks)
    surgery.sparsify(driver.model, ROUTED.with_overrides(extra or []))
    return driver


def stage4(driver: Driver, stage3: Tensor) -> Tensor:
    """The stock stage 4 on a stage-3 map [1, C, H, W] -> [1, 2 C, H / 2, W / 2]."""
    host, out = view_of(driver.model), stage3.permute(0, 2, 3, 1)
    for index in stage4_blocks(host, router_of(driver.model).span):
        out = host.blocks()[index](out)
    return out.permute(0, 3, 1, 2)


def routed(driver: Driver, pixels: Tensor, chosen: list[int], last: RunMemory) -> list[Tensor]:
    """Stage outputs when `chosen` windows are computed and `last` is what is remembered of stage 4."""
    router = router_of(driver.model)
    assert router.stage4 is not None
    noise = torch.randn(2, router.grid.tokens, router.span.channels, generator=torch.Generator().manual_seed(3))
    state = WindowState(span=RunMemory(*noise), stage4=last)
    return levels_of(driver.model, pixels, router.route(state, chosen, pixels.device))


def inside(driver: Driver, chosen: Sequence[int]) -> Tensor:
    """bool [h, w]: tokens of the stage-4 map that lie under `chosen` stage-3 windows, by visiting each."""
    grid = router_of(driver.model).grid
    window = grid.window
    return torch.tensor(
        [
            [(2 * row // window) * grid.cols + 2 * col // window in chosen for col in range(grid.width // 2)]
            for row in range(grid.height // 2)
        ]
    )


# --- the blocks


@pytest.mark.parametrize("blocks", [BLOCKS, TRAILING], ids=["last", "trailing"])
@both_paddings
@torch.no_grad()
def test_a_computed_window_is_the_stock_one_and_a_skipped_one_reused(
    host: str, windows: tuple[int, ...], blocks: tuple[int, ...]
) -> None:
    """Whatever else is computed: stage 4 of a window depends on that window of the stage-3 map alone."""
    driver = cut(host, windows, blocks=blocks)
    grid = router_of(driver.model).grid
    levels = [level.permute(0, 2, 3, 1) for level in levels_of(driver.model, video(2)[:1])[2:]]
    memory, last = RunMemory(levels[1].flatten(0, 2), compared(levels[0], 2)), levels[1].permute(0, 3, 1, 2)
    now = video(2, seed=4)[1:]
    for chosen in ([0], [1, 2], [grid.cols - 1, grid.cols], [grid.count - 1], [0, grid.cols, grid.count - 1]):
        found = routed(driver, now, chosen, memory)
        stock, computed = stage4(driver, found[2])[0], inside(driver, chosen)
        pooled = compared(found[2].permute(0, 2, 3, 1), 2)
        side = computed.shape[0]
        small = WindowGrid(side, side, grid.window // 2)
        reused = reused_map(small, pooled, memory.entering, memory.reused).T.reshape(-1, side, side)
        assert torch.allclose(found[3][0][:, ~computed], reused[:, ~computed], atol=1e-5)
        assert (found[3][0][:, computed] - stock[:, computed]).abs().max() < 2e-6
        assert (found[3][0][:, computed] - last[0][:, computed]).abs().max() > 0.1


@both_paddings
@torch.no_grad()
def test_every_window_computed_is_the_stock_stage(host: str, windows: tuple[int, ...]) -> None:
    driver = cut(host, windows)
    router = router_of(driver.model)
    assert router.stage4 is not None
    pixels = video(2, seed=4)[1:]
    blank = router.stage4.blank(pixels.device, pixels.dtype)
    found = routed(driver, pixels, list(range(router.grid.count)), blank)
    stock = stage4(driver, found[2])
    assert (found[3] - stock).abs().max() < 1e-6


@both_spans
@both_paddings
def test_every_window_through_the_routed_path_equals_stock(
    host: str, windows: tuple[int, ...], extra: list[str]
) -> None:
    driver = make(host, windows, blocks=BLOCKS)
    stock = driver.track(video(5))
    surgery.sparsify(driver.model, ROUTED.with_overrides(extra))
    force(driver.model, range(router_of(driver.model).grid.count))
    close(driver.track(video(5)), stock, 2e-5)
    assert surgery.status(driver.model).dense_frames == {"first frame or jump": 1}


@both_paddings
@pytest.mark.parametrize("objects", [1, 3])
def test_all_windows_are_bit_equal_to_stock(host: str, windows: tuple[int, ...], objects: int) -> None:
    driver = make(host, windows, blocks=BLOCKS)
    stock = driver.track(video(6), objects)
    surgery.sparsify(driver.model, Recipe.load("exact", ["routing.stage4=routed", "routing.temporal=true"]))
    assert same(driver.track(video(6), objects), stock)
    surgery.sparsify(driver.model, ROUTED.with_overrides(["routing.rolling=100", "routing.budget=1"]))
    assert same(driver.track(video(6), objects), stock), "every window needed: the frame is dense"


# --- videos


@pytest.mark.parametrize(("reverse", "objects"), [(False, 1), (True, 1), (False, 3)])
@pytest.mark.parametrize(
    ("windows", "extra"), [(UNPADDED, []), (PADDED, []), (PADDED, TILES)], ids=["unpadded", "padded", "tiles"]
)
def test_hosts_agree(reverse: bool, objects: int, windows: tuple[int, ...], extra: list[str]) -> None:
    masks, kept = {}, {}
    for host in HOSTS:
        driver = cut(host, windows, extra)
        session = driver.session(video(10))
        first = 9 if reverse else 0
        driver.click(session, first, {7 + index: (40 + 70 * index, 110) for index in range(objects)})
        masks[host] = gather(driver, session, start=first, reverse=reverse)
        status = surgery.status(driver.model)
        kept[host] = (status.windows_kept, status.dense_frames)
    close(masks["sam2"], masks["transformers"], 1e-5)
    assert kept["sam2"] == kept["transformers"]
    assert kept["sam2"][0] < 1.0


@both_spans
def test_interleaved_videos_equal_each_alone(host: str, extra: list[str]) -> None:
    driver = cut(host, extra=extra)
    interleaved(driver, [video(8, seed) for seed in (1, 2)])


def test_a_still_video_stays_as_it_was(host: str) -> None:
    """On equal frames the last output of a skipped window is the right one."""
    driver = make(host, blocks=BLOCKS)
    still = video(1).repeat(6, 1, 1, 1)
    stock = driver.track(still)
    errors = {}
    for choice in ("routed", "dense"):
        surgery.sparsify(driver.model, ROUTED.with_overrides([f"routing.stage4={choice}"]))
        force(driver.model, [5])
        masks = driver.track(still)
        errors[choice] = max(float((a - b).abs().max()) for a, b in zip(masks, stock, strict=True))
    assert errors["routed"] < 1.5 * errors["dense"]


def test_a_cut_a_jump_and_a_prompt_renew_every_window(host: str) -> None:
    driver = cut(host, extra=["routing.refresh.scene_cut=0.6"])
    clip = torch.cat([video(6), video(6, 3)])
    session = driver.session(clip)
    driver.click(session, 0, {1: (40, 110)})

    def is_fresh(frame: int) -> bool:
        return torch.equal(
            driver.state(session).states[WindowState].stage4.reused,
            levels_of(driver.model, clip[frame : frame + 1])[3][0].flatten(1).T,
        )

    fresh = [frame for frame, _ in driver.propagate(session, count=9) if is_fresh(frame)]
    assert fresh == [0, 1, 6]
    run = driver.propagate(session, start=3)
    next(run)
    assert is_fresh(3), "a jump"
    next(run)
    assert not is_fresh(4)
    run.close()
    driver.click(session, 5, {2: (200, 200)})
    assert is_fresh(5)


def test_rolling_renews_every_window(host: str) -> None:
    driver = cut(host, extra=["routing.budget=0.25", "routing.rolling=16", "routing.refresh.start=false"])
    session = driver.session(video(20))
    driver.click(session, 0, {1: (40, 110)})
    start = None
    for frame, _ in driver.propagate(session):
        if frame == 0:
            start = driver.state(session).states[WindowState].stage4.reused
    assert surgery.status(driver.model).windows_kept == pytest.approx(0.25)
    now = driver.state(session).states[WindowState].stage4.reused
    assert (now != start).any(-1).all(), "frames carry noise, so a computed window changes"


def test_state_lives_on_the_session_and_goes_with_it(host: str) -> None:
    import gc
    import weakref

    driver = cut(host)
    session = driver.session(video(6))
    driver.click(session, 0, {1: (40, 110)})
    gather(driver, session)
    kept = driver.state(session).states[WindowState].stage4
    for module in driver.model.modules():
        owned = [*vars(module).values(), *vars(vars(module).get("_surgery", module)).values()]
        assert not any(value is kept for value in owned)
    memory = weakref.ref(kept)
    gc.disable()
    try:
        del session, kept, owned
        assert memory() is None
    finally:
        gc.enable()


@both_spans
def test_a_session_and_a_model_can_be_copied(host: str, extra: list[str]) -> None:
    driver = cut(host, extra=extra)
    models_copied(driver)
    copied(driver)


def test_a_reset_forgets_stage_4(host: str) -> None:
    reset_forgets(cut(host))


def test_removing_one_object_keeps_stage_4_and_removing_all_forgets_it() -> None:
    driver = cut("sam2")
    session, run = begun(driver, video(10), 5, {4: (40, 110), 9: (200, 60)})
    run.close()
    kept = driver.state(session).states[WindowState].stage4
    driver.model.remove_object(session, 4)
    run = driver.propagate(session, start=5)
    next(run)
    assert driver.state(session).stats.last.dense is None
    state = driver.state(session)
    left = ~inside(driver, state.stats.last.windows).flatten()
    assert torch.equal(state.states[WindowState].stage4.reused[left], kept.reused[left])
    run.close()
    driver.model.remove_object(session, 9)
    state.sync_objects({})
    assert WindowState not in state.states


# --- undo, settings, refusals


def test_desparsify_gives_the_stock_model_back(host: str) -> None:
    def check(model: Any) -> None:
        assert blocks_that_run(model, Stage4Block) == list(stage4_blocks(view_of(model), router_of(model).span))

    undone(make(host, blocks=BLOCKS), ROUTED, check)


def test_setting_another_recipe_moves_between_dense_and_routed(host: str) -> None:
    """Calibration changes the recipe of a model under surgery; what it patches is undone with the rest."""
    from surgery.core.engine import reconfigure

    recipes = {choice: ROUTED.with_overrides([f"routing.stage4={choice}"]) for choice in ("dense", "routed")}
    expected = {}
    for choice, recipe in recipes.items():
        driver = make(host, blocks=BLOCKS)
        surgery.sparsify(driver.model, recipe)
        expected[choice] = driver.track(video(7))
    assert not same(expected["dense"], expected["routed"])
    driver = make(host, blocks=BLOCKS)
    surgery.sparsify(driver.model, recipes["dense"])
    for choice in ("routed", "dense", "routed"):
        reconfigure(require_surgery(driver.model), recipes[choice])
        assert same(driver.track(video(7)), expected[choice]), choice
    surgery.desparsify(driver.model)
    assert not any(is_patched(module) for module in driver.model.modules())


def test_windows_that_are_not_halved_are_refused(host: str) -> None:
    driver = make(host, (8, 4, 6, 2), blocks=BLOCKS)
    with pytest.raises(UnsupportedModelError, match=r"block 10 has windows of 2 tokens, expected 3.*use stage4: dense"):
        surgery.sparsify(driver.model, ROUTED)
    assert not any(is_patched(module) for module in driver.model.modules())
    surgery.sparsify(driver.model, "balanced")
    kept = surgery.status(driver.model).recipe
    with pytest.raises(UnsupportedModelError):
        surgery.sparsify(driver.model, ROUTED)
    assert surgery.status(driver.model).recipe == kept


def test_a_patched_or_broken_block_is_refused(host: str) -> None:
    driver = make(host, blocks=BLOCKS)
    block = view_of(driver.model).blocks()[10]
    kind = type(block)
    block.forward = lambda *args, **kwargs: kind.forward(block, *args, **kwargs)
    with pytest.raises(ModelStateError, match="carries its own forward"):
        surgery.sparsify(driver.model, ROUTED)
    del block.forward
    with torch.no_grad():
        next(block.parameters()).view(-1)[0] = float("nan")
    with pytest.raises(WeightsError, match=r"blocks\.10"):
        surgery.sparsify(driver.model, ROUTED)
    assert not any(is_patched(module) for module in driver.model.modules())


def test_a_routed_stage_4_needs_memory() -> None:
    with pytest.raises(surgery.RecipeError, match=r"stage4: routed needs skipped\.temporal: true"):
        Recipe.load("published-large", ["routing.stage4=routed"])


# --- precision and cost


def test_half_precision_and_autocast(host: str) -> None:
    driver = cut(host)
    with torch.autocast("cpu", torch.bfloat16):
        masks = driver.track(video(5))
    assert all(torch.isfinite(mask).all() for mask in masks)
    assert surgery.status(driver.model).windows_kept < 1.0


@pytest.mark.parametrize(
    ("host", "windows", "extra"),
    [
        ("sam2", PADDED, []),
        pytest.param("sam2", UNPADDED, TILES, marks=pytest.mark.slow),
        pytest.param("transformers", PADDED, [], marks=pytest.mark.slow),
    ],
    indirect=["host"],
)
def test_compiled_encoder_matches_and_does_not_recompile(host: str, windows: tuple[int, ...], extra: list[str]) -> None:
    frames = video(17)
    eager, compiled = cut(host, windows, extra), cut(host, windows, extra)
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


@both_spans
@pytest.mark.parametrize(("host", "windows"), [("sam2", PADDED), ("transformers", UNPADDED)], indirect=["host"])
def test_the_count_of_operations_sees_a_routed_stage_4(host: str, windows: tuple[int, ...], extra: list[str]) -> None:
    stock, few, every = {}, {}, {}
    for choice in ("dense", "routed"):
        model = cut(host, windows, [*extra, f"routing.stage4={choice}"]).model
        stock[choice] = stock_gflop(view_of(model), "encoder")
        few[choice], every[choice] = (encoder_gflop(model, range(n)) for n in (2, router_of(model).grid.count))
    assert few["routed"] < 0.9 * few["dense"]
    assert every["routed"] == pytest.approx(every["dense"])
    assert stock["routed"] == stock["dense"]


@pytest.mark.slow
@pytest.mark.parametrize(("size", "windows", "ratio"), [("tiny", 6, 2.76), ("base-plus", 6, 3.10), ("large", 4, 3.62)])
def test_predicted_ratio_of_the_released_sizes(size: str, windows: int, ratio: float) -> None:
    """Stock over routed encoder GFLOP at 1024 px: a quarter of the tiles, all of them full, stage 4 routed as well."""
    from surgery.bench.modules import middle_first
    from surgery.loading import load_model

    model = surgery.sparsify(load_model(f"random:{size}"), ROUTED.with_overrides(TILES))
    grid = router_of(model).grid
    chosen = sorted(middle_first(grid.rows, grid.cols)[:windows])
    assert stock_gflop(view_of(model), "encoder") / encoder_gflop(model, chosen) == pytest.approx(ratio, abs=0.01)


@pytest.mark.slow
@torch.inference_mode()
def test_stage_4_of_a_released_size_is_the_stock_one() -> None:
    """1024 px, windows of 14 on 64 tokens and of 7 on 32: padded border windows included."""
    from surgery.loading import load_model

    driver = Driver(surgery.sparsify(load_model("random:small", "sam2"), ROUTED))
    stage = router_of(driver.model).stage4
    assert stage is not None
    pixels = torch.randn(1, 3, 1024, 1024, generator=torch.Generator().manual_seed(0))
    chosen = [4, 12, 24]
    found = routed(driver, pixels, chosen, stage.blank(pixels.device, pixels.dtype))
    stock, computed = stage4(driver, found[2])[0], inside(driver, chosen)
    assert (found[3][0][:, computed] - stock[:, computed]).abs().max() < 1e-4
    assert not found[3][0][:, ~computed].any()

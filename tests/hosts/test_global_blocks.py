"""Inner global blocks with the keys and values of every token, on either host."""

from __future__ import annotations

import pytest
import torch

import surgery
from surgery import RecipeError
from surgery.engine import require_surgery
from surgery.operations import SparseWindowRouting
from surgery.operations.window_routing.policy import WindowState
from surgery.recipe import Recipe
from tests.hosts.drive import HOSTS, ROUNDING, SAM3, TWINS, Driver, make, video
from tests.hosts.routes import encoder_gflop, force, levels_of, router_of
from tests.hosts.sessions import close, copied, gather, interleaved, models_copied, reset_forgets, same, undone

UNPADDED, PADDED = (8, 4, 4, 2), (8, 4, 6, 3)
CACHED = Recipe(
    metadata={"name": "cached", "description": "Window routing alone, inner global blocks see every token."},
    operations=[
        SparseWindowRouting(
            budget=0.4, rolling=1, skipped={"temporal": True, "shortcut": {"type": "identity"}},
            stages={"globals": "cached"}, object={"score_gate": 0.0, "candidates": "best", "dilation": 1},
        )
    ],
)  # fmt: skip
TILES = ["routing.span=tiles"]
both_paddings = pytest.mark.parametrize("windows", [UNPADDED, PADDED], ids=["unpadded", "padded"])
both_choices = pytest.mark.parametrize("choice", ["cached", "dense"])
both_spans = pytest.mark.parametrize("extra", [[], TILES], ids=["stage3", "tiles"])
every_span = pytest.mark.parametrize(
    ("host", "extra"), [(host, extra) for host in HOSTS for extra in ([], TILES) if host != SAM3 or not extra]
)


@pytest.fixture(params=HOSTS)
def host(request: pytest.FixtureRequest) -> str:
    return request.param


def cut(host: str, windows: tuple[int, ...] = UNPADDED, extra: list[str] | None = None) -> Driver:
    driver = make(host, windows)
    surgery.sparsify(driver.model, CACHED.with_overrides(extra or []))
    return driver


@every_span
@both_paddings
def test_a_still_video_has_the_features_of_stock(host: str, windows: tuple[int, ...], extra: list[str]) -> None:
    """Nothing changed, so what skipped tokens were is what they are; packed, the others would be missed."""
    driver = make(host, windows)
    still = video(1).repeat(5, 1, 1, 1)
    stock = driver.track(still)
    errors = {}
    for choice in ("cached", "packed", *([] if extra else ["dense"])):
        surgery.sparsify(driver.model, CACHED.with_overrides([*extra, f"routing.stages.globals={choice}"]))
        force(driver.model, [1, 2])
        masks = driver.track(still)
        errors[choice] = max(float((a - b).abs().max()) for a, b in zip(masks, stock, strict=True))
        assert surgery.status(driver.model).windows_kept < 0.7
    assert errors["cached"] < 1e-4 < errors["packed"]
    assert errors.get("dense", 0.0) < 1e-4


@both_choices
@both_paddings
def test_every_window_through_the_routed_path_equals_stock(host: str, windows: tuple[int, ...], choice: str) -> None:
    driver = make(host, windows)
    stock = driver.track(video(5))
    surgery.sparsify(driver.model, CACHED.with_overrides([f"routing.stages.globals={choice}"]))
    force(driver.model, range(router_of(driver.model).grid.count))
    close(driver.track(video(5)), stock, ROUNDING[host])
    assert surgery.status(driver.model).dense_frames == {"first frame or jump": 1}


@both_choices
def test_all_windows_are_bit_equal_to_stock(host: str, choice: str) -> None:
    driver = make(host)
    stock = driver.track(video(6), 3)
    overrides = ["routing.rolling=100", "routing.budget=1", f"routing.stages.globals={choice}"]
    surgery.sparsify(driver.model, CACHED.with_overrides(overrides))
    assert same(driver.track(video(6), 3), stock), "every window needed: the frame is dense"


@torch.no_grad()
def test_a_skipped_token_is_seen_as_when_it_was_last_computed(host: str) -> None:
    """What computed windows become depends on where the skipped ones were, and not on what they are now."""
    driver = cut(host)
    clip = video(3)
    changed = clip.clone()
    router = router_of(driver.model)
    side = clip.shape[-1] // router.grid.cols
    changed[2, :, 3 * side :, :side] += 1.0  # window 12, which is not computed and does not touch those that are
    found = {}
    for name, frames in (("as it was", clip), ("changed", changed)):
        force(driver.model, [5, 6])
        session = driver.session(frames)
        driver.click(session, 0, {1: (40, 110)})
        gather(driver, session)
        found[name] = driver.state(session).states[WindowState]
    grid = router.grid
    for inside in ([5, 6], [12]):
        where = torch.from_numpy(grid.token_ids(inside))
        for one, other in zip(found["as it was"].globals, found["changed"].globals, strict=True):
            assert torch.equal(one[where], other[where])
    still = driver.session(clip[:2])
    driver.click(still, 0, {1: (40, 110)})
    gather(driver, still)
    before, after = driver.state(still).states[WindowState].globals[0], found["as it was"].globals[0]
    where = torch.from_numpy(grid.token_ids([5, 6]))
    assert not torch.equal(before[where], after[where]), "computed tokens are renewed"


@both_spans
@pytest.mark.parametrize(("reverse", "objects"), [(False, 1), (True, 1), (False, 3)])
def test_hosts_agree(reverse: bool, objects: int, extra: list[str]) -> None:
    masks = {}
    for host in TWINS:
        driver = cut(host, PADDED, extra)
        session = driver.session(video(8))
        first = 7 if reverse else 0
        driver.click(session, first, {7 + index: (40 + 70 * index, 110) for index in range(objects)})
        masks[host] = gather(driver, session, start=first, reverse=reverse)
        assert surgery.status(driver.model).windows_kept < 1.0
    close(masks["sam2"], masks["transformers"], 1e-5)


@every_span
def test_interleaved_videos_equal_each_alone(host: str, extra: list[str]) -> None:
    driver = cut(host, extra=extra)
    interleaved(driver, [video(8, seed) for seed in (1, 2)])


@both_choices
def test_sessions_and_models_can_be_copied_reset_and_undone(host: str, choice: str) -> None:
    extra = [f"routing.stages.globals={choice}"]
    driver = cut(host, extra=extra)
    interleaved(driver, [video(8, seed) for seed in (1, 2)])
    models_copied(driver)
    copied(driver)
    reset_forgets(cut(host, extra=extra))
    undone(make(host), CACHED.with_overrides(extra))


def test_what_it_costs_is_attention_to_the_other_tokens(host: str) -> None:
    """Dense, an inner global block costs what it costs stock."""
    cost = {choice: encoder_gflop(cut(host, extra=[f"routing.stages.globals={choice}"]).model, range(4))
            for choice in ("packed", "cached", "dense")}  # fmt: skip
    router = router_of(cut(host).model)
    grid, span = router.grid, router.span
    chosen, others = len(grid.token_ids(range(4))), len(grid.token_ids(range(4, grid.count)))
    inner = sum(not router.surgery.host.block_info(index).window for index in span.routed)
    assert inner
    assert cost["cached"] - cost["packed"] == pytest.approx(inner * 4 * chosen * others * span.channels / 1e9, rel=1e-6)
    assert cost["packed"] < cost["cached"] < cost["dense"]


def test_a_cut_renews_every_token(host: str) -> None:
    driver = cut(host, extra=["routing.refresh.scene_cut=0.6"])
    clip = torch.cat([video(4), video(4, 3)])
    session = driver.session(clip)
    driver.click(session, 0, {1: (40, 110)})
    before = None
    for frame, _ in driver.propagate(session):
        now = driver.state(session).states[WindowState].globals[0]
        if frame == 4:
            assert (now != before).flatten(1).any(1).all()
        before = now
    assert levels_of(driver.model, clip[:1])


@pytest.mark.parametrize("choice", ["cached", "dense"])
def test_nothing_remembered_is_refused(choice: str) -> None:
    with pytest.raises(RecipeError, match=rf"globals: {choice} needs skipped.temporal: true"):
        Recipe.load("published-large", [f"routing.stages.globals={choice}"])


def test_dense_blocks_need_every_token() -> None:
    with pytest.raises(RecipeError, match=r"globals: dense needs span: stage3"):
        CACHED.with_overrides(["routing.stages.globals=dense", *TILES])


@torch.no_grad()
def test_what_a_run_of_blocks_added_is_added_again(host: str) -> None:
    """Dense: a skipped token goes through the global blocks with what its windowed blocks once added."""
    driver = cut(host, extra=["routing.stages.globals=dense"])
    force(driver.model, [5, 6])
    session = driver.session(video(4))
    driver.click(session, 0, {1: (40, 110)})
    states = [driver.state(session).states[WindowState].globals for _ in driver.propagate(session)]
    before, after = states[-2:]
    span, host_view = router_of(driver.model).span, router_of(driver.model).surgery.host
    inner = sum(not host_view.block_info(index).window for index in span.routed)
    assert len(after) == inner + 1
    computed = torch.from_numpy(router_of(driver.model).grid.token_ids([5, 6]))
    others = torch.ones(len(after[0].reused), dtype=torch.bool).index_fill(0, computed, False)
    for one, other in zip(before, after, strict=True):
        for kept, renewed in ((one.reused, other.reused), (one.entering, other.entering)):
            assert torch.equal(kept[others], renewed[others])
            assert not torch.equal(kept[computed], renewed[computed])


def test_calibration_tells_the_kinds_apart(host: str) -> None:
    """Of a still video nothing is lost but what packed windows do not see of the others."""
    driver = cut(host)
    cut_model = require_surgery(driver.model)
    kinds = [CACHED.with_overrides([f"routing.stages.globals={kind}"]) for kind in ("packed", "cached", "dense")]
    settings = [recipe.find(SparseWindowRouting) for recipe in kinds]
    risks = []
    for clip in (video(6), video(1).repeat(6, 1, 1, 1)):
        simulation = SparseWindowRouting.simulate(cut_model, settings)
        with cut_model.observed_by(simulation):
            driver.track(clip)
        risks.append([simulation.predict(each, [6]).risk for each in settings])
    packed, cached, dense = risks[0]
    assert 0 < dense < 0.99 * cached < 0.9 * packed
    assert risks[1][1:] == pytest.approx([0.0, 0.0], abs=1e-6) and risks[1][0] > 1e-3

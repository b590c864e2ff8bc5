"""Query routing on either host: exactness, which tokens are queries, the life of a video, composition, undo."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor
from torch._dynamo.testing import CompileCounter

import surgery
from surgery import ModelStateError
from surgery.core.cost import gflop, stock_gflop
from surgery.core.patching import is_patched
from surgery.engine import require_surgery
from surgery.hosts import view_of
from surgery.operations import SparseMemoryRetrieval, SparseQueryRouting, SparseWindowRouting
from surgery.operations.query_routing import QueryRouter
from surgery.operations.query_routing.queries import FrameRegions, QueryMemory, QueryRoute
from surgery.recipe import Recipe
from tests.hosts.drive import HOSTS, PADDED, SAM3, TWINS, UNPADDED, Driver, make, square, video
from tests.hosts.routes import force, router_of
from tests.hosts.sessions import begun, close, copied, gather, interleaved, models_copied, same, undone

ROUTING = SparseWindowRouting(temporal=True, rolling=1, score_gate=0.0, candidates="best", dilation=1, budget=0.25)
QUERIES = SparseQueryRouting(margin=1, rolling=1)
RETRIEVAL = SparseMemoryRetrieval(keep=0.1, keep_conditioning=0.5, warm_up=False, saliency="object")


@pytest.fixture(params=HOSTS)
def host(request: pytest.FixtureRequest) -> str:
    return request.param


def recipe(*operations: Any) -> Recipe:
    return Recipe(metadata={"name": "queries", "description": "Query routing."}, operations=operations)


def cut(host: str, *operations: Any, windows: tuple[int, ...] = UNPADDED) -> Driver:
    driver = make(host, windows)
    surgery.sparsify(driver.model, recipe(*(operations or (ROUTING, QUERIES))))
    return driver


def fraction(driver: Driver) -> float:
    kept = surgery.status(driver.model).queries_kept
    assert kept is not None
    return kept


def memory_of(state: Any, obj_id: int, reverse: bool = False) -> QueryMemory | None:
    return state.objects.get((obj_id, reverse), {}).get(QueryMemory)


# --- exactness


@pytest.mark.parametrize(("windows", "retrieval"), [(UNPADDED, ()), (PADDED, (RETRIEVAL,))], ids=["alone", "pruned"])
def test_every_token_through_the_routed_path_changes_nothing(
    host: str, windows: tuple[int, ...], retrieval: tuple[Any, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The routed attention itself, at all tokens: positions by index, keys of the whole memory or of the plan."""
    expected = cut(host, ROUTING, *retrieval, windows=windows).track(video(7), 2)
    driver = cut(host, ROUTING, QUERIES, *retrieval, windows=windows)
    calls = []

    def every(self: Any, found: Any, last: Any, step: Any, *_: Any) -> QueryRoute:
        calls.append(step.frame)
        tokens = found.grid.tokens
        return QueryRoute(torch.arange(tokens), tokens, last.output, list(last.inputs))

    monkeypatch.setattr(QueryRouter, "_route", every)
    close(driver.track(video(7), 2), expected, 1e-5)
    assert len(calls) >= 8, "two objects, from the second tracked frame on"


def test_a_margin_over_the_whole_picture_is_bit_equal(host: str) -> None:
    expected = cut(host, ROUTING).track(video(7))
    driver = cut(host, ROUTING, SparseQueryRouting(margin=255))
    assert same(driver.track(video(7)), expected)
    assert fraction(driver) == 1.0


def test_dense_frames_are_dense(host: str) -> None:
    """Where the router wants every window, memory attention runs for every token."""
    driver = make(host)
    stock = driver.track(video(6))
    routing = SparseWindowRouting(temporal=True, rolling=10_000)
    surgery.sparsify(driver.model, recipe(routing, QUERIES))
    assert same(driver.track(video(6)), stock)
    assert fraction(driver) == 1.0


# --- which tokens


@pytest.mark.parametrize("objects", [1, 3])
def test_queries_are_computed_windows_near_tokens_and_the_longest_waiting(
    host: str, objects: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    driver = cut(host)
    seen: list[tuple[int, int]] = []
    original, grid = QueryRouter._subset, router_of(driver.model).grid

    def watched(self: Any, call: Any, route: QueryRoute, proceed: Any) -> Tensor:
        step, state = self.surgery.context.step, self.surgery.context.video
        chosen = set(route.index.tolist())
        assert set(grid.token_ids(state.stats.last.windows).tolist()) <= chosen
        near = state.states[FrameRegions].regions[step.obj_id].tokens.nonzero().flatten().tolist()
        assert near
        assert set(near) <= chosen
        assert route.index.tolist() == sorted(chosen)
        before = memory_of(state, step.obj_id, step.reverse)
        others = [window for window in range(grid.count) if window not in state.stats.last.windows]
        oldest = max(others, key=lambda window: (before.ages[window], -window))
        assert set(grid.token_ids([oldest]).tolist()) <= chosen
        out = original(self, call, route, proceed)
        kept = [token for token in range(grid.tokens) if token not in chosen]
        assert torch.equal(out.reshape(-1, out.shape[-1])[kept], before.output[kept])
        seen.append((step.frame, step.obj_id))
        return out

    monkeypatch.setattr(QueryRouter, "_subset", watched)
    driver.track(video(7), objects)
    assert seen == [(frame, 7 + 2 * number) for frame in range(2, 7) for number in range(objects)]
    assert fraction(driver) < 0.9


def test_rolling_renews_every_token(host: str) -> None:
    driver = cut(host, ROUTING, SparseQueryRouting(margin=0, rolling=2))
    session = driver.session(video(12))
    driver.click(session, 0, {1: (40, 110)})
    first = None
    for frame, _ in driver.propagate(session):
        last = memory_of(driver.state(session), 1)
        first = last.output if frame == 1 else first
    assert fraction(driver) < 0.75
    assert (last.output != first).any(-1).all()
    assert max(last.ages) < 8


@pytest.mark.parametrize("reverse", [False, True])
@pytest.mark.parametrize("retrieval", [(), (RETRIEVAL,)], ids=["alone", "with retrieval"])
def test_hosts_agree(reverse: bool, retrieval: tuple[Any, ...]) -> None:
    masks, kept = {}, {}
    for host in TWINS:
        driver = cut(host, ROUTING, QUERIES, *retrieval)
        session = driver.session(video(9))
        first = 8 if reverse else 0
        driver.click(session, first, {7: (40, 110), 8: (200, 60)})
        masks[host] = gather(driver, session, start=first, reverse=reverse)
        kept[host] = fraction(driver)
    close(masks["sam2"], masks["transformers"], 1e-5)
    assert kept["sam2"] == pytest.approx(kept["transformers"])
    assert kept["sam2"] < 0.9


def test_status_tells_the_share_of_queries(host: str) -> None:
    driver = cut(host)
    driver.track(video(6))
    status = surgery.status(driver.model)
    assert status.queries_kept == pytest.approx(fraction(driver))
    assert f"queries kept {status.queries_kept:.0%}" in str(status)
    surgery.sparsify(driver.model, recipe(ROUTING))
    driver.track(video(6))
    status = surgery.status(driver.model)
    assert status.queries_kept is None and "queries kept" not in str(status)


def test_forced_windows_ask_for_near_tokens_as_well(host: str) -> None:
    driver = cut(host)
    force(driver.model, [15])
    driver.track(video(6))
    assert 16 * 2 / 256 < fraction(driver) < 0.9


# --- without window routing


ALONE = SparseQueryRouting(margin=1, rolling=1, budget=0.4)


@pytest.mark.parametrize("others", [(), (SparseWindowRouting(windows="all"),), (RETRIEVAL,)], ids=["alone", "all", "r"])
def test_queries_need_no_window_routing(others: tuple[Any, ...]) -> None:
    """Where nobody says which windows were computed, tokens near the object and those that changed are queries."""
    masks, kept = {}, {}
    for host in TWINS:
        driver = cut(host, ALONE, *others)
        session = driver.session(video(9))
        driver.click(session, 0, {7: (40, 110), 8: (200, 60)})
        masks[host] = gather(driver, session)
        kept[host] = fraction(driver)
        assert surgery.status(driver.model).windows_kept in (None, 1.0)
    close(masks["sam2"], masks["transformers"], 1e-5)
    assert kept["sam2"] == pytest.approx(kept["transformers"])
    assert kept["sam2"] < 0.7


def test_alone_a_margin_over_the_whole_picture_is_stock(host: str) -> None:
    stock = make(host).track(video(7))
    driver = cut(host, SparseQueryRouting(margin=255))
    assert same(driver.track(video(7)), stock)
    assert fraction(driver) == 1.0


def test_alone_it_leaves_each_video_to_itself_and_the_model_as_it_was(host: str) -> None:
    driver = cut(host, ALONE)
    interleaved(driver, [video(7, seed) for seed in (1, 2)])
    models_copied(driver)
    copied(driver)
    surgery.desparsify(driver.model)
    undone(driver, recipe(ALONE))


# --- the life of a video


def test_a_jump_and_a_prompt_ask_for_every_token(host: str) -> None:
    driver = cut(host)
    session = driver.session(video(10))
    driver.click(session, 0, {1: (40, 110)})
    gather(driver, session, count=5)
    stats = driver.state(session).stats
    kept, calls = stats.kept["queries"]
    driver.mask(session, 7, {1: square(60, 90)})
    list(driver.propagate(session, start=8, count=0))
    assert stats.kept["queries"] == (kept + 1.0, calls + 1)


def test_a_removed_object_is_forgotten() -> None:
    driver = cut("sam2")
    session, run = begun(driver, video(8), 5, {4: (40, 110), 9: (200, 60)})
    run.close()
    driver.model.remove_object(session, 4)
    list(driver.propagate(session, start=5))
    state = driver.state(session)
    assert memory_of(state, 9) is not None and memory_of(state, 4) is None


def test_interleaved_and_copied_sessions(host: str) -> None:
    driver = cut(host, ROUTING, QUERIES, RETRIEVAL)
    interleaved(driver, [video(7, seed) for seed in (1, 2)])
    models_copied(driver)
    copied(driver)


# --- undo, refusals, cost


@pytest.mark.parametrize("retrieval", [(), (RETRIEVAL,)], ids=["alone", "with retrieval"])
def test_desparsify_gives_the_stock_model_back(host: str, retrieval: tuple[Any, ...]) -> None:
    def check(model: Any) -> None:
        view = view_of(model)
        parts = (view.memory_attention(), *view.self_attentions(), *view.cross_attentions())
        assert all(is_patched(part) for part in parts)

    undone(make(host), recipe(ROUTING, QUERIES, *retrieval), check)


def test_a_patched_self_attention_is_refused(host: str) -> None:
    driver = cut(host)
    part = view_of(driver.model).self_attentions()[0]
    surgery.desparsify(driver.model)
    kind = type(part)
    part.forward = lambda *args, **kwargs: kind.forward(part, *args, **kwargs)
    stages = {} if host == SAM3 else {"span": "tiles"}
    tiles = SparseWindowRouting(**{**ROUTING.model_dump(), "stages": stages})
    with pytest.raises(ModelStateError, match="carries its own forward"):
        surgery.sparsify(driver.model, recipe(tiles, QUERIES))
    assert not any(is_patched(module) for module in driver.model.modules())


def test_the_count_of_operations_sees_fewer_queries(host: str) -> None:
    under = require_surgery(cut(host, ROUTING, QUERIES, RETRIEVAL).model)
    third, tenth = (gflop(under, "memory_attention", {"queries": share, "keys": 1.0}) for share in (0.3, 0.1))
    assert tenth < third < 0.5 * stock_gflop(under.host, "memory_attention")
    assert gflop(under, "memory_attention", {"queries": 0.3, "keys": 0.4}) < third


@pytest.mark.parametrize("host", ["sam2"], indirect=True)
def test_compiled_memory_attention_matches_and_does_not_recompile(host: str) -> None:
    """The number of queries changes from frame to frame; the bank is full, so nothing else does."""
    eager, compiled = cut(host, ROUTING, QUERIES), cut(host, ROUTING, QUERIES)
    torch._dynamo.reset()
    counter = CompileCounter()
    view_of(compiled.model).memory_attention().compile(backend=counter)
    runs = []
    for driver in (eager, compiled):
        session = driver.session(video(13))
        driver.click(session, 0, {1: (40, 110)})
        runs.append(driver.propagate(session))
    graphs = []
    for number in range(13):
        forced = [[1], [0, 1], [2, 5, 7], [0, 3, 4, 8]][number % 4]
        for driver in (eager, compiled):
            force(driver.model, forced)
        masks = [next(run)[1][1] for run in runs]
        close([masks[0]], [masks[1]], 5e-5)
        graphs.append(counter.frame_count)
    assert graphs[-1] <= 8, graphs
    assert graphs[-1] == graphs[10], graphs

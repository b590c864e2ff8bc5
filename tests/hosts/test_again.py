"""A frame that is tracked again, on purpose or after an error, is as if tracked once; copies go on. Both hosts."""

from __future__ import annotations

import copy
import pickle
from typing import Any

import pytest
import torch
from torch import Tensor

import surgery
from surgery.hosts import view_of
from tests.hosts.drive import Driver, make, video
from tests.hosts.sessions import begun, gather, same

RECIPES = ("exact", "balanced", "turbo", "memory-only", "published-base-plus")
FRAMES = 6
SPOTS = {7: (70, 120), 9: (200, 60)}


@pytest.fixture(params=("sam2", "transformers"))
def host(request: pytest.FixtureRequest) -> str:
    return request.param


def frame_by_frame(driver: Driver, reverse: bool, again: int) -> tuple[list[Tensor], Any]:
    """Masks of every frame, each tracked once and then `again` times more; only the last ones are returned."""
    session = driver.session(video(FRAMES))
    start = FRAMES - 1 if reverse else 0
    driver.click(session, start, SPOTS)
    masks: list[Tensor] = []
    for frame in reversed(range(FRAMES)) if reverse else range(FRAMES):
        for _ in range(again + 1):
            found = gather(driver, session, start=frame, count=0, reverse=reverse)
        masks += found
    return masks, session


@pytest.mark.parametrize(
    ("recipe", "reverse"), [*((recipe, False) for recipe in RECIPES), ("turbo", True), ("memory-only", True)]
)
def test_tracking_a_frame_again_changes_nothing(host: str, recipe: str, reverse: bool) -> None:
    driver = make(host)
    surgery.sparsify(driver.model, recipe)
    once, _ = frame_by_frame(driver, reverse, 0)
    stats = surgery.status(driver.model)
    again, _ = frame_by_frame(driver, reverse, 2)
    assert same(again, once)
    assert surgery.status(driver.model) == stats


@pytest.mark.parametrize("recipe", RECIPES)
def test_a_retry_after_an_error_is_as_if_there_was_none(host: str, recipe: str) -> None:
    """The error comes in a different part of the model on every frame, the second object's turn included."""
    driver = make(host)
    surgery.sparsify(driver.model, recipe)
    once, _ = frame_by_frame(driver, False, 0)
    view = view_of(driver.model)
    parts = [view.blocks()[6], view.memory_attention(), view.mask_decoder(), driver.model.memory_encoder]
    session = driver.session(video(FRAMES))
    driver.click(session, 0, SPOTS)
    masks = gather(driver, session, start=0, count=0)
    failures = 0
    for frame in range(1, FRAMES):
        calls = 0

        def fail(*_: Any, last: int = frame // 3) -> None:
            nonlocal calls
            calls += 1
            if calls > last:
                raise MemoryError("out of memory")

        handle = parts[frame % 4].register_forward_hook(fail)
        try:
            gather(driver, session, start=frame, count=0)
        except MemoryError:
            failures += 1
        handle.remove()
        masks += gather(driver, session, start=frame, count=0)
    assert failures >= 3
    assert same(masks, once)


@pytest.mark.parametrize("recipe", RECIPES)
def test_features_that_are_gone_are_made_again(host: str, recipe: str) -> None:
    """As after a host's cache was cleared: the frame is encoded a second time, and by the same windows."""
    driver = make(host)
    surgery.sparsify(driver.model, recipe)
    once, _ = frame_by_frame(driver, False, 0)
    session = driver.session(video(FRAMES))
    driver.click(session, 0, SPOTS)
    masks = []
    for frame in range(FRAMES):
        gather(driver, session, start=frame, count=0)
        driver.forget_features(session)
        masks += gather(driver, session, start=frame, count=0)
    assert same(masks, once)


# --- copies


@pytest.mark.parametrize("recipe", RECIPES)
def test_a_copy_goes_on_as_the_original(host: str, recipe: str) -> None:
    driver = make(host)
    surgery.sparsify(driver.model, recipe)
    session, run = begun(driver, video(FRAMES), 4, SPOTS)
    run.close()
    twin = copy.deepcopy(session)
    # 3 is tracked again, then the rest; the original first, so that nothing can be shared by accident.
    expected = gather(driver, session, start=3)
    assert same(gather(driver, twin, start=3), expected)


@pytest.mark.parametrize("copier", [copy.deepcopy, lambda it: pickle.loads(pickle.dumps(it))], ids=["copy", "pickle"])
@pytest.mark.parametrize("recipe", RECIPES)
def test_a_prompt_on_a_copy_reads_no_routed_features(host: str, recipe: str, copier: Any) -> None:
    """The prompt's own mask depends on the features of its frame and on nothing before."""
    driver = make(host)
    surgery.sparsify(driver.model, recipe)
    session, run = begun(driver, video(FRAMES), 4, {1: (40, 110)})
    run.close()
    twin = copier(session)
    for each in (session, twin):
        driver.click(each, 3, {5: (60, 120)})
    frames = [dict(driver.propagate(each, start=3, count=0))[3][5] for each in (session, twin)]
    assert torch.equal(*frames)


@pytest.mark.parametrize("copier", [copy.deepcopy, lambda it: pickle.loads(pickle.dumps(it))], ids=["copy", "pickle"])
def test_after_undo_no_copy_feeds_the_stock_model(host: str, copier: Any) -> None:
    driver = make(host)
    surgery.sparsify(driver.model, "turbo")
    session, run = begun(driver, video(FRAMES), 4, {1: (40, 110)})
    run.close()
    twins = [copier(session), copier(session)]
    gather(driver, twins[1], start=3)  # one has gone on, the other was never used
    surgery.desparsify(driver.model)
    for each in (session, *twins):
        assert not driver.features(each)
        assert not driver.extras(each)


def test_a_pickle_holds_nothing_of_the_surgery(host: str) -> None:
    driver = make(host)
    surgery.sparsify(driver.model, "turbo")
    session, run = begun(driver, video(FRAMES), 4, {1: (40, 110)})
    run.close()
    assert driver.features(session)
    written = pickle.dumps(session)
    assert b"surgery." not in written
    assert not driver.features(pickle.loads(written))


def test_features_of_another_surgery_are_not_read(host: str) -> None:
    """A session of one sparse model, given to another one."""
    one, other = make(host), make(host)
    surgery.sparsify(one.model, "turbo")
    surgery.sparsify(other.model, "turbo")
    session, run = begun(one, video(FRAMES), 4, {1: (40, 110)})
    run.close()
    twin = pickle.loads(pickle.dumps(session))
    for each in (session, twin):
        other.click(each, 3, {5: (60, 120)})
    frames = [dict(other.propagate(each, start=3, count=0))[3][5] for each in (session, twin)]
    assert torch.equal(*frames)

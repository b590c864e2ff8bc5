"""What must hold of videos and models under any recipe, on either host."""

from __future__ import annotations

import copy
import pickle
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

import surgery
from surgery.recipe import Recipe
from tests.hosts.drive import Driver, video


def same(left: list[Tensor], right: list[Tensor]) -> bool:
    return len(left) == len(right) and all(torch.equal(a, b) for a, b in zip(left, right, strict=True))


def close(left: list[Tensor], right: list[Tensor], tolerance: float) -> None:
    assert len(left) == len(right)
    for a, b in zip(left, right, strict=True):
        assert (a - b).abs().max() <= tolerance


def gather(driver: Driver, session: Any, **how: Any) -> list[Tensor]:
    return [mask for _, masks in driver.propagate(session, **how) for mask in masks.values()]


def interleaved(driver: Driver, clips: list[Tensor]) -> list[Any]:
    """Assert that videos tracked in turn, frame by frame, give what each gives alone; returns their sessions."""
    alone = []
    for clip in clips:
        session = driver.session(clip)
        driver.click(session, 0, {3: (40, 110)})
        alone.append(gather(driver, session))
    sessions = [driver.session(clip) for clip in clips]
    for session in sessions:
        driver.click(session, 0, {3: (40, 110)})
    runs = [driver.propagate(session) for session in sessions]
    together: list[list[Tensor]] = [[] for _ in clips]
    for _ in range(len(clips[0])):
        for slot, run in enumerate(runs):
            together[slot] += next(run)[1].values()
    assert all(same(together[slot], alone[slot]) for slot in range(len(clips)))
    return sessions


def begun(driver: Driver, clip: Tensor, frames: int, points: dict[int, tuple[int, int]], **how: Any) -> tuple[Any, Any]:
    """A session whose objects were clicked on frame 0, and its propagation after so many frames."""
    session = driver.session(clip)
    driver.click(session, 0, points)
    run = driver.propagate(session, **how)
    for _ in range(frames):
        next(run)
    return session, run


def copied(driver: Driver) -> None:
    """Assert that a session in progress can be copied and pickled, and that the copies go on."""
    session, run = begun(driver, video(8), 4, {1: (40, 110)})
    run.close()
    for twin in (copy.deepcopy(session), pickle.loads(pickle.dumps(session))):
        masks = gather(driver, twin, start=3)
        assert len(masks) == 5
        assert all(torch.isfinite(mask).all() for mask in masks)


def models_copied(driver: Driver) -> None:
    """Assert that copies of a model under surgery track as it does."""
    expected = driver.track(video(7))
    for twin in (copy.deepcopy(driver.model), pickle.loads(pickle.dumps(driver.model))):
        assert same(type(driver)(twin).track(video(7)), expected)


def reset_forgets(driver: Driver) -> None:
    """Assert that a session that was reset tracks as a new one does."""
    fresh = driver.session(video(8))
    driver.click(fresh, 2, {1: (40, 110)})
    expected = gather(driver, fresh, start=2)
    used = driver.session(video(8))
    driver.click(used, 0, {1: (200, 50)})
    gather(driver, used)
    driver.reset(used)
    driver.click(used, 2, {1: (40, 110)})
    assert same(gather(driver, used, start=2), expected)


def undone(driver: Driver, recipe: Recipe, check: Callable[[Any], None] = lambda model: None) -> None:
    """Assert that `disabled` and `desparsify` give the stock model back. check: of the model under surgery."""
    model = driver.model
    classes = [type(module) for module in model.modules()]
    attributes = [set(vars(module)) for module in model.modules()]
    stock = driver.track(video(6))
    surgery.sparsify(model, recipe)
    check(model)
    assert not same(driver.track(video(6)), stock)
    with surgery.disabled(model):
        assert same(driver.track(video(6)), stock)
    surgery.desparsify(model)
    assert [type(module) for module in model.modules()] == classes
    assert [set(vars(module)) for module in model.modules()] == attributes
    assert same(driver.track(video(6)), stock)

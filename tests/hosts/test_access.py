"""Who has the model: callers that want it dense, frames, and calls that change it. Both hosts."""

from __future__ import annotations

import asyncio
import contextvars
import threading
from collections.abc import Callable
from typing import Any

import pytest
from torch import Tensor

import surgery
from surgery import ModelStateError
from tests.hosts.drive import BUSIEST, HOSTS, Driver, make, video
from tests.hosts.sessions import begun, gather, same

CLICK = {1: (40, 110)}


@pytest.fixture(params=HOSTS)
def driver(request: pytest.FixtureRequest) -> Driver:
    return make(request.param)


def in_thread(work: Callable[[], Any]) -> tuple[threading.Thread, list[Any], list[BaseException]]:
    results: list[Any] = []
    errors: list[BaseException] = []

    def run() -> None:
        try:
            results.append(work())
        except BaseException as error:
            errors.append(error)

    thread = threading.Thread(target=run)
    thread.start()
    return thread, results, errors


def tracked(driver: Driver, frames: Tensor) -> list[Tensor]:
    session = driver.session(frames)
    driver.click(session, 0, CLICK)
    return gather(driver, session)


# --- disabled


def test_contexts_closed_in_the_order_they_were_opened(driver: Driver) -> None:
    surgery.sparsify(driver.model, "balanced")
    first, second = surgery.disabled(driver.model), surgery.disabled(driver.model)
    first.__enter__()
    second.__enter__()
    first.__exit__(None, None, None)
    assert not surgery.status(driver.model).enabled
    second.__exit__(None, None, None)
    assert surgery.status(driver.model).enabled


def test_disabled_belongs_to_the_thread(driver: Driver) -> None:
    surgery.sparsify(driver.model, "balanced")
    alone = tracked(driver, video(5))
    with surgery.disabled(driver.model):
        thread, results, errors = in_thread(lambda: tracked(driver, video(5)))
        thread.join()
        dense = tracked(driver, video(5))
    assert not errors
    assert same(results[0], alone)
    assert not same(dense, alone)


def test_disabled_belongs_to_the_task(driver: Driver) -> None:
    surgery.sparsify(driver.model, "balanced")
    seen = {}

    async def dense() -> None:
        with surgery.disabled(driver.model):
            await asyncio.sleep(0)
            seen["dense"] = surgery.status(driver.model).enabled
            await asyncio.sleep(0)

    async def sparse() -> None:
        await asyncio.sleep(0)
        seen["sparse"] = surgery.status(driver.model).enabled

    async def both() -> None:
        await asyncio.gather(dense(), sparse())

    asyncio.run(both())
    assert seen == {"dense": False, "sparse": True}


def test_a_context_closed_elsewhere_is_closed(driver: Driver) -> None:
    surgery.sparsify(driver.model, "balanced")
    context = surgery.disabled(driver.model)
    context.__enter__()
    contextvars.Context().run(context.__exit__, None, None, None)
    assert surgery.status(driver.model).enabled


def test_disabled_is_of_one_model() -> None:
    one, other = make("sam2").model, make("sam2").model
    surgery.sparsify(one, "balanced")
    surgery.sparsify(other, "balanced")
    with surgery.disabled(one):
        assert not surgery.status(one).enabled
        assert surgery.status(other).enabled


# --- surgery while frames run


@pytest.mark.parametrize("change", [lambda model: surgery.sparsify(model, "fast"), surgery.desparsify])
def test_a_call_from_inside_a_frame_is_refused(driver: Driver, change: Callable[[Any], Any]) -> None:
    surgery.sparsify(driver.model, "balanced")
    expected = tracked(driver, video(5))
    errors: list[Exception] = []

    def hook(*_: Any) -> None:
        try:
            change(driver.model)
        except Exception as error:
            errors.append(error)

    handle = driver.model.memory_attention.register_forward_hook(hook)
    masks = tracked(driver, video(5))
    handle.remove()
    assert len(errors) == 4
    assert all(isinstance(error, ModelStateError) and "frame" in str(error) for error in errors)
    assert surgery.status(driver.model).recipe.metadata.name == "balanced"
    assert same(masks, expected)


@pytest.mark.parametrize("objects", [1, 3])
@pytest.mark.parametrize("change", [lambda model: surgery.sparsify(model, "fast"), surgery.desparsify])
def test_a_call_from_another_thread_waits_for_the_frame(
    driver: Driver, objects: int, change: Callable[[Any], Any]
) -> None:
    """The change is asked for in the middle of the second frame; that frame is still whole."""
    spots = {7 + index: (40 + 60 * index, 110) for index in range(objects)}
    surgery.sparsify(driver.model, "balanced")
    session = driver.session(video(6))
    driver.click(session, 0, spots)
    expected = gather(driver, session, count=1)

    session = driver.session(video(6))
    driver.click(session, 0, spots)
    frames = driver.propagate(session)
    masks = list(next(frames)[1].values())
    started: list[Any] = []

    def hook(*_: Any) -> None:
        if not started:
            started.append(in_thread(lambda: change(driver.model)))
            started[0][0].join(0.2)
            assert started[0][0].is_alive()

    handle = driver.model.memory_attention.register_forward_hook(hook)
    masks += next(frames)[1].values()
    handle.remove()
    assert same(masks, expected)
    thread, _, errors = started[0]
    thread.join(20)  # the generator is suspended here and must hold nothing
    assert not thread.is_alive() and not errors
    assert len(list(frames)) == 4


def test_a_frame_that_waited_runs_on_the_model_it_finds(driver: Driver) -> None:
    """Threads that wait for the surgery while it is undone go on with the stock model."""
    stock = tracked(driver, video(4))
    surgery.sparsify(driver.model, "balanced")
    threads = [in_thread(lambda: [tracked(driver, video(4)) for _ in range(3)]) for _ in range(2)]
    for recipe in (BUSIEST[driver.host], "fast", "balanced"):
        surgery.sparsify(driver.model, recipe)
    surgery.desparsify(driver.model)
    for thread, _, errors in threads:
        thread.join()
        assert not errors
    assert same(tracked(driver, video(4)), stock)


def test_two_threads_that_sparsify_leave_one_surgery(driver: Driver) -> None:
    stock = tracked(driver, video(4))
    classes = [type(module) for module in driver.model.modules()]
    threads = [in_thread(lambda: surgery.sparsify(driver.model, "balanced")) for _ in range(4)]
    for thread, _, errors in threads:
        thread.join()
        assert not errors
    surgery.desparsify(driver.model)
    assert [type(module) for module in driver.model.modules()] == classes
    assert same(tracked(driver, video(4)), stock)


def test_a_suspended_video_holds_nothing(driver: Driver) -> None:
    surgery.sparsify(driver.model, "balanced")
    _, run = begun(driver, video(6), 3, CLICK)
    thread, _, errors = in_thread(lambda: surgery.desparsify(driver.model))
    thread.join(20)
    assert not thread.is_alive() and not errors
    assert len(list(run)) == 3

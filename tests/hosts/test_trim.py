"""Operation `trim_caches` on either host: what a session holds, counted in bytes, and that results do not change."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import Tensor

import surgery
from benchmarks.work import held_bytes
from surgery import ModelStateError, RecipeError
from surgery.hosts import view_of
from surgery.operations import SparseWindowRouting, TrimCaches
from surgery.recipe import Recipe
from tests.hosts.drive import HOSTS, STEADY, Driver, TransformersDriver, make, square, video
from tests.hosts.sessions import gather, same

SPOTS = {1: (70, 120), 3: (200, 60), 5: (60, 210)}


@pytest.fixture(params=HOSTS)
def host(request: pytest.FixtureRequest) -> str:
    return request.param


def trimmed(*operations: Any, **fields: Any) -> Recipe:
    return Recipe(
        metadata={"name": "trimmed", "description": "Caches trimmed."}, operations=[*operations, TrimCaches(**fields)]
    )


def stores(session: Any) -> dict[int, dict[str, dict[int, Any]]]:
    found: dict[int, dict[str, dict[int, Any]]]
    found = session["output_dict_per_obj"] if isinstance(session, dict) else session.output_dict_per_obj
    return found


def stream(driver: Driver, session: Any, frames: Tensor) -> list[tuple[list[Tensor], int]]:
    """Masks and bytes held after every frame; frames are given one by one where the host streams."""
    if not isinstance(driver, TransformersDriver):
        steps = driver.propagate(session)
        return [(list(masks.values()), held_bytes(session)) for _, masks in steps]
    driver.click(session, 0, SPOTS)
    out = []
    for number in range(len(frames)):
        masks = driver.model(session, frame=frames[number].clone()).pred_masks
        out.append(([each[0].clone() for each in masks], held_bytes(session)))
    return out


def begin(driver: Driver, frames: Tensor) -> Any:
    if isinstance(driver, TransformersDriver):
        return driver.session(None)
    session = driver.session(frames)
    driver.click(session, 0, SPOTS)
    return session


@pytest.mark.parametrize("operations", [(), STEADY.operations], ids=["alone", "sparse"])
def test_a_trimmed_stream_holds_no_more_and_changes_nothing(host: str, operations: tuple[Any, ...]) -> None:
    frames = video(21)
    driver = make(host)
    plain = Recipe(metadata={"name": "plain", "description": "Not trimmed."}, operations=operations or [TrimCaches()])
    surgery.sparsify(driver.model, plain)
    untrimmed = stream(driver, begin(driver, frames), frames)
    surgery.sparsify(driver.model, trimmed(*operations, frames=15, images=host != "sam2"))
    session = begin(driver, frames)
    steps = stream(driver, session, frames)
    assert all(same(a[0], b[0]) for a, b in zip(steps, untrimmed, strict=True))
    assert steps[-1][1] == steps[-5][1], "flat once the kept frames are there"
    assert untrimmed[-1][1] - untrimmed[-5][1] > 4 * 3 * 40_000, "so much is kept without trimming"
    assert all(list(store["non_cond_frame_outputs"]) == list(range(5, 21)) for store in stores(session).values())
    tracked = session["frames_tracked_per_obj"] if host == "sam2" else session.frames_tracked_per_obj
    assert all(len(frames) <= 16 for frames in tracked.values())


def test_the_surgery_keeps_nothing_of_a_frame_that_the_host_does_not(host: str) -> None:
    """Without trimming, a sparse session grows by what a stock one grows by, to the byte."""
    frames = video(13)
    driver = make(host)
    growth = []
    for recipe in (None, STEADY):
        if recipe is not None:
            surgery.sparsify(driver.model, recipe)
        steps = stream(driver, begin(driver, frames), frames)
        growth.append(steps[-1][1] - steps[-4][1])
    assert growth[0] == growth[1] > 0


def test_trimming_alone_is_stock(host: str) -> None:
    driver = make(host)
    stock = driver.track(video(19), 2)
    surgery.sparsify(driver.model, trimmed(frames=15))
    assert same(driver.track(video(19), 2), stock)
    backwards = make(host)
    session = backwards.session(video(19))
    backwards.mask(session, 18, {1: square(90, 85)})
    stock = gather(backwards, session, start=18, reverse=True)
    session = driver.session(video(19))
    driver.mask(session, 18, {1: square(90, 85)})
    assert same(gather(driver, session, start=18, reverse=True), stock)
    assert len(stock) == 19
    assert max(stores(session)[0]["non_cond_frame_outputs"]) == 15, "backwards, the frames behind are the later ones"


def test_forgotten_frames_can_be_prompted_and_tracked_again(host: str) -> None:
    """The documented loss: to the host a forgotten frame is one that was never tracked."""
    driver = make(host)
    surgery.sparsify(driver.model, trimmed(*STEADY.operations, frames=15))
    session = driver.session(video(24))
    driver.click(session, 0, {1: (70, 120)})
    gather(driver, session)
    assert 4 not in stores(session)[0]["non_cond_frame_outputs"]
    driver.mask(session, 4, {1: square(40, 90)})
    assert len(gather(driver, session, start=4, count=3)) == 4
    assert set(stores(session)[0]["cond_frame_outputs"]) == {0, 4}


def test_a_frame_whose_image_is_gone_says_so() -> None:
    driver = make("transformers")
    assert isinstance(driver, TransformersDriver)
    surgery.sparsify(driver.model, trimmed(frames=15, images=True))
    frames = video(20)
    session = driver.session(None)
    stream(driver, session, frames)
    assert session.num_frames == 20
    blank = [number for number, image in session.processed_frames.items() if not image.numel()]
    assert blank == [0, 1, 2, 3]
    assert len({id(session.processed_frames[number]) for number in blank}) == 1, "not an object per frame"
    with pytest.raises(ModelStateError, match=r"frame 2 is needed again.*add_new_frame"):
        driver.mask(session, 2, {1: square(40, 90)})
    session.add_new_frame(frames[2], 2)
    driver.mask(session, 2, {1: square(40, 90)})


def test_only_what_was_asked_for_is_dropped() -> None:
    driver = make("transformers")
    keys = {}
    for name, fields in {"masks": {"positions": False}, "positions": {"high_res_masks": False}}.items():
        surgery.sparsify(driver.model, trimmed(**fields))
        videos = [driver.session(video(5)) for _ in range(2)]
        driver.click(videos[0], 0, {1: (70, 120), 3: (200, 60)})
        driver.click(videos[1], 0, {1: (70, 120)})
        for _ in zip(*(driver.propagate(each) for each in videos), strict=True):
            pass
        kept = [output for store in stores(videos[0])[0].values() for output in store.values()]
        assert len(kept) == 5
        codes = {output["maskmem_pos_enc"].untyped_storage().data_ptr() for output in kept}
        keys[name] = ("high_res_masks" in kept[0], "high_res_masks" in kept[3], len(codes) == 1)
    assert keys == {"masks": (False, False, False), "positions": (True, True, True)}


def test_nothing_is_trimmed_while_disabled(host: str) -> None:
    driver = make(host)
    surgery.sparsify(driver.model, trimmed(frames=15))
    with surgery.disabled(driver.model):
        session = driver.session(video(20))
        driver.click(session, 0, {1: (70, 120)})
        gather(driver, session)
    assert len(stores(session)[0]["non_cond_frame_outputs"]) == 19


def test_fewer_frames_than_the_model_reads_are_refused(host: str) -> None:
    driver = make(host)
    assert reach_of(driver) == 15
    with pytest.raises(RecipeError, match=r"frames 14.*reads up to 15.*or null"):
        surgery.sparsify(driver.model, trimmed(SparseWindowRouting(), frames=14))
    assert not surgery.status(driver.model).sparse
    if host == "sam2":
        driver.model.memory_temporal_stride_for_eval = 4
        with pytest.raises(RecipeError, match=r"frames 20.*reads up to 21"):
            surgery.sparsify(driver.model, trimmed(frames=20))


def reach_of(driver: Driver) -> int:
    return view_of(driver.model).memory_horizon()


@pytest.mark.parametrize("stride", [1, 4])
def test_a_stride_reads_as_far_as_it_says(stride: int) -> None:
    driver = make("sam2")
    driver.model.memory_temporal_stride_for_eval = stride
    frames = reach_of(driver)
    stock = driver.track(video(30))
    surgery.sparsify(driver.model, trimmed(frames=frames))
    assert same(driver.track(video(30)), stock)


def test_a_copy_of_the_model_trims_too(host: str) -> None:
    driver = make(host)
    surgery.sparsify(driver.model, trimmed(frames=15))
    driver.model = copy.deepcopy(driver.model)
    recipe = surgery.status(driver.model).recipe
    assert recipe is not None and recipe.find(TrimCaches) == TrimCaches(frames=15)
    with torch.inference_mode():
        session = driver.session(video(18))
        driver.click(session, 0, {1: (70, 120)})
        gather(driver, session)
    assert len(stores(session)[0]["non_cond_frame_outputs"]) == 16

"""Recipe operation `cuda_graphs`, with a tape in the place of CUDA's graphs: the same masks out of few recordings."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from torch import Tensor

import surgery
from surgery import Recipe
from surgery.core import region
from surgery.core.frame import FrameContext
from surgery.core.session import VideoState
from surgery.engine import require_surgery
from surgery.operations import CudaGraphs, Precision, SparseQueryRouting
from surgery.operations.cuda_graphs import SIGHTINGS, Recordings
from tests.hosts.drive import PADDED, SAM3, UNPADDED, Driver, make, video
from tests.hosts.routes import force, router_of
from tests.hosts.sessions import close, interleaved, same
from tests.tape import Idle, TapeRecorder

HOSTS = ("sam2", "transformers")
ONE, THREE = {1: (40, 110)}, {1: (40, 110), 2: (180, 60), 7: (90, 200)}
SURE = ["routing.object.unsure=null", "retrieval.unsure=null"]
"""Random weights are unsure of every mask."""


@pytest.fixture(params=HOSTS)
def host(request: pytest.FixtureRequest) -> str:
    return request.param


@pytest.fixture(autouse=True)
def _idle() -> Iterator[None]:
    with Idle():
        yield


def operated(driver: Driver, name: str, tape: TapeRecorder | None, overrides: list[str] | None = None) -> Recordings:
    """Under a recipe with recordings; without a `tape` nothing can be recorded here."""
    surgery.sparsify(driver.model, Recipe.load(name, overrides or []).with_operation(CudaGraphs()))
    found = require_surgery(driver.model).find(Recordings)
    assert found is not None
    found.recorders = {"cpu": tape} if tape is not None else {}
    return found


def tracked(driver: Driver, clip: Tensor, points: dict[int, tuple[int, int]]) -> list[Tensor]:
    session = driver.session(clip)
    driver.click(session, 0, points)
    return [mask for _, masks in driver.propagate(session) for mask in masks.values()]


@pytest.mark.parametrize(
    ("name", "windows", "points"),
    [
        ("exact", UNPADDED, ONE),
        ("balanced", PADDED, ONE),
        ("balanced", UNPADDED, THREE),
        ("turbo", PADDED, THREE),
    ],
    ids=["exact", "balanced padded", "balanced three", "turbo padded three"],
)
def test_replayed_masks_are_those_of_eager(host: str, name: str, windows: Any, points: Any) -> None:
    """Outputs of a recording are overwritten by its next replay: nothing may be kept by reference."""
    clip, tape = video(22), TapeRecorder()
    eager, driver = make(host, windows), make(host, windows)
    operated(eager, name, None)
    found = operated(driver, name, tape)
    assert same(tracked(driver, clip, points), tracked(eager, clip, points))
    assert all(calls["replayed"] for calls in found.calls.values()), found.calls
    assert tape.played == sum(calls["replayed"] for calls in found.calls.values())


@pytest.mark.parametrize(
    ("name", "windows"),
    [("streaming", PADDED), ("faithful", PADDED), ("fast", UNPADDED), ("turbo", PADDED), ("turbo", UNPADDED)],
    ids=["streaming padded", "faithful padded", "fast", "turbo padded", "turbo"],
)
def test_a_full_bank_meets_no_new_shape(name: str, windows: Any) -> None:
    """Whatever the choice of windows, pieces, keys and queries, at most three sizes and a dense frame."""
    driver = make("sam2", windows)
    found = operated(driver, name, TapeRecorder(), SURE)
    clip = torch.cat([video(40), video(40, seed=3).flip(-1)])
    session = driver.session(clip)
    driver.click(session, 0, ONE)
    run = driver.propagate(session)
    chosen, shapes = set(), []
    for _ in range(len(clip)):
        next(run)
        last = require_surgery(driver.model).stats.last
        chosen.add(last.windows if last is not None else None)
        assert last is None or name != "streaming" or (len(last.windows), last.dense, last.widened) == (3, None, None)
        shapes.append(found.calls["memory_attention"]["new shape"])
    assert len(chosen) > 2, "the choice changes"
    kinds = {part: sum(kind[0] == part for kind in found.seen) for part in found.calls}
    assert kinds["encoder"] <= 5, "three sizes, the first routed frame, and a dense one"
    # The cut at 40 makes a dense frame.
    assert shapes[39] == shapes[20] and shapes[-1] == shapes[45], f"memory attention meets new shapes: {shapes}"


def test_sam3_is_replayed_like_sam2() -> None:
    driver, eager, tape = make(SAM3), make(SAM3), TapeRecorder()
    operated(driver, "balanced", tape)
    operated(eager, "balanced", None)
    assert same(tracked(driver, video(8), ONE), tracked(eager, video(8), ONE))
    assert tape.played


@pytest.mark.parametrize(("name", "overrides"), [("balanced", []), ("turbo", ["routing.stages.early=1.0"])])
def test_filled_windows_change_masks_by_rounding(name: str, overrides: list[str]) -> None:
    """Queries and pieces, of which there may be more under recordings, are left out."""
    filled, plain = make("sam2", PADDED), make("sam2", PADDED)
    recipe = Recipe.load(name, overrides).without(SparseQueryRouting)
    surgery.sparsify(plain.model, recipe)
    surgery.sparsify(filled.model, recipe.with_operation(CudaGraphs()))
    for each in (filled, plain):
        force(each.model, [1, 2, 5, 8])
    assert router_of(filled.model).grid.filled and not router_of(plain.model).grid.filled
    close(tracked(filled, video(6), ONE), tracked(plain, video(6), ONE), 1e-4)


def test_two_videos_share_the_recordings(host: str) -> None:
    driver = make(host)
    found = operated(driver, "balanced", TapeRecorder())
    interleaved(driver, [video(20), video(20, seed=2)])
    assert len(found.calls["encoder"]) == 2 and found.calls["encoder"]["replayed"] > 60


@contextmanager
def scaled(model: Any, by: float) -> Iterator[None]:
    weight = next(each for name, each in model.named_parameters() if "blocks.4" in name and each.ndim == 2)
    before = weight.detach().clone()
    with torch.no_grad():
        weight.mul_(by)
    yield
    with torch.no_grad():
        weight.copy_(before)


def test_changed_weights_are_read_by_recordings_made_before(host: str) -> None:
    clip, tape = video(8), TapeRecorder()
    driver, eager = make(host), make(host)
    operated(driver, "balanced", tape)
    operated(eager, "balanced", None)
    plain = tracked(driver, clip, ONE)
    made = tape.made
    with scaled(driver.model, 0.5), scaled(eager.model, 0.5):
        changed = tracked(driver, clip, ONE)
        assert same(changed, tracked(eager, clip, ONE))
    assert not same(changed, plain)
    assert same(tracked(driver, clip, ONE), plain)
    encoder = view(driver)
    for parameter in encoder.parameters():
        parameter.data = parameter.data.clone()
    assert same(tracked(driver, clip, ONE), plain)
    assert tape.made > made, "weights that lie elsewhere are recorded anew"


def view(driver: Driver) -> torch.nn.Module:
    return require_surgery(driver.model).host.image_encoder()


@pytest.mark.parametrize("cast", [None, "weights", "autocast"])
def test_casts_are_made_anew_in_every_replay(cast: Any) -> None:
    """By the recipe, or (None) by a caller whose autocast keeps casts."""
    clip, found = video(8), []
    for tape in (TapeRecorder(), None):
        driver = make("sam2")
        recordings = operated(driver, "balanced", tape)
        if cast is not None:
            recipe = require_surgery(driver.model).recipe
            assert recipe is not None
            surgery.sparsify(driver.model, recipe.with_operation(Precision(dtype="bf16", cast=cast)))
            again = require_surgery(driver.model).find(Recordings)
            assert again is not None
            recordings = again
            recordings.recorders = {"cpu": tape} if tape is not None else {}
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=cast is None):
            found.append(tracked(driver, clip, ONE))
        assert bool(recordings.calls["encoder"]["replayed"]) == (tape is not None), recordings.calls
    assert same(*found)


def test_undo_and_copies_leave_nothing(host: str) -> None:
    driver, stock = make(host), make(host)
    found = operated(driver, "balanced", TapeRecorder())
    clip = video(6)
    tracked(driver, clip, ONE)
    twin = copy.deepcopy(driver.model)
    copied = require_surgery(twin).find(Recordings)
    assert copied is not None and not copied.seen and "cuda" in copied.recorders
    surgery.desparsify(driver.model)
    assert not found.seen
    assert same(tracked(driver, clip, ONE), tracked(stock, clip, ONE))


def test_what_cannot_be_recorded_runs_as_it_is_and_is_told(host: str) -> None:
    driver = make(host)
    found = operated(driver, "balanced", None)
    tracked(driver, video(4), ONE)
    assert found.calls["encoder"] == {"on cpu": 4}
    status = surgery.status(driver.model)
    assert status.recorded_calls is not None
    assert status.recorded_calls["encoder"] == {"on cpu": 4}
    assert "encoder on cpu 4" in str(status)
    limited = make(host)
    surgery.sparsify(limited.model, Recipe.load("exact").with_operation(CudaGraphs(limit=1)))
    few = require_surgery(limited.model).find(Recordings)
    few.recorders = {"cpu": TapeRecorder()}
    for _ in range(SIGHTINGS + 2):
        tracked(limited, video(3), ONE)
    assert few.calls["memory_attention"]["too many shapes"]
    assert sum(kind[0] == "memory_attention" for kind in few.seen if few.recorded(kind)) == 1


class TestRegions:
    """A region that could not be replayed is not recorded."""

    def region(self, run: Any, *given: Tensor, record: Any = None) -> region.Region:
        driver = make("sam2")
        found = require_surgery(surgery.sparsify(driver.model, "exact"))
        what = region.Given(given, {}, {})
        module = torch.nn.Linear(3, 3)
        return region.Region(found, module, what, lambda args, kwargs: run(*args), record or TapeRecorder(), [])

    def test_tensors_from_elsewhere(self) -> None:
        held = torch.ones(3)
        with pytest.raises(region.UnfitError, match=r"reads a tensor \(3,\) that is not the model's"):
            self.region(lambda given: given + held, torch.zeros(3))

    def test_values(self) -> None:
        with pytest.raises(region.UnfitError, match="reads a value"):
            self.region(lambda given: given * float(given.sum()), torch.ones(3))

    def test_a_recording_that_fails(self) -> None:
        def record(run: Any, inputs: list[Tensor]) -> Any:
            raise RuntimeError("operation not permitted when stream is capturing\nCUDA kernel errors might be")

        with pytest.raises(region.UnfitError, match="cannot be recorded: operation not permitted when stream is c"):
            self.region(lambda given: given + 1, torch.ones(3), record=record)

    def test_gaps(self) -> None:
        with pytest.raises(region.UnfitError, match="gaps or overlaps"):
            self.region(lambda given: given + 1, torch.ones(3, 4)[:, :2])

    def test_changes_that_are_no_tensors(self) -> None:
        found = require_surgery(surgery.sparsify(make("sam2").model, "exact"))
        notes = {"records": {"count": [1, None]}, "decoder_inputs": None}
        what = region.Given((torch.ones(3),), {}, notes)

        def run(args: Any, kwargs: Any) -> Tensor:
            records = found.context.records
            records["count"][1] = args[0] + 1
            records["count"][0] += more
            return args[0] * 2

        frame = FrameContext(0, VideoState(None), None, records=notes["records"])
        with found.within(frame):
            more = 0
            made = region.Region(found, torch.nn.Linear(3, 3), what, run, TapeRecorder(), [])
            close([made(what), notes["records"]["count"][1]], [torch.full((3,), 2.0)] * 2, 0)
            more = 1
            with pytest.raises(region.UnfitError, match="changes 0, which is no tensor"):
                region.Region(found, torch.nn.Linear(3, 3), what, run, TapeRecorder(), [])

    def test_expanded_inputs_and_constants(self) -> None:
        given = torch.arange(3.0)[:, None].expand(3, 4)
        found = self.region(lambda tensor: (tensor + 1, tensor), given)
        other = (2 * torch.arange(3.0))[:, None].expand(3, 4)
        made, passed = found(region.Given((other,), {}, {}))
        close([made, passed], [other + 1, other], 0)

"""What is not of the package: two operations and a host, defined here, of which no file of the package knows.

`resting_memory` needs the objects' masks and remembers something of each object: it gives an object that hardly moved
its conditioned features of the frame before. `thin_blocks` leaves out encoder blocks, also of those that window routing
routes.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Literal

import pytest
import torch
from pydantic import Field
from torch import Tensor, nn

import surgery
from surgery.adapters import read_adapter
from surgery.calibration import calibrate
from surgery.core.attention import ConditionedBy, MemoryCall
from surgery.core.cost import CostModel, gflop
from surgery.core.evidence import EvidenceSettings
from surgery.core.frame import FrameContext
from surgery.core.host import HostView
from surgery.core.operation import Bound, Operation, Patch, register
from surgery.core.parts import ATTENTION, Part
from surgery.core.seams import BlockCall
from surgery.core.session import State
from surgery.core.surgery import Surgery
from surgery.demo import model as demo
from surgery.engine import require_surgery
from surgery.errors import RecipeError
from surgery.operations import SparseWindowRouting
from surgery.recipe import Recipe
from tests.calibration.test_calibrate import clip_of
from tests.hosts.drive import Driver, make, video
from tests.hosts.sessions import begun, gather, interleaved, same

HOSTS = ("sam2", "transformers")


class RestingMemory(Operation):
    """An object whose mask changed little keeps its conditioned features for some frames."""

    type: Literal["resting_memory"] = "resting_memory"
    rest: int = Field(2, ge=0, le=100, description="frames in a row at most")
    still: float = Field(0.2, gt=0.0, le=1.0, description="share of the mask that may change")

    alias: ClassVar[str] = "resting"
    share: ClassVar[str | None] = "attended"

    @property
    def approximate(self) -> bool:
        return self.rest > 0

    @property
    def evidence(self) -> EvidenceSettings:
        return EvidenceSettings()

    def bind(self, surgery: Surgery, before: Bound[Any] | None) -> BoundResting:
        return BoundResting(self, surgery)

    def allowed(self, kept: Mapping[str, float]) -> float:
        return 1.0 / (1 + self.rest)


@dataclass(eq=False)
class Rested(State):
    """output: conditioned features when last computed; mask: of then; frames: rested since."""

    output: Tensor | None = None
    mask: Tensor | None = None
    frames: int = 0

    def jumped(self) -> None:
        self.output = None


class BoundResting(Bound[RestingMemory]):
    saves_in: ClassVar[Part] = ATTENTION

    def patches(self) -> Iterator[Patch]:
        yield Patch("memory_attention", self._attend)

    def _attend(self, context: FrameContext, call: MemoryCall, proceed: ConditionedBy) -> Tensor:
        step, settings = context.step, self.settings
        assert step is not None
        state = context.video.of_object(Rested, step.obj_id, step.reverse)
        found = context.video.evidence.get(step.obj_id)
        mask = found.mask if found is not None and found.frame == step.previous else None
        rests = state.output is not None and state.frames < settings.rest and context.observer is None
        if rests and mask is not None and state.mask is not None:
            rests = bool((mask ^ state.mask).sum() <= settings.still * mask.sum())
        context.video.count("attended", 0.0 if rests else 1.0, step.obj_id)
        if rests:
            state.frames += 1
            assert state.output is not None
            return state.output
        state.output, state.mask, state.frames = proceed(call), mask, 0
        return state.output

    def pretend(self, context: FrameContext, kept: Mapping[str, float]) -> None:
        if kept.get("attended", 1.0) < 0.5 and context.step is not None:
            side = self.surgery.host.frame_side()
            rested = Rested(torch.zeros(side**2, 1, 1))
            context.video.set_object(rested, context.step.obj_id, context.step.reverse)


class ThinBlocks(Operation):
    """These encoder blocks are left out on tracked frames."""

    type: Literal["thin_blocks"] = "thin_blocks"
    blocks: tuple[int, ...] = Field((4,), description="numbers")

    alias: ClassVar[str] = "thin"
    order: ClassVar[int] = -5

    @property
    def approximate(self) -> bool:
        return bool(self.blocks)

    def check(self, host: HostView) -> list[nn.Module]:
        for index in self.blocks:
            if not 0 <= index < len(host.blocks()):
                raise RecipeError(f"thin_blocks: no block {index}, expected one below {len(host.blocks())}")
        return [host.blocks()[index] for index in self.blocks]

    def bind(self, surgery: Surgery, before: Bound[Any] | None) -> BoundThin:
        return BoundThin(self, surgery)


class BoundThin(Bound[ThinBlocks]):
    def patches(self) -> Iterator[Patch]:
        yield from (Patch("block", self._left_out, index) for index in self.settings.blocks)

    def _left_out(
        self, context: FrameContext, block: BlockCall, tokens: Tensor, proceed: Callable[[Tensor], Tensor]
    ) -> Tensor:
        if context.dense or context.observer is not None:
            return proceed(tokens)
        context.sparse = True
        return tokens


@pytest.fixture(autouse=True)
def _registered(monkeypatch: pytest.MonkeyPatch) -> None:
    import surgery.core.operation as room

    monkeypatch.setattr(room, "_KINDS", dict(room._KINDS))
    register(RestingMemory)
    register(ThinBlocks)


RESTING = """
schema: 1
metadata: {name: resting, description: Objects rest.}
operations:
  - {type: resting_memory, rest: 3}
"""
THIN = """
schema: 1
metadata: {name: thin, description: Routed windows and thin blocks.}
operations:
  - {type: sparse_window_routing, temporal: true, rolling: 1, budget: 0.5, fill: true}
  - {type: thin_blocks, blocks: [4, 6]}
"""
RECIPES = {"resting": RESTING, "thin": THIN}


def recipe(name: str) -> Recipe:
    if name == "both":
        operations = (*Recipe.parse(THIN).operations, RestingMemory(rest=3))
        return Recipe(metadata=Recipe.parse(THIN).metadata, operations=operations)
    return Recipe.parse(RECIPES[name])


def cut(host: str, name: str) -> Driver:
    driver = make(host)
    surgery.sparsify(driver.model, recipe(name))
    return driver


CASES = pytest.mark.parametrize(("host", "name"), [(host, name) for host in HOSTS for name in (*RECIPES, "both")])


@CASES
def test_it_has_an_effect_and_is_undone(host: str, name: str) -> None:
    driver, stock = cut(host, name), make(host)
    clip = video(9)
    found, expected = driver.track(clip, 2), stock.track(clip, 2)
    assert not same(found, expected) and same(found[:2], expected[:2]), "a prompted frame is dense"
    status = surgery.status(driver.model)
    assert status.operations == tuple(operation.type for operation in recipe(name).operations)
    with surgery.disabled(driver.model):
        assert same(driver.track(clip, 2), expected)
    assert same(driver.track(clip, 2), found)
    surgery.desparsify(driver.model)
    assert same(driver.track(clip, 2), expected)


@CASES
def test_what_it_remembers_is_of_the_session(host: str, name: str) -> None:
    driver = cut(host, name)
    interleaved(driver, [video(7), video(7, seed=4)])
    session, run = begun(driver, video(7), 4, {3: (40, 110)})
    twin = copy.deepcopy(session)
    rest = [mask for _, masks in run for mask in masks.values()]
    assert same(gather(driver, twin, start=4)[-len(rest) :], rest), "a copy goes on as the original"
    driver.reset(session)
    driver.click(session, 0, {3: (40, 110)})
    again, _ = begun(driver, video(7), 0, {3: (40, 110)})
    assert same(gather(driver, session), gather(driver, again)), "nothing is left after a reset"


@pytest.mark.parametrize("host", HOSTS)
def test_an_object_forgets_by_itself(host: str) -> None:
    driver = cut(host, "resting")
    session, run = begun(driver, video(6), 5, {3: (40, 110), 9: (200, 60)})
    held = driver.state(session).objects
    assert {key[0] for key, states in held.items() if Rested in states} == {3, 9}
    if host == "sam2":
        driver.model.remove_object(session, 9)
        next(driver.propagate(session, start=5))
        assert {key[0] for key in driver.state(session).objects} == {3}
    run.close()


@pytest.mark.parametrize("host", HOSTS)
def test_each_is_removed_alone(host: str) -> None:
    clip = video(8)
    for gone, left in ((RestingMemory, "thin"), (ThinBlocks, None)):
        driver = make(host)
        surgery.sparsify(driver.model, recipe("both").without(gone))
        if left is not None:
            assert same(driver.track(clip), cut(host, left).track(clip))
    with pytest.raises(RecipeError, match="no block 99"):
        surgery.sparsify(make(host).model, recipe("both").with_values({"thin.blocks": [99]}))


def test_beside_window_routing_on_the_same_block() -> None:
    clip = video(8)
    alone = make("sam2")
    surgery.sparsify(alone.model, recipe("thin").without(ThinBlocks))
    both = cut("sam2", "thin")
    assert not same(both.track(clip), alone.track(clip))
    found, expected = surgery.status(both.model), surgery.status(alone.model)
    assert found.windows_kept == expected.windows_kept == pytest.approx((1 + 0.5 * 6) / 7, abs=0.15)


@pytest.mark.parametrize("host", HOSTS)
def test_what_it_saves_is_counted(host: str) -> None:
    thin, resting = (require_surgery(cut(host, name).model) for name in ("thin", "resting"))
    plain = make(host)
    routed = require_surgery(surgery.sparsify(plain.model, recipe("thin").without(ThinBlocks)))
    assert 0 < gflop(thin, "encoder") < gflop(routed, "encoder")
    model = CostModel(resting)
    assert model.parts({})["memory_attention"] == pytest.approx(model.stock["memory_attention"] / 4)
    assert model.parts({"attended": 1.0}) == pytest.approx(model.stock)


@pytest.mark.parametrize("host", HOSTS)
def test_an_adapter_holds_it(host: str, tmp_path: Path) -> None:
    driver, clip = cut(host, "both"), video(7)
    with torch.no_grad():
        for name, parameter in driver.model.named_parameters():
            if "shortcut.up_project" in name:
                parameter.normal_(std=0.01)
    surgery.save_adapter(driver.model, tmp_path / "adapter")
    assert read_adapter(tmp_path / "adapter").recipe == recipe("both")
    other = make(host)
    surgery.load_adapter(other.model, tmp_path / "adapter")
    assert same(other.track(clip), driver.track(clip))


def test_it_is_calibrated() -> None:
    """Without a prediction of its own, by real runs."""
    data = recipe("resting").to_dict() | {
        "calibration": {"max_drop": 0.9, "max_clip_drop": 1.0, "search": {"resting.rest": [0, 1, 5]}}
    }
    model = demo.load(host="sam2")
    report = calibrate(model, [clip_of(0, 5), clip_of(1, 5)], Recipe.from_dict(data), runs=3, progress=False)
    assert report.kept
    costs = [setting.cost for setting in report.search.settings]
    assert costs == sorted(costs) and len(set(costs)) == 3
    strict = Recipe.from_dict(data | {"calibration": data["calibration"] | {"max_drop": 1e-6, "max_clip_drop": 1e-6}})
    report = calibrate(model, [clip_of(0, 5), clip_of(1, 5)], strict, runs=3, progress=False)
    assert report.search.chosen.values == {"resting.rest": 0}, "the one that saves nothing keeps any promise"
    assert surgery.status(model).recipe.find(RestingMemory) == RestingMemory(rest=0)  # type: ignore[union-attr]


def test_window_routing_is_not_asked_of_those_without(tmp_path: Path) -> None:
    assert recipe("resting").find(SparseWindowRouting) is None
    with pytest.raises(RecipeError, match="did you mean 'rest'"):
        recipe("resting").with_overrides(["resting.rets=1"])

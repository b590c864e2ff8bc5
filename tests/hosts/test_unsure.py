"""An object whose last mask is unsure reads all memory and widens the frame, on either host."""

from __future__ import annotations

import pytest
import torch

import surgery
from surgery.core.evidence import Evidence
from surgery.operations import SparseMemoryRetrieval, SparseWindowRouting
from surgery.recipe import Recipe
from tests.hosts.drive import Driver, make, video
from tests.hosts.sessions import begun, copied, interleaved, reset_forgets, same, undone

PRUNED = Recipe(
    metadata={"name": "pruned", "description": "Memory retrieval alone."},
    operations=[SparseMemoryRetrieval(keep=0.1, keep_conditioning=0.2, warm_up=False, unsure=0.5)],
)

ROUTED = Recipe(
    metadata={"name": "routed", "description": "Window routing alone."},
    operations=[
        SparseWindowRouting(
            budget=0.26, fill=True, skipped={"temporal": True, "shortcut": {"type": "identity"}},
            object={"unsure": 0.5, "candidates": "best", "score_gate": -100.0}, refresh={"lost": "never"},
        )
    ],
)  # fmt: skip


@pytest.fixture(params=("sam2", "transformers"))
def host(request: pytest.FixtureRequest) -> str:
    return request.param


def doubted(driver: Driver, monkeypatch: pytest.MonkeyPatch, doubts: dict[int, float], score: float = 1.0) -> None:
    """Let every mask of these objects be so unsure, and every object be there, or not."""
    made = Evidence.__init__

    def init(self: Evidence, *args: object, **named: object) -> None:
        made(self, *args, **named)  # type: ignore[arg-type]
        step = surgery.engine.require_surgery(driver.model).context.step  # type: ignore[union-attr]
        assert self.doubt is not None
        self.doubt = torch.tensor(doubts[step.obj_id])  # type: ignore[union-attr]
        self.score = torch.tensor(score)

    monkeypatch.setattr(Evidence, "__init__", init)


def cut(host: str, *overrides: str, recipe: Recipe = PRUNED) -> Driver:
    driver = make(host)
    surgery.sparsify(driver.model, recipe.with_overrides(list(overrides)))
    return driver


def test_unsure_masks_read_everything_and_are_counted(host: str, monkeypatch: pytest.MonkeyPatch) -> None:
    stock = make(host).track(video(8))
    driver = cut(host)
    doubted(driver, monkeypatch, {7: 0.6})
    assert same(driver.track(video(8)), stock)
    found = surgery.status(driver.model)
    assert found.keys_kept == 1.0
    assert found.restored_frames == {"unsure mask": 6}, "of seven, the first prunes nothing yet"


def test_sure_masks_change_nothing(host: str, monkeypatch: pytest.MonkeyPatch) -> None:
    plain = cut(host, "retrieval.unsure=null").track(video(8))
    driver = cut(host)
    doubted(driver, monkeypatch, {7: 0.5})
    assert same(driver.track(video(8)), plain)
    assert surgery.status(driver.model).restored_frames == {}


def test_each_object_goes_by_its_own_mask(host: str, monkeypatch: pytest.MonkeyPatch) -> None:
    points = {1: (40, 110), 2: (90, 30)}

    def masks(driver: Driver) -> dict[int, list[torch.Tensor]]:
        _, run = begun(driver, video(7), 0, points)
        found = [dict(zip(points, each.values(), strict=True)) for _, each in run]
        return {obj_id: [each[obj_id] for each in found] for obj_id in points}

    stock, plain = masks(make(host)), masks(cut(host, "retrieval.unsure=null"))
    driver = cut(host)
    doubted(driver, monkeypatch, {1: 0.2, 2: 0.9})
    found = masks(driver)
    assert same(found[1], plain[1]) and not same(plain[1], stock[1])
    assert same(found[2], stock[2]) and not same(plain[2], stock[2])
    assert surgery.status(driver.model).restored_frames == {"unsure mask": 5}


@pytest.mark.parametrize(("doubts", "windows"), [((0.4, 0.5), 4), ((0.4, 0.6), 8)], ids=["sure", "one is not"])
def test_a_frame_with_an_unsure_mask_takes_the_next_size(
    host: str, monkeypatch: pytest.MonkeyPatch, doubts: tuple[float, float], windows: int
) -> None:
    driver = cut(host, recipe=ROUTED)
    doubted(driver, monkeypatch, dict(zip((7, 9), doubts, strict=True)))
    driver.track(video(6), 2)
    stats = surgery.engine.require_surgery(driver.model).stats
    assert stats is not None and stats.last is not None
    assert (len(stats.last.windows), stats.last.grid) == (windows, (4, 4))
    assert surgery.status(driver.model).widened_frames == ({"unsure mask": 4} if windows == 8 else {})


def test_videos_copies_resets_and_undo(host: str) -> None:
    driver = cut(host, "retrieval.unsure=0.3")
    interleaved(driver, [video(6), video(6, 1)])
    copied(driver)
    reset_forgets(driver)
    undone(make(host), PRUNED.with_overrides(["retrieval.unsure=1"]))

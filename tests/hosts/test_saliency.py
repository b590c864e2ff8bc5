"""Memory keeps a sample of tracked frames, and of prompted ones what queries on the object ask for, on either host."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

import surgery
from surgery.core.evidence import mask_tokens
from surgery.engine import require_surgery
from surgery.operations import SparseMemoryRetrieval
from surgery.operations.memory_retrieval import bound
from surgery.operations.memory_retrieval.bank import Kept
from surgery.recipe import Recipe
from tests.hosts.drive import HOSTS, make, video
from tests.hosts.sessions import begun


def recipe(saliency: str) -> Recipe:
    operation = SparseMemoryRetrieval(keep=0.1, keep_conditioning=0.2, warm_up=False, saliency=saliency)
    return Recipe(metadata={"name": "pruned", "description": "Memory retrieval alone."}, operations=[operation])


@pytest.mark.parametrize("host", HOSTS)
def test_each_object_weighs_queries_by_its_own_last_mask(host: str, monkeypatch: pytest.MonkeyPatch) -> None:
    driver, measure = make(host), bound.memory_saliency
    surgery.sparsify(driver.model, recipe("object"))
    seen: dict[int, list[Tensor]] = {}

    def noted(query: Tensor, key: Tensor, stride: int, weights: Tensor | None) -> Tensor:
        context = require_surgery(driver.model).context
        assert context is not None and context.step is not None and weights is not None
        evidence = context.video.evidence[context.step.obj_id]
        assert evidence.frame == context.step.previous
        side = round(query.shape[1] ** 0.5)
        assert torch.equal(weights, 1.0 + 2 * mask_tokens(evidence.mask, side, side, max(1, side // 16)))
        seen.setdefault(context.step.obj_id, []).append(weights)
        return measure(query, key, stride, weights)

    monkeypatch.setattr(bound, "memory_saliency", noted)
    _, run = begun(driver, video(5), 0, {1: (40, 110), 2: (90, 30)})
    list(run)
    assert seen.keys() == {1, 2}
    assert all(set(each.unique().tolist()) <= {1.0, 3.0} for several in seen.values() for each in several)


@pytest.mark.parametrize("host", HOSTS)
def test_tracked_frames_are_sampled_by_their_own_masks_and_only_prompted_ones_measured(
    host: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    driver, choose, measure = make(host), bound.sampled, bound.memory_saliency
    surgery.sparsify(driver.model, recipe("object"))
    asked: dict[int, list[int]] = {}
    measured: list[int] = []

    def noted(mask: Tensor | None, tokens: int, keep: float, frame: int, device: torch.device) -> Kept:
        context = require_surgery(driver.model).context
        assert context is not None and context.step is not None
        evidence = context.video.evidence[context.step.obj_id]
        assert evidence.frame == frame
        assert mask is evidence.mask
        asked.setdefault(context.step.obj_id, []).append(frame)
        return choose(mask, tokens, keep, frame, device)

    def counted(*given: Any) -> Tensor:
        context = require_surgery(driver.model).context
        assert context is not None and context.step is not None
        measured.append(context.step.frame)
        return measure(*given)

    monkeypatch.setattr(bound, "sampled", noted)
    monkeypatch.setattr(bound, "memory_saliency", counted)
    _, run = begun(driver, video(6), 0, {1: (40, 110), 2: (90, 30)})
    list(run)
    assert asked == {1: [1, 2, 3, 4], 2: [1, 2, 3, 4]}
    assert set(measured) == {1}, "the prompted frame, when it is first read"


@pytest.mark.parametrize("host", HOSTS)
def test_the_published_measure_weighs_no_query(host: str, monkeypatch: pytest.MonkeyPatch) -> None:
    driver = make(host)
    surgery.sparsify(driver.model, recipe("mean"))
    measure, given = bound.memory_saliency, []

    def noted(query: Tensor, key: Tensor, stride: int, weights: Tensor | None) -> Tensor:
        given.append(weights)
        return measure(query, key, stride, weights)

    monkeypatch.setattr(bound, "memory_saliency", noted)
    driver.track(video(5))
    assert given and all(each is None for each in given)

"""Values that travel: one copy of what was asked for together, and what is told of an object."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from surgery.core.early import Early
from surgery.core.evidence import Evidence
from surgery.core.frame import FrameContext
from surgery.core.session import VideoState


@pytest.fixture
def copies(monkeypatch: pytest.MonkeyPatch) -> list[Early]:
    """Every copy that starts."""
    found, start = [], Early.__init__

    def started(early: Early, *args: Any) -> None:
        found.append(early)
        start(early, *args)

    monkeypatch.setattr(Early, "__init__", started)
    return found


def test_what_is_asked_for_together_travels_together_and_is_read_by_its_name(copies: list[Early]) -> None:
    context = FrameContext(0, VideoState(None), None)
    context.facts["near"] = torch.tensor([[1, 2], [3, 4]])
    context.facts["touched"] = torch.tensor([True, False])
    context.send()
    context.send()
    assert len(copies) == 1 and not context.facts
    context.facts["late"] = torch.tensor(0.5)
    values = context.read()
    assert len(copies) == 2
    assert values == {"near": [1.0, 2.0, 3.0, 4.0], "touched": [1.0, 0.0], "late": [0.5]}
    assert context.read() == values and len(copies) == 2


@pytest.mark.parametrize(("doubt", "known"), [(None, None), (torch.tensor(0.25), 0.25)])
def test_what_is_told_of_an_object_is_read_once(copies: list[Early], doubt: torch.Tensor | None, known: Any) -> None:
    mask = torch.zeros(4, 4, dtype=torch.bool)
    found = Evidence(0, mask, torch.tensor([1.5]), doubt=doubt).send()
    assert found.told() == found.told() == (1.5, False, known)
    assert len(copies) == 1
    mask = mask.clone()
    mask[2, 1] = True
    assert Evidence(0, mask, torch.tensor([[-2.0]]), doubt=doubt).told() == (-2.0, True, known)

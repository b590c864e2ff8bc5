"""Masks under every shipped recipe stay what they were: three objects, a second prompt, and back, on both hosts.

Against `masks.npz`, with a tolerance that other processors keep and another choice of windows or memory does not.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from tests.hosts.masks import COMMAND, FILE, HOSTS, TOLERANCE, furthest, recorded, shipped, tracked

FAR = 3.0
"""Tolerances by which what is wrong must miss."""


@pytest.mark.parametrize("host", HOSTS)
@pytest.mark.parametrize("model", list(TOLERANCE))
@pytest.mark.parametrize("recipe", sorted(set(shipped().values())))
def test_masks_are_as_recorded(model: str, host: str, recipe: str) -> None:
    where, apart = furthest(model, recorded(model, recipe), tracked(model, host, recipe))
    assert apart <= 1, f"{where}: {apart:.1f} times the tolerance; if that is meant, record it: {COMMAND}"


def test_nothing_else_is_recorded() -> None:
    with np.load(FILE) as file:
        cases = {key.rpartition("/")[0] for key in file.files}
    assert cases == {f"{model}/{recipe}" for model in TOLERANCE for recipe in shipped().values()}


@pytest.mark.parametrize(
    ("model", "recipe", "values"),
    [
        ("small", "balanced", {"routing.budget": 0.32}),
        ("small", "faithful", {"routing.dilation": 11}),
        ("demo", "balanced", {"retrieval.keep": 0.05}),
    ],
    ids=str,
)
def test_other_windows_or_keys_are_seen(model: str, recipe: str, values: dict[str, Any]) -> None:
    assert furthest(model, recorded(model, recipe), tracked(model, "sam2", recipe, values))[1] > FAR


def test_a_lost_memory_is_seen() -> None:
    """One frame of one object is missing in the bank when the second prompt comes."""

    def forget(session: Any) -> None:
        del session["output_dict_per_obj"][0]["non_cond_frame_outputs"][6]

    assert furthest("demo", recorded("demo", "exact"), tracked("demo", "sam2", "exact", between=forget))[1] > FAR


@pytest.mark.parametrize("recipe", sorted(set(shipped().values())))
def test_frames_and_objects_are_told_apart(recipe: str) -> None:
    masks = recorded("demo", recipe)
    for frame, other in (("forward 7", "forward 8"), ("prompted 10", "prompted 9"), ("back 0", "back 1")):
        assert furthest("demo", masks, {**masks, frame: masks[other]})[1] > FAR
    for order in ([1, 0, 2], [0, 2, 1]):
        assert furthest("demo", masks, {**masks, "back 0": masks["back 0"][order]})[1] > FAR

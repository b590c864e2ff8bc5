"""When windows are chosen: inside the encoder, where they are needed; before one that runs in one piece."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import pytest

import surgery
from surgery.hosts import view_of
from surgery.operations import CudaGraphs
from tests.hosts.drive import STEADY, TWINS, make, video
from tests.hosts.routes import router_of


def as_it_is(model: Any) -> None:
    surgery.sparsify(model, STEADY)


def recorded(model: Any) -> None:
    surgery.sparsify(model, STEADY.with_operation(CudaGraphs()))


def compiled(model: Any) -> None:
    surgery.sparsify(model, STEADY)
    encoder: Any = view_of(model).image_encoder()
    encoder._compiled_call_impl = encoder._call_impl  # as `encoder.compile()` does


def replaced(model: Any) -> None:
    surgery.sparsify(model, STEADY)
    encoder = view_of(model).image_encoder()
    encoder.forward = functools.partial(encoder.forward)  # as the VOS predictor does


@pytest.mark.parametrize(
    ("how", "expected"),
    [
        (as_it_is, ["encoder", "chosen"]),
        (recorded, ["chosen", "encoder"]),
        (compiled, ["chosen", "encoder"]),
        (replaced, ["chosen", "encoder"]),
    ],
)
@pytest.mark.parametrize("host", TWINS)
def test_windows_are_chosen_where_they_are_needed_or_before_an_encoder_in_one_piece(
    host: str, how: Callable[[Any], None], expected: list[str]
) -> None:
    driver = make(host)
    how(driver.model)
    router, order = router_of(driver.model), list[str]()
    policy = router.policy

    def chosen(*given: Any) -> Any:
        order.append("chosen")
        return policy(*given)

    router.policy = chosen
    view_of(driver.model).blocks()[0].register_forward_pre_hook(lambda *_: order.append("encoder"))
    driver.track(video(4))
    assert order[-2:] == expected

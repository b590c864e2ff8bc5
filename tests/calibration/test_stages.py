"""The closed form of the corrections of reused stages."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from surgery.calibration.linear import RIDGES
from surgery.calibration.stages import StageRegressions
from surgery.errors import CalibrationError
from surgery.operations.window_routing.shortcut import Corrections, StageCorrection, make_corrections

WIDTHS = [(16, 4), (16, 4), (8, 6)]


def frames(truth: Corrections, count: int, seed: int) -> list[list[Tensor]]:
    """Stage maps that follow the change of the map below exactly as `truth` says, from a base that is not in it."""
    generator = torch.Generator().manual_seed(seed)
    base = [torch.randn(1, side, side, channels, generator=generator) for side, channels in WIDTHS[1:]]
    found = []
    for _ in range(count):
        maps = [torch.randn(1, 16, 16, 4, generator=generator)]
        for still, stage in zip(base, truth, strict=True):
            maps.append(still + stage(maps[-1]))
        found.append([each.detach() for each in maps])
    return found


@torch.no_grad()
def test_what_follows_from_the_map_below_is_found() -> None:
    truth, fitted = make_corrections(WIDTHS), make_corrections(WIDTHS)
    generator = torch.Generator().manual_seed(5)
    with torch.no_grad():
        for stage in truth:
            assert isinstance(stage, StageCorrection)
            for layer in (stage.direct, stage.up):
                layer.weight.copy_(torch.randn(layer.weight.shape, generator=generator) * 0.3)
    sums = StageRegressions(fitted, torch.device("cpu"))
    for clip in range(3):
        sums.start()
        for maps in frames(truth, 5, clip):
            sums.add(maps)
    assert all(share > 0.999 for share in sums.solve())
    below = torch.randn(1, 16, 16, 4, generator=generator)
    for found, wanted in zip(fitted, truth, strict=True):
        change = wanted(below) - wanted(torch.zeros_like(below))
        error = found(below) - found(torch.zeros_like(below)) - change
        assert float(error.abs().max()) < 0.05 * float(change.abs().max())
        below = wanted(below)


def test_pure_noise_is_not_followed() -> None:
    """The ridge is chosen on clips left out, so what cannot be predicted is hardly corrected."""
    fitted = make_corrections(WIDTHS)
    sums = StageRegressions(fitted, torch.device("cpu"))
    generator = torch.Generator().manual_seed(1)
    for _ in range(4):
        sums.start()
        for _ in range(4):
            sums.add([torch.randn(1, side, side, channels, generator=generator) for side, channels in WIDTHS])
    assert sums.regressions[0].summed()[1] == RIDGES[-1]
    assert all(share < 0.05 for share in sums.solve())


def test_features_that_are_not_finite_or_still_are_refused() -> None:
    for value, message in ((float("nan"), "not finite"), (1.0, "no change")):
        sums = StageRegressions(make_corrections(WIDTHS), torch.device("cpu"))
        sums.start()
        for _ in range(3):
            sums.add([torch.full((1, side, side, channels), value) for side, channels in WIDTHS])
        with pytest.raises(CalibrationError, match=message):
            sums.solve()


def test_the_same_seed_draws_the_same_branches() -> None:
    state = torch.random.get_rng_state()
    first, second = make_corrections(WIDTHS, 3).state_dict(), make_corrections(WIDTHS, 3).state_dict()
    assert all(torch.equal(first[name], second[name]) for name in first)
    assert torch.equal(torch.random.get_rng_state(), state)

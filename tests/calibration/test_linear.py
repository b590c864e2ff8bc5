"""The closed form: exact where the residual is linear, never worse than the identity on its own data."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

from surgery.calibration.linear import RIDGES, ResidualRegression, start_from
from surgery.errors import CalibrationError
from surgery.operations.window_routing.shortcut import BottleneckShortcut, FeedForwardShortcut, make_shortcut

CPU = torch.device("cpu")
C = 12


def tokens(n: int, seed: int) -> torch.Tensor:
    return torch.randn(n, C, generator=torch.Generator().manual_seed(seed))


def linear_span(x: torch.Tensor, rank: int, seed: int = 9) -> torch.Tensor:
    """A span whose residual is a map of the normed input, of the given rank."""
    matrix = tokens(rank, seed).T @ tokens(rank, seed + 1) / C
    return x + F.layer_norm(x, (C,), eps=1e-6) @ matrix


@pytest.mark.parametrize("temporal", [False, True])
def test_a_residual_of_low_rank_is_found_exactly(temporal: bool) -> None:
    sums = ResidualRegression(C, temporal, CPU)
    sums.start()
    for frame in range(12):
        x = tokens(200, frame)
        sums.add(x, linear_span(x, 3))
    shortcut = make_shortcut("bottleneck", C)
    assert isinstance(shortcut, BottleneckShortcut)
    assert start_from(shortcut, sums.summed()[0], RIDGES[0], sums.level, temporal) == pytest.approx(1.0, abs=1e-4)
    now, then = tokens(50, 100), tokens(50, 101)
    found = shortcut(now) - shortcut(then) if temporal else shortcut(now)
    wanted = linear_span(now, 3) - linear_span(then, 3) if temporal else linear_span(now, 3)
    relative = (found - wanted).pow(2).mean() / (wanted - (now - then if temporal else now)).pow(2).mean()
    assert relative < 0.02, "what is left is the ridge and the few units that leave their linear part"


@settings(max_examples=20, deadline=None)
@given(st.integers(0, 10_000), st.booleans(), st.sampled_from(["bottleneck", "ffn"]))
def test_the_closed_form_is_never_worse_than_the_identity_on_its_own_data(seed: int, temporal: bool, kind: str) -> None:
    sums = ResidualRegression(C, temporal, CPU)
    sums.start()
    for frame in range(3):
        x = tokens(60, seed + frame)
        sums.add(x, x + 0.3 * torch.tanh(tokens(60, seed + 50 + frame) + x))
    shortcut = make_shortcut(kind, C)
    assert isinstance(shortcut, (BottleneckShortcut, FeedForwardShortcut))
    assert -1e-6 <= start_from(shortcut, *sums.summed(), sums.level, temporal) <= 1.0
    assert all(torch.isfinite(parameter).all() for parameter in shortcut.parameters())


def test_a_new_clip_is_not_the_past_of_the_next() -> None:
    one, two = (ResidualRegression(C, True, CPU) for _ in range(2))
    one.start()
    for start in (0, 10):
        two.start()
        for sums in (one, two):
            for frame in range(3):
                x = tokens(20, start + frame)
                sums.add(x, linear_span(x, 2))
    assert one.summed()[0].gram[0, 0] > two.summed()[0].gram[0, 0], (
        "without start() changes across the cut were counted"
    )


def test_higher_rank_explains_more() -> None:
    sums = ResidualRegression(C, False, CPU)
    sums.start()
    x = tokens(300, 0)
    sums.add(x, linear_span(x, 8))
    whole, _ = sums.summed()
    explained = []
    for rank in (1, 3, 8):
        down, up, intercept = whole.solve(rank, RIDGES[0])
        explained.append(whole.explained(torch.cat([(up @ down).T, intercept[None]])))
    assert explained == sorted(explained)
    assert explained[-1] > 0.99


def test_what_cannot_be_fitted_is_an_error() -> None:
    still = ResidualRegression(C, True, CPU)
    still.start()
    for _ in range(3):
        still.add(tokens(20, 0), tokens(20, 1))
    with pytest.raises(CalibrationError, match="no change between frames"):
        still.summed()
    broken = ResidualRegression(C, False, CPU)
    broken.start()
    broken.add(tokens(20, 0), torch.full((20, C), torch.nan))
    with pytest.raises(CalibrationError, match="not finite"):
        broken.summed()


def test_the_ridge_that_generalises_is_told_from_the_one_that_does_not() -> None:
    """Few noisy tokens: on left-out clips a strong ridge wins, and with many clean ones a weak one."""
    noisy, clean = (ResidualRegression(C, False, CPU) for _ in range(2))
    for clip in range(4):
        for sums, count, noise in ((noisy, 14, 3.0), (clean, 400, 0.01)):
            sums.start()
            x = tokens(count, clip)
            sums.add(x, linear_span(x, 3) + noise * tokens(count, 900 + clip))
    best = [int(sums.left_out_errors().argmin()) for sums in (noisy, clean)]
    assert RIDGES[best[0]] >= 0.1
    assert RIDGES[best[1]] <= 1e-2
    lonely = ResidualRegression(C, False, CPU)
    lonely.start()
    lonely.add(tokens(20, 0), tokens(20, 1))
    assert not lonely.left_out_errors().any()

"""The shortcut branches: size, start, names and seeding, and the released weights."""

from __future__ import annotations

import threading

import pytest
import torch
from torch import Tensor

from surgery.core.windows import WindowGrid
from surgery.operations.window_routing.shortcut import SHORTCUTS, BottleneckShortcut, make_shortcut
from tests.conftest import shared

KINDS = sorted(SHORTCUTS)
PARAMETRIC = [kind for kind in KINDS if kind != "identity"]
GRID = WindowGrid(5, 5, 4)
WINDOWS = [1, 3]
PACKING = GRID.packing(WINDOWS, torch.device("cpu"))


def tokens(channels: int, seed: int = 0) -> Tensor:
    return torch.randn(len(GRID.token_ids(WINDOWS)), channels, generator=torch.Generator().manual_seed(seed))


def size(module: torch.nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())


@pytest.mark.parametrize(("channels", "published"), [(448, 202_272), (576, 333_792)])
def test_the_bottleneck_has_the_published_size(channels: int, published: int) -> None:
    assert size(make_shortcut("bottleneck", channels)) == published == channels**2 + 7 * channels // 2


@pytest.mark.parametrize("channels", [16, 96, 448])
def test_the_other_branches_have_the_stated_size(channels: int) -> None:
    norm, quarter = 2 * channels, channels // 4
    assert size(make_shortcut("identity", channels)) == 0
    assert size(make_shortcut("ffn", channels)) == norm + 4 * channels**2 + 2 * channels + channels
    attention = norm + channels * 3 * quarter + 3 * quarter + quarter * channels + channels
    assert size(make_shortcut("attention", channels)) == attention


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("channels", [5, 16, 96])
def test_an_untrained_branch_is_exactly_the_identity(kind: str, channels: int) -> None:
    shortcut, given = make_shortcut(kind, channels), tokens(channels)
    before = given.clone()
    assert torch.equal(shortcut(given, PACKING), before)
    assert torch.equal(given, before)


@pytest.mark.parametrize("kind", PARAMETRIC)
def test_every_parameter_can_learn(kind: str) -> None:
    """No parameter starts, or ends up, where its gradient is always zero."""
    shortcut = make_shortcut(kind, 16)
    optimiser = torch.optim.SGD(shortcut.parameters(), lr=0.1)
    target = tokens(16, seed=1)
    for _ in range(3):
        optimiser.zero_grad()
        (shortcut(tokens(16), PACKING) - target).square().mean().backward()
        optimiser.step()
    dead = [name for name, value in shortcut.named_parameters() if not bool((value.grad != 0).any())]
    assert not dead
    assert not torch.allclose(shortcut(tokens(16), PACKING), tokens(16))


@pytest.mark.parametrize("kind", PARAMETRIC)
def test_names_are_those_of_the_released_checkpoints(kind: str) -> None:
    released = {f"{part}.{leaf}" for part in ("down_project", "up_project", "norm") for leaf in ("weight", "bias")}
    assert set(make_shortcut(kind, 16).state_dict()) == released


@pytest.mark.parametrize(
    ("channels", "name"), [(448, "bypass_bottleneck_base.pth"), (576, "bypass_bottleneck_large.pth")]
)
def test_released_weights_load_strictly_and_are_a_small_correction(channels: int, name: str) -> None:
    released = torch.load(shared("official", name), map_location="cpu", weights_only=True)
    shortcut = make_shortcut("bottleneck", channels)
    shortcut.load_state_dict(released, strict=True)
    given = torch.randn(200, channels, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        change = shortcut(given) - given
    assert 0.1 < change.square().mean().sqrt() < 0.6, "the released weights: rms 0.24 and 0.37 on unit inputs"
    assert all(torch.equal(shortcut.state_dict()[key], value) for key, value in released.items())


def test_the_bottleneck_is_the_published_formula() -> None:
    """y = x + Up(ReLU(Down(LN(x)))), LN eps 1e-6."""
    shortcut = make_shortcut("bottleneck", 8)
    state = {name: torch.randn(value.shape, dtype=torch.float64) for name, value in shortcut.state_dict().items()}
    shortcut.double().load_state_dict(state)
    x = tokens(8).double() * 1e-3  # small, so that a wrong eps shows
    centred = x - x.mean(-1, keepdim=True)
    normed = (
        centred / (centred.square().mean(-1, keepdim=True) + 1e-6).sqrt() * state["norm.weight"] + state["norm.bias"]
    )
    hidden = (normed @ state["down_project.weight"].T + state["down_project.bias"]).clamp(min=0)
    expected = x + hidden @ state["up_project.weight"].T + state["up_project.bias"]
    assert torch.allclose(shortcut(x), expected, rtol=0, atol=1e-12)


@pytest.mark.parametrize("kind", KINDS)
def test_same_seed_same_weights_whatever_the_global_state(kind: str) -> None:
    torch.manual_seed(1)
    first = make_shortcut(kind, 16).state_dict()
    torch.manual_seed(2)
    torch.randn(7)
    again, other = make_shortcut(kind, 16).state_dict(), make_shortcut(kind, 16, seed=1).state_dict()
    assert all(torch.equal(again[name], value) for name, value in first.items())
    assert kind == "identity" or any(not torch.equal(other[name], value) for name, value in first.items())


@pytest.mark.parametrize("kind", KINDS)
def test_making_one_leaves_every_global_generator_alone(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    reseeded: list[str] = []
    for device in (torch.cuda, torch.mps, torch.xpu):
        for name in ("manual_seed", "manual_seed_all"):
            if hasattr(device, name):
                monkeypatch.setattr(device, name, lambda *_, who=f"{device.__name__}.{name}": reseeded.append(who))
    torch.manual_seed(3)
    reseeded.clear()
    before = torch.get_rng_state()
    make_shortcut(kind, 16)
    assert torch.equal(torch.get_rng_state(), before)
    assert not reseeded, "torch.manual_seed also seeds the accelerators, which fork_rng(devices=[]) does not restore"


def test_weights_do_not_depend_on_the_default_device() -> None:
    expected = make_shortcut("bottleneck", 16).state_dict()
    with torch.device("meta"):
        found = make_shortcut("bottleneck", 16).state_dict()
    assert all(value.device.type == "cpu" and torch.equal(value, expected[name]) for name, value in found.items())


def test_a_branch_made_under_inference_mode_can_learn_later() -> None:
    with torch.inference_mode():
        shortcut = make_shortcut("bottleneck", 16)
    shortcut(tokens(16)).sum().backward()
    assert shortcut.up_project.weight.grad is not None


def test_an_unknown_kind_or_a_missing_packing_is_an_error() -> None:
    with pytest.raises(KeyError):
        make_shortcut("conv", 16)
    with pytest.raises(ValueError, match="packing"):
        make_shortcut("attention", 16)(tokens(16))
    assert isinstance(make_shortcut("bottleneck", 16), BottleneckShortcut)


def test_two_threads_may_make_shortcuts_at_once() -> None:
    made: list[dict[str, Tensor]] = []
    threads = [threading.Thread(target=lambda: made.append(make_shortcut("ffn", 32).state_dict())) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert all(torch.equal(state[name], made[0][name]) for state in made for name in state)

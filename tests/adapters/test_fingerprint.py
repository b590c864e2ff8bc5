"""Which base model it is: one rounding is accepted, fine-tuning always refused."""

from __future__ import annotations

import itertools
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

import surgery
from surgery import AdapterMismatchError
from surgery.adapters import RoundedBaseWarning, UnprovenBaseWarning, read_adapter
from surgery.adapters.fingerprint import compare, fingerprint
from surgery.operations.window_routing.geometry import SpanInfo
from tests.adapters.folders import edit_config
from tests.hosts.drive import Driver, make

Change = Callable[[Tensor], Tensor]
ROUNDINGS: dict[str, Change] = {
    "fp32": lambda value: value,
    "bf16": lambda value: value.bfloat16().float(),
    "fp16": lambda value: value.half().float(),
}
SPAN = SpanInfo(2, 5, 4, 32, 16)


class Weights:
    """As much of a host's view as a fingerprint looks at."""

    def __init__(self, blocks: dict[int, dict[str, Tensor]]) -> None:
        self.blocks = blocks

    def block_tensors(self, index: int) -> dict[str, Tensor]:
        return self.blocks[index]

    def changed(self, change: Change) -> Any:
        return Weights({index: {k: change(v) for k, v in block.items()} for index, block in self.blocks.items()})


def weights(seed: int, scale: float = 0.05, wide: bool = False) -> Any:
    """Blocks like Hiera's: matrices around `scale`, norms around one; `wide`: magnitudes over six decades."""
    draw = torch.Generator().manual_seed(seed)

    def normal(*shape: int) -> Tensor:
        value = torch.randn(*shape, generator=draw) * scale
        return value * 10 ** (6 * torch.rand(*shape, generator=draw) - 6) if wide else value

    return Weights(
        {
            index: {
                "norm1.weight": 1 + normal(32),
                "norm1.bias": normal(32),
                "attn.qkv.weight": normal(96, 32),
                "attn.qkv.bias": torch.zeros(96),
                "mlp.layers.0.weight": normal(128, 32),
            }
            for index in range(SPAN.entry, SPAN.exit + 1)
        }
    )


@settings(max_examples=12, deadline=None)
@given(seed=st.integers(0, 2**32), scale=st.sampled_from([1e-4, 3e-3, 0.05, 1.0, 30.0]), wide=st.booleans())
def test_one_rounding_is_proven_on_either_side(seed: int, scale: float, wide: bool) -> None:
    base = weights(seed, scale, wide)
    copies = {name: base.changed(change) for name, change in ROUNDINGS.items()}
    recorded = {name: fingerprint(copy, SPAN) for name, copy in copies.items()}
    for here, there in itertools.product(ROUNDINGS, ROUNDINGS):
        verdict = compare(copies[here], SPAN, recorded[there]).verdict
        if here == there:
            assert verdict == "same"
        elif "fp32" in (here, there):
            assert verdict in ("same", "rounded")


@settings(max_examples=15, deadline=None)
@given(
    seed=st.integers(0, 2**32), relative=st.floats(1e-2, 0.5), here=st.sampled_from(list(ROUNDINGS)),
    there=st.sampled_from(list(ROUNDINGS)),
)  # fmt: skip
def test_fine_tuning_is_always_refused(seed: int, relative: float, here: str, there: str) -> None:
    base = weights(seed)
    draw = torch.Generator().manual_seed(seed ^ 1)
    tuned = base.changed(lambda value: value + relative * value * torch.randn(value.shape, generator=draw))
    recorded = fingerprint(base.changed(ROUNDINGS[there]), SPAN)
    assert compare(tuned.changed(ROUNDINGS[here]), SPAN, recorded).verdict == "different"


@settings(max_examples=15, deadline=None)
@given(seed=st.integers(0, 2**32), relative=st.floats(1e-5, 1e-2), share=st.floats(0.2, 1))
def test_any_step_in_full_precision_is_refused(seed: int, relative: float, share: float) -> None:
    base = weights(seed)
    draw = torch.Generator().manual_seed(seed ^ 1)

    def step(value: Tensor) -> Tensor:
        chosen = torch.rand(value.shape, generator=draw) < share
        return torch.where(chosen, value * (1 + relative * torch.randn(value.shape, generator=draw)), value)

    assert compare(base.changed(step), SPAN, fingerprint(base, SPAN)).verdict == "different"


def test_names_shapes_and_blocks_count() -> None:
    base = weights(3)
    recorded = fingerprint(base, SPAN)
    renamed, flat = weights(3), weights(3)
    renamed.blocks[4]["attn.qkv.b"] = renamed.blocks[4].pop("attn.qkv.bias")
    flat.blocks[4]["attn.qkv.weight"] = flat.blocks[4]["attn.qkv.weight"].reshape(-1)
    fewer = weights(3)
    del fewer.blocks[4]["norm1.bias"]
    for other in (renamed, flat, fewer):
        assert compare(other, SPAN, recorded).verdict == "different"
    assert compare(base, SpanInfo(2, 4, 4, 32, 16), recorded).verdict == "different"


# ---------------------------------------------------------------------------------------------- on models, with words


def rounded(driver: Driver, change: Change) -> Driver:
    with torch.no_grad():
        for value in driver.model.state_dict().values():
            value.copy_(change(value))
    return driver


def loading(driver: Driver, folder: Path, **how: Any) -> list[type[Warning]]:
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        surgery.load_adapter(driver.model, folder, **how)
    return [one.category for one in caught if issubclass(one.category, (RoundedBaseWarning, UnprovenBaseWarning))]


@pytest.mark.parametrize("host", ["sam2", "transformers"])
def test_the_same_base_in_its_declared_precision_is_silent(host: str, saved: Path) -> None:
    assert loading(make(host), saved) == []
    for dtype in (torch.bfloat16, torch.float16):
        half = make(host)
        half.model.to(dtype)
        assert loading(half, saved) == []


@pytest.mark.parametrize("host", ["sam2", "transformers"])
def test_a_rounded_base_is_told(host: str, saved: Path) -> None:
    for name in ("bf16", "fp16"):
        assert loading(rounded(make(host), ROUNDINGS[name]), saved) == [RoundedBaseWarning]


def test_an_adapter_saved_from_a_half_precision_model_fits_the_full_one(tmp_path: Path) -> None:
    half = make("transformers")
    half.model.to(torch.bfloat16)
    surgery.sparsify(half.model, "balanced")
    folder = surgery.save_adapter(half.model, tmp_path / "half")
    assert read_adapter(folder).config.base_model.fingerprint.precision == "bfloat16"  # type: ignore[union-attr]
    assert loading(make("sam2"), folder) == []
    with pytest.raises(AdapterMismatchError, match="rounded in another way"):
        loading(rounded(make("sam2"), ROUNDINGS["fp16"]), folder)


@pytest.mark.parametrize("host", ["sam2", "transformers"])
def test_one_step_of_sgd_is_refused_with_the_way_out(host: str, saved: Path) -> None:
    driver = make(host)
    trunk = [parameter for name, parameter in driver.model.named_parameters() if "blocks" in name]
    sum(parameter.square().sum() for parameter in trunk).backward()  # type: ignore[union-attr]
    torch.optim.SGD(trunk, lr=1e-3).step()
    with pytest.raises(AdapterMismatchError, match=r"other weights.*force=True"):
        surgery.load_adapter(driver.model, saved)
    driver.model.to(torch.bfloat16)
    with pytest.raises(AdapterMismatchError, match="other weights"):
        surgery.load_adapter(driver.model, saved)
    assert loading(driver, saved, force=True) == [UnprovenBaseWarning]


def test_without_a_recorded_fingerprint_loading_says_so_and_still_checks_the_structure(folder: Path) -> None:
    edit_config(folder, lambda config: config["base_model"].update(fingerprint=None))
    assert loading(make("sam2"), folder) == [UnprovenBaseWarning]
    from tests.hosts.drive import PADDED

    with pytest.raises(AdapterMismatchError, match="windows of 4"):
        surgery.load_adapter(make("sam2", PADDED).model, folder)

"""Which base model it is: rounding is always accepted, fine-tuning always refused."""

from __future__ import annotations

import base64
import itertools
import math
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

import surgery
from surgery import AdapterMismatchError
from surgery.adapters import RoundedBaseWarning, UnprovenBaseWarning, read_adapter
from surgery.adapters.fingerprint import SKETCHES, Fingerprint, compare, fingerprint
from surgery.hosts import view_of
from surgery.operations.window_routing.geometry import SpanInfo, span_of
from tests.adapters.folders import edit_config
from tests.hosts.drive import Driver, make

Change = Callable[[Tensor], Tensor]
ROUNDINGS: dict[str, Change] = {
    "fp32": lambda value: value,
    "bf16": lambda value: value.bfloat16().float(),
    "fp16": lambda value: value.half().float(),
    "fp16, bf16": lambda value: value.half().float().bfloat16().float(),
    "bf16, fp16": lambda value: value.bfloat16().float().half().float(),
    "fp16, bf16, fp16": lambda value: value.half().bfloat16().half().float(),
    "bf16, fp16, bf16": lambda value: value.bfloat16().half().bfloat16().float(),
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


# ------------------------------------------------------------------------------------------------------ properties


@settings(max_examples=12, deadline=None)
@given(seed=st.integers(0, 2**32), scale=st.sampled_from([1e-4, 3e-3, 0.05, 1.0, 30.0]), wide=st.booleans())
def test_rounding_is_always_accepted_on_either_side(seed: int, scale: float, wide: bool) -> None:
    base = weights(seed, scale, wide)
    copies = {name: base.changed(change) for name, change in ROUNDINGS.items()}
    recorded = {name: fingerprint(copy, SPAN) for name, copy in copies.items()}
    for here, there in itertools.product(ROUNDINGS, ROUNDINGS):
        match = compare(copies[here], SPAN, recorded[there])
        assert match.verdict != "different", (here, there, match)
        if here == there:
            assert match.verdict == "same"
        if "fp32" in (here, there) and "," not in here + there:
            assert match.verdict in ("same", "rounded"), "one rounding is proven by a digest"


@settings(max_examples=25, deadline=None)
@given(
    seed=st.integers(0, 2**32),
    relative=st.floats(2.5e-3, 0.5),
    additive=st.booleans(),
    here=st.sampled_from(list(ROUNDINGS)),
    there=st.sampled_from(list(ROUNDINGS)),
)
def test_fine_tuning_is_always_refused(seed: int, relative: float, additive: bool, here: str, there: str) -> None:
    base = weights(seed)
    draw = torch.Generator().manual_seed(seed ^ 1)

    def step(value: Tensor) -> Tensor:
        size = value.square().mean().sqrt() if additive else value
        return value + relative * size * torch.randn(value.shape, generator=draw)

    tuned = base.changed(step).changed(ROUNDINGS[here])
    match = compare(tuned, SPAN, fingerprint(base.changed(ROUNDINGS[there]), SPAN))
    assert match.verdict == "different"
    assert match.distance is not None and 0.3 * relative < match.distance < 3 * relative + 5e-3


@settings(max_examples=15, deadline=None)
@given(seed=st.integers(0, 2**32), relative=st.floats(1e-5, 1e-2), share=st.floats(0.2, 1))
def test_any_step_in_full_precision_is_refused(seed: int, relative: float, share: float) -> None:
    """Neither side is rounded, so rounding explains nothing: the digests decide, however small the step."""
    base = weights(seed)
    draw = torch.Generator().manual_seed(seed ^ 1)

    def step(value: Tensor) -> Tensor:
        chosen = torch.rand(value.shape, generator=draw) < share
        return torch.where(chosen, value * (1 + relative * torch.randn(value.shape, generator=draw)), value)

    assert compare(base.changed(step), SPAN, fingerprint(base, SPAN)).verdict == "different"


@pytest.mark.parametrize("there", ["fp32", "bf16", "fp16"])
def test_a_thousandth_on_every_weight_is_refused_on_a_whole_model(there: str) -> None:
    """Where rounding could explain most: the adapter's base and the model rounded to different formats."""
    view = view_of(make("sam2").model)
    span = span_of(view)
    base: Any = Weights({index: view.block_tensors(index) for index in range(span.entry, span.exit + 1)})
    recorded = fingerprint(base.changed(ROUNDINGS[there]), span)
    for seed, here in enumerate(ROUNDINGS):
        draw = torch.Generator().manual_seed(seed)
        tuned = base.changed(lambda v, d=draw: v * (1 + 1e-3 * torch.randn(v.shape, generator=d)))  # type: ignore[misc]
        assert compare(tuned.changed(ROUNDINGS[here]), span, recorded).verdict == "different", here


def test_one_changed_tensor_among_many_is_refused_also_when_rounded() -> None:
    base = weights(0)
    recorded = fingerprint(base.changed(ROUNDINGS["bf16"]), SPAN)
    for name in base.blocks[3]:
        other = base.changed(ROUNDINGS["fp16"])
        other.blocks[3][name] = (other.blocks[3][name] * 1.02 + 0.001).half().float()
        assert compare(other, SPAN, recorded).verdict == "different", name


def test_the_share_of_weights_that_double_rounding_moves() -> None:
    """The bound in the module rests on this share, 1/16."""
    value = torch.randn(1_000_000, generator=torch.Generator().manual_seed(0))
    moved = (value.half().float().bfloat16() != value.bfloat16()).float().mean().item()
    assert moved == pytest.approx(1 / 16, rel=0.05)


def test_sums_estimate_the_distance() -> None:
    base = weights(1)
    recorded = fingerprint(base, SPAN)
    for relative in (1e-3, 1e-2, 1e-1):
        draw = torch.Generator().manual_seed(2)
        other = base.changed(lambda v, r=relative, d=draw: v + r * v * torch.randn(v.shape, generator=d))  # type: ignore[misc]
        distance = compare(other, SPAN, recorded).distance
        assert distance is not None and math.isclose(distance, relative, rel_tol=0.5, abs_tol=2e-3)


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


def test_the_same_on_any_number_of_threads() -> None:
    base, before = weights(5), torch.get_num_threads()
    try:
        torch.set_num_threads(1)
        one = fingerprint(base, SPAN)
        torch.set_num_threads(3)
        assert fingerprint(base, SPAN) == one
    finally:
        torch.set_num_threads(before)


def test_the_sketch_is_small_and_checked() -> None:
    recorded = fingerprint(weights(5), SPAN)
    sums = recorded.sums()
    assert sums is not None and sums.shape == (4 * 5, SKETCHES)
    digest = "0" * 64
    nan = base64.b64encode(np.full(SKETCHES, np.nan, "<f4").tobytes()).decode()
    for sketch in ("?", "AAAA", "", nan, "A" * 10**6):
        with pytest.raises(ValueError, match="sketch"):
            Fingerprint(bfloat16=digest, sketch=sketch)


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
    assert loading(rounded(make(host), ROUNDINGS["fp16, bf16"]), saved) == [UnprovenBaseWarning]


def test_an_adapter_saved_from_a_half_precision_model_fits_the_full_one(tmp_path: Path) -> None:
    half = make("transformers")
    half.model.to(torch.bfloat16)
    surgery.sparsify(half.model, "balanced")
    folder = surgery.save_adapter(half.model, tmp_path / "half")
    assert read_adapter(folder).config.base_model.fingerprint.precision == "bfloat16"  # type: ignore[union-attr]
    assert loading(make("sam2"), folder) == []
    assert loading(rounded(make("sam2"), ROUNDINGS["fp16"]), folder) == [UnprovenBaseWarning]


@pytest.mark.parametrize("host", ["sam2", "transformers"])
def test_one_step_of_sgd_is_refused_with_the_way_out(host: str, saved: Path) -> None:
    driver = make(host)
    trunk = [parameter for name, parameter in driver.model.named_parameters() if "blocks" in name]
    sum(parameter.square().sum() for parameter in trunk).backward()  # type: ignore[union-attr]
    torch.optim.SGD(trunk, lr=1e-3).step()
    with pytest.raises(AdapterMismatchError, match=r"other weights.*about 0\.[1-4]% away.*force=True"):
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

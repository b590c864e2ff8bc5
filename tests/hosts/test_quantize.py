"""Quantised layers on either host: what runs in few bits, what stays the user's, refusals, other operations beside."""

from __future__ import annotations

import threading
import warnings
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import surgery
from surgery import MissingLibraryError, ModelStateError, Recipe, RecipeError, UnsupportedModelError, WeightsError
from surgery.adapters.fingerprint import fingerprint
from surgery.core.patching import is_patched
from surgery.engine import require_surgery
from surgery.errors import HardwareError, PrecisionWarning, SlowHardwareWarning
from surgery.hosts import view_of
from surgery.operations import CompileParts, Precision, Quantize
from surgery.operations.quantize import Quantization, backends
from surgery.operations.window_routing.geometry import span_of
from tests.hosts.drive import STEADY, Driver, make, video
from tests.hosts.sessions import begun, close, copied, interleaved, models_copied, same, undone

HOSTS = ("sam2", "transformers")
BOTH = ("encoder", "memory_attention")
FIRST = "image_encoder.trunk.blocks.0.attn.qkv"
pytestmark = pytest.mark.skipif(not backends.engines(), reason="this torch has no int8 layers for CPUs")


@pytest.fixture(params=HOSTS)
def host(request: pytest.FixtureRequest) -> str:
    return request.param


@pytest.fixture(autouse=True)
def fast(monkeypatch: pytest.MonkeyPatch) -> None:
    """As on a processor with VNNI, wherever the tests run: no warning of it, and the same kernels."""
    monkeypatch.setattr(backends, "vnni", lambda: True)
    monkeypatch.setattr("surgery.operations.quantize.vnni", lambda: True)


def recipe(*operations: Any, **fields: Any) -> Recipe:
    return Recipe(metadata={"name": "few", "description": "Few bits."}, operations=[*operations, Quantize(**fields)])


def cut(host: str, *operations: Any, **fields: Any) -> Driver:
    driver = make(host)
    surgery.sparsify(driver.model, recipe(*operations, **fields))
    return driver


def bound(driver: Driver) -> Quantization:
    found = require_surgery(driver.model).find(Quantization)
    assert found is not None
    return found


def layers(driver: Driver) -> dict[str, nn.Linear]:
    view = view_of(driver.model)
    return {path: layer for part in BOTH for path, layer in view.linear_layers(part).items()}


# --- what runs in few bits


def test_the_layers_of_the_parts_and_no_others_are_packed(host: str) -> None:
    driver = cut(host, skip=["*.blocks.0.*", "*.mlp.layers.1"])
    driver.track(video(2))
    own = bound(driver)
    expected = [path for path in layers(driver) if path.startswith("image_encoder")]
    expected = [path for path in expected if ".blocks.0." not in path and not path.endswith("mlp.layers.1")]
    assert sorted(own.names.values()) == sorted(expected) and len(expected) > 10
    assert {own.names[number] for number in own._packed} == set(expected)


def test_masks_stay_close_and_hosts_agree() -> None:
    found = {}
    for host in HOSTS:
        stock = make(host).track(video(5), 2)
        found[host] = cut(host, parts=BOTH).track(video(5), 2)
        errors = torch.stack([(a - b).abs().mean() for a, b in zip(found[host], stock, strict=True)])
        assert 0 < errors.median() < 0.05, "logits are of the order of 4"
    close(found["sam2"], found["transformers"], 0.1)


def test_every_layer_skipped_is_stock_bit_for_bit(host: str) -> None:
    assert same(cut(host, skip=["*"]).track(video(4), 2), make(host).track(video(4), 2))


@pytest.mark.parametrize("backend", ["onednn", "fbgemm"])
def test_a_product_is_near_the_exact_one(backend: Any) -> None:
    """Also of rows of zeros, of no tokens at all, and of a bias that is missing."""
    if backend not in backends.engines():
        pytest.skip(f"torch has no {backend} here")
    generator = torch.Generator().manual_seed(1)
    for bias in (True, False):
        layer = nn.Linear(32, 24, bias).requires_grad_(False)
        layer.weight[3] = 0.0
        run = backends.packed(layer, "int8_dynamic", backend)
        tokens = torch.randn(2, 5, 32, generator=generator)
        tokens[0, 1] = 0.0
        exact = layer(tokens)
        assert (run(tokens) - exact).norm() < 0.03 * exact.norm()
        assert torch.equal(run(tokens)[..., 3], exact[..., 3])
        assert torch.equal(run(torch.zeros(4, 32)), layer(torch.zeros(4, 32)))
        assert run(tokens[:0]).shape == (0, 5, 24)


@pytest.mark.parametrize("number", [float("nan"), float("inf")])
def test_pixels_that_are_not_finite_give_what_stock_gives(host: str, number: float) -> None:
    pixels = video(1)
    pixels[0, 0, 100, 100] = number
    stock, driver = make(host), cut(host)
    with torch.inference_mode():
        expected, found = (
            view.stride16_of(view.image_encoder()(pixels)) for view in (view_of(stock.model), view_of(driver.model))
        )
    assert torch.equal(found.isfinite(), expected.isfinite()) and not found.isfinite().all()


# --- the model stays the user's model


def test_undo_leaves_nothing(host: str) -> None:
    undone(make(host), recipe(parts=BOTH))
    driver = cut(host)
    driver.track(video(2))
    own = bound(driver)
    surgery.desparsify(driver.model)
    assert not own._packed and not any(is_patched(module) for module in driver.model.modules())


def test_what_is_saved_is_fp32(host: str, tmp_path: Any) -> None:
    stock = make(host)
    view = view_of(stock.model)
    base = fingerprint(view, span_of(view))
    driver = cut(host, *STEADY.operations, parts=BOTH)
    expected = driver.track(video(5))
    state = driver.model.state_dict()
    assert all(torch.equal(state[name], value) for name, value in stock.model.state_dict().items())
    assert fingerprint(view_of(driver.model), span_of(view)) == base
    surgery.save_adapter(driver.model, tmp_path / "adapter")
    twin = make(host)
    surgery.load_adapter(twin.model, tmp_path / "adapter")
    assert surgery.status(twin.model).recipe.find(Quantize) == Quantize(parts=BOTH)
    assert same(twin.track(video(5)), expected)
    if host == "transformers":
        driver.model.save_pretrained(tmp_path / "model")
        saved = type(stock.model).from_pretrained(tmp_path / "model").state_dict()
        assert all(torch.equal(value, saved[name]) for name, value in stock.model.state_dict().items())


def test_copies_of_models_and_sessions_go_on(host: str) -> None:
    driver = cut(host, *STEADY.operations, parts=BOTH)
    models_copied(driver)
    copied(driver)
    interleaved(driver, [video(4, seed) for seed in (0, 1)])


@pytest.mark.parametrize("way", ["in place", "replaced", "data"])
def test_weights_that_change_are_packed_anew(host: str, way: str) -> None:
    driver, fresh = cut(host), make(host)
    driver.track(video(2))
    for model in (driver.model, fresh.model):
        with torch.no_grad():
            for part in layers(Driver(model)).values():
                if way == "in place":
                    part.weight.mul_(1.1)
                elif way == "replaced":
                    part.weight = nn.Parameter(part.weight * 1.1)
                else:
                    part.weight.data = part.weight.data * 1.1
    surgery.sparsify(fresh.model, recipe())
    assert same(driver.track(video(3)), fresh.track(video(3)))


def test_in_the_middle_of_a_video_only_the_layer_that_changed_is_packed_anew(host: str) -> None:
    driver = cut(host)
    _, run = begun(driver, video(4), 2, {1: (40, 110)})
    before = dict(bound(driver)._packed)
    with torch.no_grad():
        layers(driver)[FIRST].bias.add_(1.0)
    next(run)
    now, names = bound(driver)._packed, bound(driver).names
    assert {names[number] for number, held in now.items() if held is not before[number]} == {FIRST}


def test_threads_that_share_a_model_get_what_each_gets_alone(host: str) -> None:
    driver = cut(host)
    clips = [video(3, seed) for seed in (0, 1)]
    expected = [make_masks(host, clip) for clip in clips]
    found: dict[int, list[Tensor]] = {}
    threads = [
        threading.Thread(target=lambda n=n, clip=clip: found.update({n: driver.track(clip)}))
        for n, clip in enumerate(clips)
    ]
    for each in threads:
        each.start()
    for each in threads:
        each.join()
    assert all(same(found[n], expected[n]) for n in range(2))


def make_masks(host: str, clip: Tensor) -> list[Tensor]:
    return cut(host).track(clip)


def test_features_of_few_bits_are_not_read_by_the_stock_model(host: str) -> None:
    driver, stock = cut(host), make(host)
    sessions = [each.session(video(1)) for each in (driver, stock)]
    for each, session in zip((driver, stock), sessions, strict=True):
        each.click(session, 0, {1: (40, 110)})
    surgery.desparsify(driver.model)
    for each, session in zip((driver, stock), sessions, strict=True):
        each.click(session, 0, {2: (200, 60)})
    one, two = (each.features(session) for each, session in zip((driver, stock), sessions, strict=True))
    assert one.keys() == two.keys()


# --- beside other operations


@pytest.mark.parametrize("name", ["balanced", "cpu"])
def test_routing_and_few_bits_together(host: str, name: str) -> None:
    shipped = Recipe.load(name)
    driver = make(host)
    surgery.sparsify(driver.model, shipped.with_operation(Quantize(parts=BOTH)))
    masks = driver.track(video(6), 2)
    assert all(torch.isfinite(mask).all() for mask in masks)
    assert surgery.status(driver.model).windows_kept < 1
    plain = make(host)
    surgery.sparsify(plain.model, shipped.without(Quantize) if shipped.find(Quantize) else shipped)
    assert not same(masks, plain.track(video(6), 2))


def test_half_precision_of_the_other_parts(host: str) -> None:
    precision = Precision(keep_fp32=("encoder",))
    driver = cut(host, precision)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        masks = driver.track(video(4), 2)
    assert all(mask.dtype == torch.float32 and torch.isfinite(mask).all() for mask in masks)
    assert bound(driver)._packed
    with pytest.raises(RecipeError, match=r"quantize and precision both decide the numbers of encoder.*keep_fp32"):
        Recipe.from_dict({"metadata": {"name": "two", "description": "Two."}, "operations": [Precision(), Quantize()]})


def test_compiled_parts_give_the_same_masks_and_see_new_weights(host: str) -> None:
    driver = cut(host, CompileParts(parts=("encoder",), backend="eager"))
    plain = cut(host)
    close(driver.track(video(3)), plain.track(video(3)), 0.1)
    for each in (driver, plain):
        with torch.no_grad():
            layers(each)[FIRST].weight.mul_(1.5)
    close(driver.track(video(3)), plain.track(video(3)), 0.1)


def test_the_callers_autocast_is_named_once_and_kept_out(host: str) -> None:
    driver = cut(host, parts=BOTH)
    seen = set()
    layer = layers(driver)[FIRST]
    hook = layer.register_forward_hook(lambda module, args, out: seen.add((args[0].dtype, out.dtype)))
    with torch.autocast("cpu", torch.bfloat16):
        with pytest.warns(PrecisionWarning, match="bfloat16 autocast.*quantises part encoder"):
            driver.track(video(2))
        with warnings.catch_warnings():
            warnings.simplefilter("error", PrecisionWarning)
            driver.track(video(2))
    hook.remove()
    assert seen == {(torch.float32, torch.float32)}


# --- refusals


def refused(host: str, error: type[Exception], match: str, model: Any = None, **fields: Any) -> None:
    model = make(host).model if model is None else model
    with pytest.raises(error, match=match):
        surgery.sparsify(model, recipe(**fields))
    assert not any(is_patched(module) for module in model.modules())


@pytest.mark.filterwarnings("ignore:.*quantiz:DeprecationWarning", "ignore:.*quantiz:UserWarning")
def test_a_model_quantised_by_others_is_named(host: str) -> None:
    model = torch.ao.quantization.quantize_dynamic(make(host).model, {nn.Linear}, dtype=torch.qint8)
    refused(host, UnsupportedModelError, r"blocks\.0\.attn\.qkv \(Linear\) is quantised", model)


def test_weights_that_cannot_be_packed(host: str) -> None:
    driver = make(host)
    driver.model.to(torch.bfloat16)
    refused(host, ModelStateError, rf"{FIRST} is bfloat16.*starts from fp32", driver.model)
    driver = make(host)
    with torch.no_grad():
        layers(driver)[FIRST].weight[2] = float("nan")
    refused(host, WeightsError, r"attn\.qkv\.weight has values that are not finite", driver.model)
    driver = make(host)
    view_of(driver.model).image_encoder().to("meta")
    refused(host, ModelStateError, "on the meta device", driver.model)


def test_weights_that_became_unfit_say_so(host: str) -> None:
    driver = cut(host)
    with torch.no_grad():
        layers(driver)[FIRST].weight[2] = float("inf")
    with pytest.raises(WeightsError, match=rf"{FIRST}\.weight has values that are not finite"):
        driver.track(video(1))
    driver.model.to(torch.float64)
    with pytest.raises(ModelStateError, match=r"float64 weights, and quantize needs fp32.*\.float\(\)"):
        driver.track(video(1).double())


def test_offloaded_weights_name_accelerate() -> None:
    from accelerate import cpu_offload

    model = make("transformers").model
    cpu_offload(model.vision_encoder, execution_device=torch.device("cpu"))
    refused("transformers", ModelStateError, r"offloaded \(accelerate dispatch", model)


def test_hardware_and_libraries_that_are_missing(host: str, monkeypatch: pytest.MonkeyPatch) -> None:
    refused(
        host,
        HardwareError,
        r"fp8_dynamic on cpu, expected a CUDA device of compute capability 8\.9",
        scheme="fp8_dynamic",
    )
    monkeypatch.setattr(backends, "engines", list)
    refused(
        host,
        MissingLibraryError,
        rf"torch {torch.__version__.split('+')[0]}.* has no int8 linear layers",
        backend="onednn",
    )
    monkeypatch.setattr(backends, "require", _missing)
    refused(host, MissingLibraryError, "torchao")


def _missing(name: str) -> None:
    raise MissingLibraryError(f"needs {name}")


def test_a_processor_without_vnni_is_warned_of(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("surgery.operations.quantize.vnni", lambda: False)
    with pytest.warns(SlowHardwareWarning, match="no AVX-512 VNNI"):
        cut("sam2")


@pytest.mark.parametrize(
    ("field", "message"),
    [
        ("parts=[mask_decoder]", "expected a non-empty list out of encoder, memory_attention"),
        ("parts=[]", "expected a non-empty list"),
        ("parts=[encodr]", r"unknown part 'encodr' \(did you mean 'encoder'\?\)"),
        ("scheme=int4", "Input should be 'int8_dynamic' or 'fp8_dynamic'"),
        ("backend=mkl", "Input should be 'auto', 'onednn', 'fbgemm' or 'torchao'"),
    ],
)
def test_fields(field: str, message: str) -> None:
    with pytest.raises(RecipeError, match=message):
        recipe().with_overrides([f"quantize.{field}"])


def test_a_pattern_that_names_nothing(host: str) -> None:
    refused(
        host,
        RecipeError,
        rf"quantize.skip: 'image_encoder\S*' names no layer \(did you mean '{FIRST}'",
        skip=[FIRST[:-1]],
    )


def test_torchao_multiplies_too() -> None:
    pytest.importorskip("torchao")
    expected, found = make("sam2").track(video(2)), cut("sam2", backend="torchao").track(video(2))
    assert 0 < (found[1] - expected[1]).abs().mean() < 0.05

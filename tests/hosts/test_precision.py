"""Half precision of parts on either host: what runs in it, what stays stock, the caller's autocast, refusals, undo."""

from __future__ import annotations

import copy
import pickle
import warnings
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from torch._dynamo.testing import CompileCounter

import surgery
from surgery import ModelStateError, Recipe, RecipeError, WeightsError
from surgery.adapters.fingerprint import fingerprint
from surgery.core.parts import PARTS
from surgery.core.patching import is_patched
from surgery.errors import PrecisionWarning
from surgery.hosts import view_of
from surgery.operations import Precision, SparseMemoryRetrieval, SparseQueryRouting, SparseWindowRouting
from surgery.operations.window_routing.geometry import span_of
from surgery.operations.window_routing.settings import StageSettings
from tests.hosts.drive import HOSTS, PADDED, SAM3, STEADY, UNPADDED, Driver, make, video
from tests.hosts.sessions import gather, interleaved, same

DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16}
ROUTING = SparseWindowRouting(span="tiles", temporal=True, rolling=1, score_gate=50.0, budget=0.25)
each_cast = pytest.mark.parametrize("cast", ["autocast", "weights"])


@pytest.fixture(params=HOSTS)
def host(request: pytest.FixtureRequest) -> str:
    return request.param


def recipe(*operations: Any, **fields: Any) -> Recipe:
    return Recipe(
        metadata={"name": "half", "description": "Half precision."}, operations=[*operations, Precision(**fields)]
    )


def routing(host: str) -> SparseWindowRouting:
    """Of tiles, where there are stages."""
    return ROUTING if host != SAM3 else ROUTING.model_copy(update={"stages": StageSettings()})


def cut(host: str, *operations: Any, **fields: Any) -> Driver:
    driver = make(host)
    surgery.sparsify(driver.model, recipe(*operations, **fields))
    return driver


def linears(driver: Driver) -> dict[str, torch.nn.Module]:
    """One linear layer deep inside each part."""
    found = {}
    for name, part in view_of(driver.model).parts().items():
        found[name] = [module for module in part.modules() if isinstance(module, torch.nn.Linear)][-2]
    return found


def watched(driver: Driver, run: Callable[[], Any]) -> dict[str, set[torch.dtype]]:
    """The dtypes that one linear layer of each part returned while `run` ran."""
    seen: dict[str, set[torch.dtype]] = {name: set() for name in PARTS}
    hooks = [
        layer.register_forward_hook(lambda module, args, out, name=name: seen[name].add(out.dtype))
        for name, layer in linears(driver).items()
    ]
    try:
        run()
    finally:
        for hook in hooks:
            hook.remove()
    return seen


# --- what runs in which precision


@pytest.mark.parametrize(
    ("dtype", "cast", "keep"),
    [
        ("bf16", "autocast", ()),
        ("fp16", "autocast", ("encoder", "mask_decoder")),
        ("bf16", "weights", ("memory_attention", "memory_encoder")),
        ("fp16", "weights", ()),
    ],
)
def test_each_part_runs_in_its_own_precision(host: str, dtype: str, cast: str, keep: tuple[str, ...]) -> None:
    driver = cut(host, *STEADY.operations, dtype=dtype, cast=cast, keep_fp32=keep)
    masks: list[Tensor] = []
    seen = watched(driver, lambda: masks.extend(driver.track(video(6), 2)))
    assert seen == {name: {torch.float32 if name in keep else DTYPES[dtype]} for name in PARTS}
    assert all(mask.dtype == torch.float32 and torch.isfinite(mask).all() for mask in masks)
    assert surgery.status(driver.model).windows_kept < 1
    stock = make(host)
    surgery.sparsify(stock.model, STEADY)
    errors = torch.stack([(a - b).abs().mean() for a, b in zip(masks, stock.track(video(6), 2), strict=True)])
    assert 0 < errors.median() < (0.01 if dtype == "fp16" else 0.1), "logits are of the order of 4"


@each_cast
def test_a_recipe_of_precision_alone_routes_nothing(host: str, cast: str) -> None:
    driver = cut(host, cast=cast)
    masks = driver.track(video(4))
    assert not same(masks, make(host).track(video(4)))
    status = surgery.status(driver.model)
    assert (status.operations, status.windows_kept, status.keys_kept) == (("precision",), None, None)
    assert status.parameters_added == 0
    assert "Bf16 in encoder, memory attention" in str(status)


def test_every_part_kept_is_stock_bit_for_bit(host: str) -> None:
    stock = make(host).track(video(5), 2)
    for operations in ((), Recipe.load("exact").operations):
        driver = cut(host, *operations, keep_fp32=PARTS)
        assert same(driver.track(video(5), 2), stock)


@pytest.mark.parametrize(("cast", "windows"), [("autocast", PADDED), ("weights", UNPADDED)])
def test_every_operation_works_in_half_precision(host: str, cast: str, windows: tuple[int, ...]) -> None:
    """Tiles, queries, keys by what the object asks, and a score gate that always asks for the decoder's saliency."""
    driver = make(host, windows)
    operations = (
        routing(host),
        SparseQueryRouting(),
        SparseMemoryRetrieval(keep=0.2, warm_up=False, saliency="object"),
    )
    surgery.sparsify(driver.model, recipe(*operations, cast=cast))
    masks = driver.track(video(7), 2)
    assert all(torch.isfinite(mask).all() for mask in masks)
    assert surgery.status(driver.model).windows_kept < 1
    assert surgery.status(driver.model).queries_kept < 1


@pytest.mark.parametrize(
    ("cast", "kind", "published"),
    [("autocast", "bottleneck", True), ("autocast", "attention", False), ("weights", "attention", False)],
)
def test_norms_that_autocast_leaves_in_fp32(
    host: str, cast: str, kind: str, published: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """CUDA's autocast computes layer norms in fp32, the CPU's does not; tokens of both types must get along."""
    plain = F.layer_norm
    calls = []

    def as_on_cuda(given: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        if not torch.is_autocast_enabled("cpu"):
            return plain(given, *args, **kwargs)
        calls.append(1)
        with torch.autocast("cpu", enabled=False):
            return plain(given.float(), *args, **kwargs)

    monkeypatch.setattr(F, "layer_norm", as_on_cuda)
    changes: dict[str, Any] = {"shortcut": {"type": kind}}
    changes.update({"padding": "published"} if published else {"temporal": True, "rolling": 1})
    driver = make(host, PADDED)
    operations = (SparseWindowRouting(**changes), SparseMemoryRetrieval(keep=0.2, warm_up=False))
    surgery.sparsify(driver.model, recipe(*operations, cast=cast))
    assert all(torch.isfinite(mask).all() for mask in driver.track(video(6)))
    assert surgery.status(driver.model).windows_kept < 1
    assert bool(calls) == (cast == "autocast")


# --- the model stays the user's model


@each_cast
def test_desparsify_and_disabled_give_stock_bit_for_bit(host: str, cast: str) -> None:
    driver = make(host)
    stock = driver.track(video(4), 2)
    before = {name: (id(value), value.data_ptr(), value.clone()) for name, value in driver.model.named_parameters()}
    surgery.sparsify(driver.model, recipe(cast=cast))
    half = driver.track(video(4), 2)
    with surgery.disabled(driver.model):
        assert same(driver.track(video(4), 2), stock)
    assert same(driver.track(video(4), 2), half)
    surgery.desparsify(driver.model)
    assert not any(is_patched(module) for module in driver.model.modules())
    after = dict(driver.model.named_parameters())
    assert list(after) == list(before)
    for name, (identity, address, value) in before.items():
        assert (id(after[name]), after[name].data_ptr()) == (identity, address)
        assert torch.equal(after[name], value)
    assert same(driver.track(video(4), 2), stock)


@pytest.mark.parametrize("way", ["disabled", "desparsify"])
def test_features_of_half_precision_are_not_read_by_the_stock_model(host: str, way: str) -> None:
    """The host caches a frame's features: an object prompted on that frame must not be segmented from half ones."""
    stock = make(host)
    session = stock.session(video(1))
    stock.click(session, 0, {1: (40, 110)})
    stock.click(session, 0, {2: (200, 60)})
    expected = gather(stock, session)[1]
    driver = cut(host)
    session = driver.session(video(1))
    driver.click(session, 0, {1: (40, 110)})
    if way == "desparsify":
        surgery.desparsify(driver.model)
        driver.click(session, 0, {2: (200, 60)})
    else:
        with surgery.disabled(driver.model):
            driver.click(session, 0, {2: (200, 60)})
    with torch.inference_mode():
        assert torch.equal(gather(driver, session)[1], expected)


@each_cast
def test_what_is_saved_is_fp32(host: str, cast: str, tmp_path: Any) -> None:
    stock = make(host)
    view = view_of(stock.model)
    base = fingerprint(view, span_of(view))
    driver = cut(host, *STEADY.operations, cast=cast)
    driver.track(video(5))
    state = driver.model.state_dict()
    for name, value in stock.model.state_dict().items():
        assert torch.equal(state[name], value) and state[name].dtype == value.dtype
    assert fingerprint(view_of(driver.model), span_of(view)) == base
    surgery.save_adapter(driver.model, tmp_path / "adapter")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        twin = make(host)
        surgery.load_adapter(twin.model, tmp_path / "adapter")
    assert surgery.status(twin.model).recipe.find(Precision) == Precision(cast=cast)
    assert same(twin.track(video(5)), driver.track(video(5)))
    if host == "transformers":
        driver.model.save_pretrained(tmp_path / "model")
        saved = type(stock.model).from_pretrained(tmp_path / "model")
        assert all(torch.equal(value, saved.state_dict()[name]) for name, value in stock.model.state_dict().items())


@each_cast
@pytest.mark.parametrize("copier", [copy.deepcopy, lambda model: pickle.loads(pickle.dumps(model))])
def test_copies_are_independent(host: str, cast: str, copier: Any) -> None:
    driver = cut(host, *STEADY.operations, cast=cast)
    expected = driver.track(video(5))
    twin = type(driver)(copier(driver.model))
    surgery.desparsify(driver.model)
    assert same(twin.track(video(5)), expected)
    seen = watched(twin, lambda: twin.track(video(2)))
    assert set.union(*seen.values()) == {torch.bfloat16}


@each_cast
def test_interleaved_videos_equal_each_alone(host: str, cast: str) -> None:
    driver = cut(host, *STEADY.operations, cast=cast)
    interleaved(driver, [video(6, seed) for seed in (0, 1)])


def test_copies_of_weights_follow_the_weights(host: str) -> None:
    driver = cut(host, cast="weights")
    driver.track(video(2))
    with torch.no_grad():
        for parameter in driver.model.parameters():
            parameter.mul_(1.01)
    fresh = make(host)
    fresh.model.load_state_dict(driver.model.state_dict())
    surgery.sparsify(fresh.model, recipe(cast="weights"))
    assert same(driver.track(video(3)), fresh.track(video(3)))


def test_a_part_that_fails_gets_its_weights_back(host: str) -> None:
    driver = cut(host, cast="weights")
    layer = linears(driver)["memory_encoder"]
    hook = layer.register_forward_hook(lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
    with pytest.raises(KeyboardInterrupt):
        driver.track(video(2))
    hook.remove()
    assert {parameter.dtype for parameter in driver.model.parameters()} == {torch.float32}
    surgery.desparsify(driver.model)
    assert same(driver.track(video(3)), make(host).track(video(3)))


@pytest.mark.parametrize(("host", "cast"), [("sam2", "weights"), ("transformers", "autocast")])
def test_compiled_parts_give_the_same_masks_and_do_not_recompile(host: str, cast: str) -> None:
    driver = cut(host, cast=cast)
    expected = driver.track(video(4))
    counter = CompileCounter()
    part: Any = view_of(driver.model).parts()["memory_encoder"]
    part.forward = torch.compile(part.forward, backend=counter)
    assert same(driver.track(video(4)), expected)
    first = counter.frame_count
    assert first >= 1
    assert same(driver.track(video(4)), expected)
    assert counter.frame_count == first


@each_cast
def test_output_hidden_states_are_still_recorded_outside_inference_mode(cast: str) -> None:
    driver, stock = cut("transformers", cast=cast), make("transformers")
    driver.track(video(1))
    out, expected = (each.model.vision_encoder(video(1), output_hidden_states=True) for each in (driver, stock))
    assert len(out.hidden_states) == len(expected.hidden_states)
    assert out.last_hidden_state.dtype == torch.float32
    assert (out.last_hidden_state - expected.last_hidden_state).abs().mean() < 0.05


# --- the caller's autocast


@each_cast
def test_an_outer_autocast_of_the_same_type_is_no_conflict(host: str, cast: str) -> None:
    driver = cut(host, *STEADY.operations, cast=cast)
    with warnings.catch_warnings(), torch.autocast("cpu", torch.bfloat16):
        warnings.simplefilter("error", PrecisionWarning)
        masks = driver.track(video(5))
    assert all(torch.isfinite(mask).all() for mask in masks)


@each_cast
def test_another_outer_autocast_is_named_once_and_the_parts_keep_their_own(host: str, cast: str) -> None:
    driver = cut(host, cast=cast, keep_fp32=["encoder", "mask_decoder"])
    with torch.autocast("cpu", torch.bfloat16):
        with pytest.warns(PrecisionWarning, match="bfloat16 autocast.*float32 in part encoder"):
            driver.track(video(2))
        with warnings.catch_warnings():
            warnings.simplefilter("error", PrecisionWarning)
            seen = watched(driver, lambda: driver.track(video(3)))
    half = {torch.bfloat16}
    single = {torch.float32}
    assert seen == {"encoder": single, "memory_attention": half, "memory_encoder": half, "mask_decoder": single}


def test_disabled_leaves_the_callers_autocast_alone(host: str) -> None:
    driver = make(host)
    with torch.autocast("cpu", torch.bfloat16):
        expected = driver.track(video(4))
    surgery.sparsify(driver.model, recipe(keep_fp32=["encoder"]))
    with torch.autocast("cpu", torch.bfloat16), surgery.disabled(driver.model):
        assert same(driver.track(video(4)), expected)


# --- refusals


def test_a_model_in_half_precision_is_refused_and_unchanged(host: str) -> None:
    driver = make(host)
    driver.model.to(torch.bfloat16)
    with pytest.raises(ModelStateError, match=r"part encoder: .* is bfloat16.*starts from fp32"):
        surgery.sparsify(driver.model, recipe())
    assert not any(is_patched(module) for module in driver.model.modules())


@each_cast
def test_a_model_converted_afterwards_says_so(host: str, cast: str) -> None:
    driver = cut(host, cast=cast)
    driver.model.to(torch.float64)
    with pytest.raises(ModelStateError, match=r"part encoder has float64 weights.*\.float\(\)"):
        driver.track(video(1).double())
    driver.model.float()
    assert len(driver.track(video(2))) == 2


def test_weights_that_fp16_cannot_hold_are_refused(host: str) -> None:
    driver = make(host)
    layer: Any = linears(driver)["memory_attention"]
    with torch.no_grad():
        layer.weight[0, 0] = -1e5
    with pytest.raises(WeightsError, match=r"part memory_attention: .* weight of 1e\+05, fp16 ends at 6\.55e\+04"):
        surgery.sparsify(driver.model, recipe(dtype="fp16"))
    assert not any(is_patched(module) for module in driver.model.modules())
    surgery.sparsify(driver.model, recipe(dtype="fp16", keep_fp32=["memory_attention"]))
    surgery.sparsify(driver.model, recipe(dtype="bf16"))


def test_offloaded_weights_can_be_autocast_and_not_copied() -> None:
    from accelerate import cpu_offload

    driver = cut("transformers")
    expected = driver.track(video(4))
    cpu_offload(driver.model.memory_attention, execution_device=torch.device("cpu"))
    assert same(driver.track(video(4)), expected)
    other = make("transformers")
    cpu_offload(other.model.memory_encoder, execution_device=torch.device("cpu"))
    with pytest.raises(
        ModelStateError, match=r"part memory_encoder has weights that are offloaded.*use cast 'autocast'"
    ):
        surgery.sparsify(other.model, recipe(cast="weights"))
    assert not any(is_patched(module) for module in other.model.modules())


# --- the recipe


def test_fields_round_trip_under_either_name() -> None:
    data = recipe(dtype="bfloat16", keep_fp32=["mask_decoder", "encoder"]).to_dict()
    assert data["operations"][-1]["dtype"] == "bf16"
    loaded = Recipe.parse(Recipe.from_dict(data).to_yaml())
    assert loaded.find(Precision) == Precision(keep_fp32=("encoder", "mask_decoder"))
    assert loaded.with_overrides(["precision.keep_fp32=[]", "precision.dtype=float16"]).find(Precision) == Precision(
        dtype="fp16"
    )
    assert Recipe.load("balanced").find(Precision) is None


@pytest.mark.parametrize(
    ("field", "message"),
    [
        ("keep_fp32=[maskdecoder]", r"unknown part 'maskdecoder' \(did you mean 'mask_decoder'\?\); known: encoder"),
        ("keep_fp32=encoder", "expected a list of parts, got 'encoder'"),
        ("keep_fp32=[encoder, encoder]", "each part once"),
        ("dtype=fp8", "Input should be 'bf16' or 'fp16'"),
        ("cast=all", "'autocast' or 'weights'"),
        ("keep=[]", r"no field 'keep' \(did you mean 'keep_fp32'\?\)"),
    ],
)
def test_bad_fields_are_named(field: str, message: str) -> None:
    with pytest.raises(RecipeError, match=message):
        recipe().with_overrides([f"precision.{field}"])

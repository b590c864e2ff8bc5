"""Recipe operation `compile`: bounded graphs, the same masks, and a model that stays the user's."""

from __future__ import annotations

import copy
import pickle
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch._dynamo.utils import counters

import surgery
from surgery import ModelStateError, Recipe, RecipeError
from surgery.engine import require_surgery
from surgery.hosts import view_of
from surgery.operations import CompileParts, Precision, SparseMemoryRetrieval, SparseQueryRouting, SparseWindowRouting
from surgery.operations import compile as seam
from tests.hosts.drive import PADDED, STEADY, UNPADDED, Driver, make, video
from tests.hosts.routes import force, router_of
from tests.hosts.sessions import close, same

HOSTS = ("sam2", "transformers")
PRUNED = SparseMemoryRetrieval(keep_conditioning=0.3, saliency="object")
BEHIND = ("memory_attention", "memory_encoder", "mask_decoder")


@pytest.fixture(params=HOSTS)
def host(request: pytest.FixtureRequest) -> str:
    return request.param


@pytest.fixture(autouse=True)
def _fresh() -> None:
    torch._dynamo.reset()


def recipe(*operations: Any) -> Recipe:
    return Recipe(metadata={"name": "compiled", "description": "Under test."}, operations=operations)


def eager(*parts: str) -> CompileParts:
    """Graphs are made and run as they are: the same numbers, bit for bit."""
    return CompileParts(backend="eager", parts=parts) if parts else CompileParts(backend="eager")


def graphs() -> int:
    return int(counters["stats"]["unique_graphs"])


def compilation_of(model: Any) -> seam.Compilation:
    found = require_surgery(model).find(seam.Compilation)
    assert found is not None
    return found


def scheduled(driver: Driver, frames: int, objects: int = 1) -> Iterator[Tensor]:
    """Track with another number and choice of windows on every frame from the second on."""
    session = driver.session(video(frames))
    spots = {1: (40, 110), 5: (150, 60), 9: (60, 200)}
    driver.click(session, 0, dict(list(spots.items())[:objects]))
    count = surgery.status(driver.model).windows or 0
    run = driver.propagate(session)
    for number in range(frames):
        if count and number > 1:
            chosen = {(5 * step + number) % count for step in range(1 + 3 * number % (count - 1))}
            force(driver.model, sorted(chosen))
        yield from next(run)[1].values()
    if count:
        force(driver.model, None)


def nothing_new(model: Driver, plain: Driver, given: Recipe, settings: CompileParts) -> surgery.WarmUp:
    """Warm up, then track through every memory length, 16 pointers and many window counts: no graph more."""
    surgery.sparsify(plain.model, given)
    surgery.sparsify(model.model, given, compile=settings)
    done = surgery.warm_up(model.model)
    before = graphs()
    assert done.graphs > 0 and set(done.parts) == set(settings.parts)
    assert all(spent.graphs >= spent.kinds > 0 and spent.seconds > 0 for spent in done.parts.values())
    assert sum(spent.seconds for spent in done.parts.values()) <= done.seconds
    assert same(list(scheduled(model, 18)), list(scheduled(plain, 18)))
    assert same(list(scheduled(model, 4, 3)), list(scheduled(plain, 4, 3)))
    assert graphs() == before
    return done


def test_after_warm_up_tracking_compiles_nothing(host: str) -> None:
    given = recipe(SparseWindowRouting(temporal=True, rolling=1), PRUNED)
    done = nothing_new(make(host, PADDED), make(host, PADDED), given, eager(*BEHIND))
    assert {part: spent.graphs <= 5 for part, spent in done.parts.items()} == dict.fromkeys(BEHIND, True), str(done)


@pytest.mark.parametrize("span", ["stage3", pytest.param("tiles", marks=pytest.mark.slow)])
def test_after_warm_up_the_encoder_takes_every_window_count(span: Any) -> None:
    given = recipe(SparseWindowRouting(temporal=True, span=span))
    done = nothing_new(make("sam2", PADDED), make("sam2", PADDED), given, eager("encoder"))
    assert done.parts["encoder"].graphs == 4, "dense, one window, more windows, all but one"
    assert done.windows == (1, 2, 3, 8)


@pytest.mark.slow
def test_after_warm_up_queries_come_in_any_number() -> None:
    given = recipe(SparseWindowRouting(temporal=True), PRUNED, SparseQueryRouting(rolling=0))
    done = nothing_new(make("sam2"), make("sam2"), given, eager("memory_attention"))
    assert done.graphs <= 8, str(done)


def test_warm_up_leaves_no_trace(host: str) -> None:
    driver, plain = make(host), make(host)
    for each, settings in ((driver, eager("memory_encoder")), (plain, None)):
        surgery.sparsify(each.model, STEADY, compile=settings)
    runs = [scheduled(each, 8) for each in (driver, plain)]
    begun = [[next(run) for _ in range(4)] for run in runs]
    status, attributes = surgery.status(driver.model), [set(vars(module)) for module in driver.model.modules()]
    assert surgery.warm_up(driver.model).frames > 20
    assert surgery.status(driver.model) == status
    assert [set(vars(module)) for module in driver.model.modules()] == attributes
    assert len(require_surgery(driver.model).states) == 1
    assert same(*([*first, *run] for first, run in zip(begun, runs, strict=True)))


def test_warm_up_says_what_it_needs(host: str) -> None:
    model = make(host).model
    with pytest.raises(ModelStateError, match="not under surgery"):
        surgery.warm_up(model)
    surgery.sparsify(model, "memory-only")
    with pytest.raises(ModelStateError, match=r"'memory-only' compiles nothing.*compile=True"):
        surgery.warm_up(model)
    surgery.sparsify(model, "memory-only", compile=True)
    with surgery.disabled(model), pytest.raises(ModelStateError, match="disabled"):
        surgery.warm_up(model)


def test_all_windows_and_keys_compiled_are_the_stock_model(host: str) -> None:
    """Graphs run as they are, so that nothing but the surgery's own part could differ."""
    driver = make(host, PADDED)
    stock = driver.track(video(4))
    surgery.sparsify(driver.model, "exact", compile=eager())
    assert same(driver.track(video(4)), stock)
    assert graphs() > 0


@pytest.mark.parametrize("cast", ["autocast", "weights"])
def test_parts_compiled_in_half_precision(host: str, cast: str) -> None:
    """Precision is set around the graph; either cast gives the graph weights of one type from frame to frame."""
    plain, driver = make(host), make(host)
    half = recipe(Precision(cast=cast, keep_fp32=("mask_decoder",)))
    surgery.sparsify(plain.model, half)
    surgery.sparsify(driver.model, half, compile=eager(*BEHIND))
    expected = plain.track(video(4))
    assert same(driver.track(video(4)), expected)
    before = graphs()
    assert same(driver.track(video(4)), expected)
    assert graphs() == before > 0
    assert {parameter.dtype for parameter in driver.model.parameters()} == {torch.float32}
    surgery.desparsify(driver.model)
    assert same(driver.track(video(3)), make(host).track(video(3)))


def test_objects_of_a_frame_share_nothing_in_compiled_memory_attention(host: str) -> None:
    plain, driver = make(host), make(host)
    surgery.sparsify(plain.model, STEADY)
    surgery.sparsify(driver.model, STEADY, compile=eager("memory_attention"))
    runs = [scheduled(each, 5, objects=3) for each in (driver, plain)]
    assert same(*(list(run) for run in runs))
    spent = compilation_of(driver.model).spent["memory_attention"]
    assert 0 < spent.graphs <= 5, spent
    before = graphs()
    assert same(list(scheduled(driver, 5, objects=3)), list(scheduled(plain, 5, objects=3)))
    assert graphs() == before


@pytest.mark.parametrize("windows", [UNPADDED, PADDED], ids=["unpadded", "padded"])
def test_early_pieces_and_stage4_have_bounded_graphs(windows: tuple[int, ...]) -> None:
    operation = SparseWindowRouting(temporal=True, span="tiles", early=0.6, stage4="routed")
    plain, driver = make("sam2", windows), make("sam2", windows)
    surgery.sparsify(plain.model, recipe(operation))
    surgery.sparsify(driver.model, recipe(operation), compile=eager("encoder"))
    assert same(list(scheduled(driver, 8)), list(scheduled(plain, 8)))
    spent = compilation_of(driver.model).spent["encoder"]
    assert spent.kinds <= 3 and spent.graphs <= 5, spent


def test_a_model_that_is_only_compiled(host: str) -> None:
    driver = make(host)
    stock = driver.track(video(3))
    surgery.sparsify(driver.model, recipe(eager("memory_encoder", "mask_decoder")))
    assert same(driver.track(video(3)), stock)
    assert surgery.status(driver.model).operations == ("compile",)


def copies(model: Any) -> dict[str, Any]:
    return {"deepcopy": copy.deepcopy(model), "pickle": pickle.loads(pickle.dumps(model))}


def test_the_model_stays_the_users(host: str, tmp_path: Path) -> None:
    driver = make(host)
    model = driver.model
    stock = driver.track(video(4))
    classes, attributes = [type(each) for each in model.modules()], [set(vars(each)) for each in model.modules()]
    surgery.sparsify(model, STEADY, compile=eager("memory_encoder", "mask_decoder"))
    sparse = driver.track(video(4))
    made = graphs()
    for name, twin in copies(model).items():
        assert compilation_of(twin) is not compilation_of(model)
        assert same(type(driver)(twin).track(video(4)), sparse), name
        assert graphs() > made, f"{name}: the copy compiles its own"
        made = graphs()
        surgery.desparsify(twin)
        assert same(type(driver)(twin).track(video(4)), stock), name
    if host == "transformers":
        model.save_pretrained(tmp_path)
        again = type(model).from_pretrained(tmp_path)
        assert again.config.architectures == ["Sam2VideoModel"]
    with surgery.disabled(model):
        assert same(driver.track(video(4)), stock)
    assert graphs() == made, "disabled runs the stock forwards"
    surgery.desparsify(model)
    assert [type(each) for each in model.modules()] == classes
    assert [set(vars(each)) for each in model.modules()] == attributes
    assert same(driver.track(video(4)), stock)


class Overwriting:
    """A backend that treats its outputs as CUDA graphs do: the next call of any graph destroys them."""

    def __init__(self) -> None:
        self.last: list[Tensor] = []

    def __call__(self, module: Any, inputs: list[Any]) -> Callable[..., Any]:
        def run(*given: Any) -> Any:
            for tensor in self.last:
                tensor.fill_(float("nan") if tensor.is_floating_point() else 0)
            found = module(*given)
            held = {each.untyped_storage().data_ptr() for each in given if isinstance(each, Tensor)}
            self.last = [
                each for each in found if isinstance(each, Tensor) and each.untyped_storage().data_ptr() not in held
            ]
            return found

        return run


def test_what_is_kept_of_a_call_outlives_memory_that_is_used_again(host: str, monkeypatch: pytest.MonkeyPatch) -> None:
    backend, original = Overwriting(), torch.compile

    def overwriting(function: Any, *, options: dict[str, Any], **how: Any) -> Any:
        assert options["triton.cudagraphs"] and options["triton.cudagraph_skip_dynamic_graphs"]
        return original(function, **{**how, "backend": backend})

    # The score gate always fires, so that what the decoder's attentions read is read again on the next frame.
    routing = SparseWindowRouting(temporal=True, score_gate=1000.0, saliency_mass=0.3)
    given = recipe(routing, PRUNED, SparseQueryRouting())
    driver, plain = make(host), make(host)
    surgery.sparsify(plain.model, given)
    surgery.sparsify(driver.model, given, compile="reduce-overhead")
    monkeypatch.setattr(torch, "compile", overwriting)
    assert same(driver.track(video(5), 2), plain.track(video(5), 2))
    assert surgery.status(driver.model).windows_kept < 1.0


@pytest.mark.slow
def test_inductor_gives_the_same_masks_but_for_rounding(host: str) -> None:
    driver, plain = make(host), make(host)
    surgery.sparsify(plain.model, STEADY)
    surgery.sparsify(driver.model, STEADY, compile=CompileParts(parts=("memory_encoder", "mask_decoder")))
    close(driver.track(video(6)), plain.track(video(6)), 5e-5)
    assert graphs() > 0


def test_window_counts_with_graphs_of_their_own() -> None:
    def counts(windows: tuple[int, ...], mode: str, **fields: Any) -> tuple[int, ...]:
        from surgery.warm import window_counts

        model = make("sam2", windows).model
        surgery.sparsify(model, recipe(SparseWindowRouting(temporal=True, **fields)), compile=mode)
        return window_counts(require_surgery(model))

    assert counts(UNPADDED, "default") == (1, 2, 3, 15)
    assert counts(UNPADDED, "max-autotune") == tuple(range(1, 16))
    assert counts(UNPADDED, "max-autotune", round_to=4) == (4, 8, 12, 15)
    assert counts(UNPADDED, "max-autotune", budget=0.5) == tuple(range(1, 9))
    assert counts(UNPADDED, "max-autotune", budget=0.25, fill=True) == (4,)
    assert counts(PADDED, "max-autotune", budget=0.5) == (1, 2, 3, 8), "no fixed shapes on a padded grid"


# --- asking for it


def test_the_operation_as_data() -> None:
    assert Recipe.load("balanced").find(CompileParts) is None
    written = STEADY.with_operation(CompileParts(parts=["mask_decoder", "encoder"]))
    assert written.find(CompileParts).parts == ("encoder", "mask_decoder")
    assert Recipe.parse(written.to_yaml()) == written
    changed = written.with_overrides(["compile.parts=[encoder]", "compile.mode=max-autotune"])
    assert changed.find(CompileParts) == CompileParts(parts=("encoder",), mode="max-autotune")
    assert written.without(CompileParts) == STEADY
    with pytest.raises(RecipeError, match="no operation left"):
        recipe(CompileParts()).without(CompileParts)
    for override, message in {
        "compile.parts=[encode]": "did you mean 'encoder'",
        "compile.parts=[]": "non-empty",
        "compile.parts=[encoder, encoder]": "once",
        "compile.mode=max": "max-autotune",
        "compile.backend=''": "at least 1",
    }.items():
        with pytest.raises(RecipeError, match=message):
            written.with_overrides([override])
    with pytest.raises(RecipeError, match="one of inductor's"):
        written.with_overrides(["compile.backend=eager", "compile.mode=max-autotune"])


def test_sparsify_adds_replaces_and_drops_it(host: str) -> None:
    model = make(host).model

    def asked(given: Recipe, wanted: Any) -> CompileParts | None:
        surgery.sparsify(model, given, compile=wanted)
        return surgery.status(model).recipe.find(CompileParts)

    own = STEADY.with_operation(CompileParts(parts=("encoder",)))
    assert asked(STEADY, None) is None
    assert asked(STEADY, True) == CompileParts()
    assert asked(STEADY, "max-autotune") == CompileParts(mode="max-autotune")
    assert asked(own, None) == asked(own, True) == own.find(CompileParts)
    assert asked(own, "reduce-overhead") == CompileParts(parts=("encoder",), mode="reduce-overhead")
    assert asked(own, False) is None
    for wrong, message in (("fast", "compile.mode"), (CompileParts(backend="eagre"), "did you mean 'eager'")):
        with pytest.raises(RecipeError, match=message):
            surgery.sparsify(model, STEADY, compile=wrong)
        assert surgery.status(model).recipe == STEADY


def test_a_patched_part_is_refused_and_the_model_unchanged(host: str) -> None:
    model = make(host).model
    encoder = view_of(model).parts()["memory_encoder"]
    patched = encoder.forward = lambda *args, **kwargs: None
    with pytest.raises(ModelStateError, match="leave memory_encoder out"):
        surgery.sparsify(model, STEADY, compile=True)
    assert encoder.forward is patched and not surgery.status(model).sparse
    surgery.sparsify(model, STEADY, compile=eager("encoder"))
    assert encoder.forward is patched


def test_a_calibrated_recipe_is_the_same_compiled_or_not() -> None:
    from surgery.adapters.files import _Origin, _origin, _remember

    model = make("sam2").model
    surgery.sparsify(model, STEADY)
    shortcut = router_of(model).shortcut
    tensors = {name: value.clone() for name, value in shortcut.state_dict().items()}
    record: Any = object()
    _remember(shortcut, _Origin(record, None, STEADY, tensors))
    assert _origin(shortcut, STEADY.with_operation(CompileParts()), tensors).calibration is record
    assert _origin(shortcut, STEADY.with_overrides(["routing.rolling=2"]), tensors).calibration is None


def test_a_part_that_compiles_itself_is_told_from_a_patch() -> None:
    module = torch.nn.Linear(2, 2)
    assert not seam.must_keep_forward(module)
    module.forward = torch.compile(module.forward, backend="eager")
    assert seam.compiled_own_forward(module) and not seam.must_keep_forward(module)
    module.forward = torch.compile(torch.nn.Linear(2, 2).forward, backend="eager")
    assert not seam.compiled_own_forward(module) and seam.must_keep_forward(module)

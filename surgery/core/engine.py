"""The only code that changes a model: check everything, then put a class of ours before each module that an operation
needs; and take it all back."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import TYPE_CHECKING, Any

from torch import nn

from surgery.core.host import HostView, finite
from surgery.core.operation import Bound, Operation, Patch, known
from surgery.core.ownership import Structure, is_orphan, require_own, strangers
from surgery.core.parts import ATTENTION, DECODER
from surgery.core.patching import Patched, host_class, is_patched, own_forward, patch, unpatch
from surgery.core.seams import PART_SEAMS, LinearLayer, ModelPart
from surgery.core.session import Generation
from surgery.core.surgery import RootSite, Site, Surgery, wanted_evidence
from surgery.core.weights import require_plain
from surgery.errors import ModelStateError, UnsupportedModelError, WeightsError

if TYPE_CHECKING:
    from surgery.recipe import Recipe

ROOT_SEAMS = ("encode", "stored")
"""Those of the model itself."""
CALL_SEAMS = (*PART_SEAMS, "memory_attention")
"""Those of whole parts, around the `forward` that they may have of their own."""


def plan(host: HostView, recipe: Recipe, before: Surgery | None) -> Surgery:
    """The surgery that puts the model under `recipe`, after every check; nothing is touched.

    Args:
        before: the surgery the model is under, None for a stock model.

    Raises:
        UnsupportedModelError: the model's structure cannot be operated on as the recipe asks, or it is quantised.
        WeightsError: a weight the surgery relies on is not finite, or is out of range of the recipe's precision.
        ModelStateError: a part carries an instance `forward` of its own, weights that precision cannot start from,
            weights on the meta device, or the surgery of another model.
        RecipeError: the recipe would drop frames that the model reads again, asks for a compile backend that torch does
            not know, or for two kinds of evidence.
    """
    require_own(host.model, before)
    require_plain(host.model)
    operations = operations_of(recipe)
    if not host.video:
        operations = _for_pictures(host, recipe, operations)
    wanted_evidence(operations)
    relied_on = [module for operation in operations for module in operation.check(host)]
    _require_values(host, relied_on)
    surgery = Surgery(host)
    surgery.recipe = recipe
    surgery.bound = _bound(surgery, operations, None)
    inside = [module for seam, _, module, _ in _sites(surgery) if seam not in CALL_SEAMS]
    _require_own_forwards([*inside, *relied_on])
    return surgery


def operations_of(recipe: Recipe) -> list[Operation]:
    """The operations of a recipe, and those that run where a recipe does not name them; the outermost first."""
    named = {type(operation) for operation in recipe.operations}
    silent = [kind.unasked() for kind in known().values() if kind not in named]
    return sorted([*recipe.operations, *(each for each in silent if each is not None)], key=lambda each: each.order)


def _for_pictures(host: HostView, recipe: Recipe, operations: Sequence[Operation]) -> list[Operation]:
    """Those that need no video. Raises UnsupportedModelError where the recipe names one that does."""
    others = [each.type for each in recipe.operations if not each.for_pictures]
    if others:
        raise UnsupportedModelError(f"{host.near_miss(host.model)} (operation {others[0]} needs a video)")
    return [each for each in operations if each.for_pictures]


def _bound(surgery: Surgery, operations: Sequence[Operation], before: Surgery | None) -> tuple[Bound[Any], ...]:
    old = {type(bound.settings): bound for bound in (before.bound if before is not None else ())}
    return tuple(operation.bind(surgery, old.get(type(operation))) for operation in operations)


def _require_values(host: HostView, parts: Sequence[nn.Module]) -> None:
    wanted = {id(part) for part in parts}
    for path, part in host.model.named_modules():
        for name, tensor in part.state_dict().items() if id(part) in wanted else ():
            if name.startswith(("shortcut.", "proposals.")):
                continue
            if tensor.is_meta:
                raise ModelStateError(
                    f"{path}.{name} is offloaded (accelerate dispatch); call sparsify before dispatching the model"
                )
            if not finite(tensor):
                raise WeightsError(f"{path}.{name} has values that are not finite")


def _require_own_forwards(parts: Sequence[nn.Module]) -> None:
    patched = [part for part in parts if "forward" in vars(part) and not own_forward(part)]
    if patched:
        raise ModelStateError(
            f"{type(patched[0]).__name__} carries its own forward (accelerate dispatch or another patch), which would "
            "bypass the surgery; call sparsify before dispatching or patching the model"
        )


def cut(surgery: Surgery) -> None:
    """Do it, to a stock model. Whatever goes wrong half-way is undone before the error leaves."""
    try:
        for bound in surgery.bound:
            bound.applied()
            if bound.learned is not None:
                home, name, module = bound.learned
                home.add_module(name, module)
        for seam, index, module, run in _sites(surgery):
            _site(surgery, index, module, _class(surgery.host, seam, index, module)).add(seam, run)
        for module, kind in surgery.host.within():
            _site(surgery, "within", module, kind)
        root = _site(surgery, "root", surgery.host.model, surgery.host.root)
        for each in _patches(surgery):
            if each.seam in ROOT_SEAMS:
                root.add(each.seam, each.run)
    except BaseException:
        undo(surgery)
        raise
    surgery.structure = Structure.of(surgery.host.model, surgery.patched)
    surgery.generation = Generation(surgery.states)


def reconfigure(surgery: Surgery, recipe: Recipe) -> None:
    """Put a model that is under surgery under another recipe. What was trained stays; sessions are not read again."""
    before, surgery.recipe = surgery.recipe, recipe
    try:
        bound = _bound(surgery, operations_of(recipe), surgery)
    except BaseException:
        surgery.recipe = before
        raise
    _take_back(surgery)
    surgery.bound = bound
    cut(surgery)


def undo(surgery: Surgery) -> None:
    """Give every module its host class back, and leave nothing in any session."""
    surgery.release_sessions()
    _take_back(surgery)
    undo_copies(surgery.host.model)


def _take_back(surgery: Surgery) -> None:
    for module in reversed(surgery.patched):
        unpatch(module)
    surgery.patched.clear()
    for bound in surgery.bound:
        bound.undone()
        if bound.learned is not None:
            home, name, _ = bound.learned
            home._modules.pop(name, None)


def undo_copies(model: nn.Module) -> None:
    """Give copies of modules under surgery, which came into `model` without it, their host class back."""
    for _, module in list(strangers(model, None)):
        if is_orphan(module):
            site: Site = vars(module)["_surgery"]
            unpatch(module)
            for name in site.added:
                module._modules.pop(name, None)


def _patches(surgery: Surgery) -> Iterator[Patch]:
    """What operations run, and before that what notes evidence for them."""
    evidence = surgery.evidence()
    if evidence is not None:
        if evidence.inputs:
            yield Patch("token_to_image", None)
        yield Patch("part", None, DECODER)
    for bound in surgery.bound:
        yield from bound.patches()


def _sites(surgery: Surgery) -> Iterator[tuple[str, int | str, nn.Module, Any]]:
    """Every module that is patched: its seam, its number there, and what runs; several times where several run."""
    host = surgery.host
    for each in _patches(surgery):
        modules: Iterable[tuple[int | str, nn.Module]] = ()
        if each.seam in PART_SEAMS:
            modules = host.parts().items()
        elif each.seam == "memory_attention":
            modules = [(ATTENTION, host.memory_attention())]
        elif each.seam not in ROOT_SEAMS:
            modules = enumerate(host.modules(each.seam))
        for index, module in modules:
            if each.index is None or each.index == index:
                yield each.seam, index, module, each.run


def _site(surgery: Surgery, index: int | str, module: nn.Module, kind: type[Patched]) -> Site:
    """What runs at a module, which is patched unless it was."""
    if not is_patched(module):
        if own_forward(module):
            del module.__dict__["forward"]
        patch(module, kind, (RootSite if index == "root" else Site)(surgery, index))
        surgery.patched.append(module)
    return vars(module)["_surgery"]


def _class(host: HostView, seam: str, index: int | str, module: nn.Module) -> type[Patched]:
    if seam in CALL_SEAMS:
        return host.seams.get(str(index), ModelPart)
    if seam == "linear":
        return LinearLayer
    return host.seams[seam] if seam in host.seams else host.seam_classes()[seam][host_class(module)]

"""The cut itself: check a model against a recipe, graft what the recipe needs, change its settings, undo it all."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import nn

from surgery.errors import ModelStateError, WeightsError
from surgery.graft import graft, is_grafted, own_forward, ungraft
from surgery.hosts.base import Binding, HostView, SpanInfo, finite
from surgery.hosts.blocks import BlockPart, LayerPart
from surgery.hosts.early import EarlyBlock, early_parts
from surgery.hosts.late import late_parts
from surgery.hosts.ownership import Structure, is_orphan, require_own, strangers
from surgery.hosts.parts import part_mixin
from surgery.hosts.weights import require_plain
from surgery.operations import (
    CompileParts,
    Precision,
    SparseMemoryRetrieval,
    SparseQueryRouting,
    SparseWindowRouting,
    TrimCaches,
)
from surgery.operations.window_geometry import late_grid, tile_grid
from surgery.recipe import Recipe
from surgery.routing.correction import Corrections
from surgery.routing.shortcut import Shortcut
from surgery.routing.windows import WindowGrid
from surgery.session import Generation


def inspect(view: HostView, recipe: Recipe, own: Binding | None = None) -> SpanInfo | None:
    """Every check that needs the model, before anything is touched.

    Args:
        own: binding of the surgery the model is under, None for a stock model.

    Returns:
        The span when the recipe routes windows, else None.

    Raises:
        UnsupportedModelError: the model's structure cannot be routed as the recipe asks, or its weights are quantised.
        WeightsError: a weight the surgery relies on is not finite, or is out of range of the recipe's precision.
        ModelStateError: a part carries an instance `forward` of its own, weights that precision cannot start from,
            weights on the meta device, or the surgery of another model.
        RecipeError: the recipe would drop frames that the model reads again, or a compile backend that torch does not
            know.
    """
    require_own(view.model, own)
    require_plain(view.model)
    relied_on = view.cross_attentions()
    for operation in recipe.operations:
        relied_on += operation.check(view)
    _require_values(view, relied_on)
    always = [view.memory_attention(), view.self_attentions()[0], *(module for module, _ in view.wasteful())]
    _require_own_forwards(view, [*always, *relied_on])
    return view.span() if recipe.find(SparseWindowRouting) is not None else None


def _require_values(view: HostView, parts: Sequence[nn.Module]) -> None:
    wanted = {id(part) for part in parts}
    for path, part in view.model.named_modules():
        for name, tensor in part.state_dict().items() if id(part) in wanted else ():
            if name.startswith("shortcut."):
                continue
            if tensor.is_meta:
                raise ModelStateError(
                    f"{path}.{name} is offloaded (accelerate dispatch); call sparsify before dispatching the model"
                )
            if not finite(tensor):
                raise WeightsError(f"{path}.{name} has values that are not finite")


def _require_own_forwards(view: HostView, parts: Sequence[nn.Module]) -> None:
    # The memory attention of a VOS predictor carries a compiled forward on purpose; its graft is on __call__.
    suspects = [part for part in parts if "forward" in vars(part) and part is not view.memory_attention()]
    patched = [part for part in suspects if not own_forward(part)]
    if patched:
        raise ModelStateError(
            f"{type(patched[0]).__name__} carries its own forward (accelerate dispatch or another patch), which would "
            "bypass the surgery; call sparsify before dispatching or patching the model"
        )


def operate(view: HostView, recipe: Recipe, span: SpanInfo | None, shortcut: Shortcut | None) -> None:
    """Cut. Whatever goes wrong half-way is undone before the error leaves.

    Args:
        view: of a stock model that `inspect` has passed. span, shortcut: None when the recipe routes no windows.
    """
    binding = view.binding
    view.span_info = span
    try:
        if span is not None and shortcut is not None:
            binding.grid = WindowGrid(span.side, span.side, span.window)
            blocks = view.blocks()
            view.shortcut_holder = blocks[span.entry]
            blocks[span.entry].add_module("shortcut", shortcut)
            for index in range(span.entry, span.exit + 1):
                part = BlockPart(binding, entry=index == span.entry, exit=index == span.exit)
                _graft(view, blocks[index], view.span_block, part)
            for number, attention in enumerate(view.token_to_image()):
                _graft(view, attention, view.decoder_attention, LayerPart(binding, number))
            decoder = view.mask_decoder()
            if decoder is not None and view.decoder is not None:
                _graft(view, decoder, view.decoder, view)
        for module, lean in view.wasteful():
            _graft(view, module, lean, binding)
        _graft(view, view.memory_attention(), view.memory_attention_mixin, view)
        _graft(view, view.self_attentions()[0], view.self_attention, LayerPart(binding, 0))
        reconfigure(view, recipe)
        _graft(view, view.model, view.root, view)
    except BaseException:
        undo(view)
        raise


def reconfigure(view: HostView, recipe: Recipe) -> None:
    """Set what a model does to `recipe`, and graft what that needs and is not grafted yet.

    The model is under surgery with window routing if the recipe routes windows. Sessions of before are not read again.

    Raises:
        UnsupportedModelError: the recipe asks for tile routing and the early windows do not nest, or for a routed
            stage 4 and its windows are not those of stage 3.
    """
    binding = view.binding
    tiles, late, routing, span = binding.tiles, binding.late, recipe.find(SparseWindowRouting), view.span_info
    parts: list[tuple[nn.Module, type, Any]] = []
    if routing is not None:
        assert span is not None
        if routing.span == "tiles":
            tiles = tile_grid(view, span)
        corrections = _corrections(view, span) if routing.correction == "patch" else None
        parts += [(block, EarlyBlock, part) for block, part in early_parts(view, span, corrections)]
        if routing.stage4 == "routed":
            late = late_grid(view, span)
            parts += [(block, view.late_block, part) for block, part in late_parts(view, span)]
    binding.tiles, binding.late = tiles, late
    for module, mixin, payload in parts:
        _graft(view, module, mixin, payload)
    if recipe.find(SparseMemoryRetrieval) is not None or recipe.find(SparseQueryRouting) is not None:
        for layer, attention in enumerate(view.cross_attentions()):
            _graft(view, attention, view.cross_attention, LayerPart(binding, layer))
    if recipe.find(SparseQueryRouting) is not None:
        for layer, attention in enumerate(view.self_attentions()):
            _graft(view, attention, view.self_attention, LayerPart(binding, layer))
    compiles, precision = recipe.find(CompileParts), recipe.find(Precision)
    compiled = compiles.parts if compiles is not None else ()
    for name, module in view.parts().items():
        if name in compiled and not own_forward(module):
            view.parked.take(module)
        if name in compiled or precision is not None:
            _graft(view, module, part_mixin(view, name), view)
    view.recipe = recipe
    binding.precision, binding.warned = precision, False
    binding.halves.clear()
    binding.routing, binding.retrieval = recipe.find(SparseWindowRouting), recipe.find(SparseMemoryRetrieval)
    binding.queries, binding.caches = recipe.find(SparseQueryRouting), recipe.find(TrimCaches)
    binding.compiled = compiles
    binding.strips = recipe.approximate
    view.structure = Structure.of(view.model, view.grafted)
    binding.generation = Generation(binding.states)


def _corrections(view: HostView, span: SpanInfo) -> Corrections:
    corrections = view.shortcut_module(span).corrections
    if corrections is None:
        raise ModelStateError(
            "routing.correction: patch on a model whose shortcut was made without corrections; call sparsify with this "
            "recipe"
        )
    return corrections


def _graft(view: HostView, module: nn.Module, mixin: type, payload: Any) -> None:
    if is_grafted(module):
        if mixin is EarlyBlock:
            vars(module)["_surgery"] = payload  # another recipe may correct what this block's stage reuses, or not
        return
    if own_forward(module):
        del module.__dict__["forward"]
    graft(module, mixin, payload)
    view.grafted.append(module)


def undo(view: HostView) -> None:
    """Give every module its host class back, and leave nothing in any session."""
    view.release_sessions()
    view.binding.halves.clear()
    for module in reversed(view.grafted):
        ungraft(module)
    view.grafted.clear()
    view.parked.give_back()
    if view.shortcut_holder is not None:
        view.shortcut_holder._modules.pop("shortcut", None)
        view.shortcut_holder = None
    undo_copies(view.model)


def undo_copies(model: nn.Module) -> None:
    """Give copies of modules under surgery, which came into `model` without it, their host class back."""
    for _, module in list(strangers(model, None)):
        if is_orphan(module):
            payload = vars(module)["_surgery"]
            ungraft(module)
            if isinstance(payload, BlockPart) and payload.entry:
                module._modules.pop("shortcut", None)

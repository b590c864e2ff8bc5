"""The cut itself: check a model against a recipe, graft what the recipe needs, change its settings, undo it all."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import nn

from surgery.errors import ModelStateError, UnsupportedModelError, WeightsError
from surgery.graft import graft, is_grafted, own_forward, ungraft
from surgery.hosts.base import HostView, SpanInfo, finite
from surgery.hosts.blocks import BlockPart, LayerPart
from surgery.hosts.compiled import Compilation, check_backend, must_keep_forward, part_mixin, part_module
from surgery.hosts.early import EarlyBlock, early_parts, tile_grid
from surgery.recipe import CompileParts, Recipe
from surgery.routing.shortcut import Shortcut
from surgery.routing.windows import WindowGrid


def inspect(view: HostView, recipe: Recipe) -> SpanInfo | None:
    """Every check that needs the model, before anything is touched.

    Returns:
        The span when the recipe routes windows, else None.

    Raises:
        UnsupportedModelError: the model's structure cannot be routed as the recipe asks.
        WeightsError: a weight the surgery relies on is not finite.
        ModelStateError: a part carries an instance `forward` of its own.
        RecipeError: a compile backend that torch does not know.
    """
    parts: list[nn.Module] = [view.memory_attention(), *view.cross_attentions()]
    routed: list[int] = []
    span = None
    if recipe.routing is not None:
        span = view.span()
        grid = WindowGrid(span.side, span.side, span.window)
        if grid.count < 2:
            raise UnsupportedModelError(
                f"the stage-3 map of {span.side}x{span.side} tokens is a single window of {span.window}: there is "
                "nothing to skip; use recipe memory-only"
            )
        if view.image_size() // 4 % span.side:
            raise UnsupportedModelError(
                f"masks of {view.image_size() // 4} px do not divide into the {span.side} tokens of stage 3"
            )
        routed = list(range(span.entry, span.exit + 1))
        if recipe.routing.span == "tiles":
            tile_grid(view, span)
            routed = list(range(span.exit + 1))
        blocks = view.blocks()
        parts += [*(blocks[index] for index in routed), *view.token_to_image()]
    if recipe.queries is not None:
        parts += view.self_attentions()
    if recipe.compilation is not None:
        _require_compilable(view, recipe.compilation)
    _require_finite(view, routed)
    _require_own_forwards(view, parts)
    return span


def _require_finite(view: HostView, blocks: Sequence[int]) -> None:
    for index in blocks:
        for name, tensor in view.block_tensors(index).items():
            if not finite(tensor):
                raise WeightsError(f"encoder block {index}: {name} has values that are not finite")
    for part in view.cross_attentions():
        for name, tensor in part.state_dict().items():
            if not finite(tensor):
                raise WeightsError(f"memory cross-attention: {name} has values that are not finite")


def _require_own_forwards(view: HostView, parts: Sequence[nn.Module]) -> None:
    # The memory attention of a VOS predictor carries a compiled forward on purpose; its graft is on __call__.
    suspects = [part for part in parts if "forward" in vars(part) and part is not view.memory_attention()]
    patched = [part for part in suspects if not own_forward(part)]
    if patched:
        raise ModelStateError(
            f"{type(patched[0]).__name__} carries its own forward (accelerate dispatch or another patch), which would "
            "bypass the surgery; call sparsify before dispatching or patching the model"
        )


def _require_compilable(view: HostView, settings: CompileParts) -> None:
    check_backend(settings)
    for part in settings.parts:
        module = part_module(view, part)
        if must_keep_forward(module):
            raise ModelStateError(
                f"{type(module).__name__} carries its own forward (accelerate dispatch or another patch), which "
                f"compiling {part} would bypass; sparsify first, or leave {part} out of the parts of operation compile"
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
        retune(view, recipe)
        _graft(view, view.model, view.root, view)
    except BaseException:
        undo(view)
        raise


def retune(view: HostView, recipe: Recipe) -> None:
    """Set what a model does to `recipe`, and graft what that needs and is not grafted yet.

    The model is under surgery with window routing if the recipe routes windows. Sessions of before are not read again.

    Raises:
        UnsupportedModelError: the recipe asks for tile routing and the early windows do not nest.
    """
    binding = view.binding
    if recipe.routing is not None and recipe.routing.span == "tiles":
        assert view.span_info is not None
        binding.tiles = tile_grid(view, view.span_info)
        for block, early in early_parts(view, view.span_info):
            _graft(view, block, EarlyBlock, early)
    if recipe.retrieval is not None or recipe.queries is not None:
        _graft(view, view.memory_attention(), view.memory_attention_mixin, view)
        for layer, attention in enumerate(view.cross_attentions()):
            _graft(view, attention, view.cross_attention, LayerPart(binding, layer))
    if recipe.queries is not None:
        for layer, attention in enumerate(view.self_attentions()):
            _graft(view, attention, view.self_attention, LayerPart(binding, layer))
    settings = recipe.compilation
    for part in settings.parts if settings is not None else ():
        module = part_module(view, part)
        if not own_forward(module):
            view.set_aside.take(module)
        _graft(view, module, part_mixin(view, part), view)
    binding.compilation = Compilation(settings) if settings is not None else None
    view.recipe = recipe
    binding.routing, binding.retrieval, binding.queries = recipe.routing, recipe.retrieval, recipe.queries
    binding.token = object()


def _graft(view: HostView, module: nn.Module, mixin: type, payload: Any) -> None:
    if is_grafted(module):
        return
    if own_forward(module):
        del module.__dict__["forward"]
    graft(module, mixin, payload)
    view.grafted.append(module)


def undo(view: HostView) -> None:
    """Give every module its host class back, and leave nothing in any session."""
    view.release_sessions()
    for module in reversed(view.grafted):
        ungraft(module)
    view.grafted.clear()
    view.set_aside.give_back()
    if view.shortcut_holder is not None:
        view.shortcut_holder._modules.pop("shortcut", None)
        view.shortcut_holder = None

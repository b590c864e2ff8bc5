"""Which parts of a model a frame is divided into, the same names for both hosts, dense and sparse."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import nn

from surgery.bench.probe import REST, Probe
from surgery.hosts import blocks as block_seams
from surgery.hosts import choice, control, query
from surgery.core.host import HostView
from surgery.retrieval.queries import ObjectRegion, QueryRoute
from surgery.routing.tiles import TileRoute

ENCODER, ROUTER, PACKING, SHORTCUT = "encoder: rest", "router", "pack and unpack", "shortcut"
ATTENTION, KEYS, QUERIES = "memory attention: rest", "key plan", "query routing"
DECODER, PROMPTS, MEMORY = "mask decoder", "prompt encoder", "memory encoder"

_SEAMS: tuple[tuple[Any, str, str], ...] = (
    (choice, "thumbnail", ROUTER),
    (choice, "token_picture", ROUTER),
    (choice.FramePreview, "remembered", ROUTER),
    (choice, "mask_tokens", QUERIES),
    (control, "choose_windows", ROUTER),
    (control, "make_route", ROUTER),
    (control, "dense_route", ROUTER),
    (control, "updated_memory", SHORTCUT),
    (control, "updated_tiles", PACKING),
    (control, "plan_keys", KEYS),
    (control, "remember", KEYS),
    (query, "_windows", QUERIES),
    (query, "_route", QUERIES),
    (query, "_subset", QUERIES),
)
"""The surgery's own work between the host's modules: where it is called from, the function, its part."""

_INNER: tuple[tuple[Any, str, str], ...] = (
    (block_seams, "enter", PACKING),
    (block_seams, "leave", PACKING),
    (TileRoute, "gather", PACKING),
    (TileRoute, "merge", PACKING),
    (QueryRoute, "renewed", QUERIES),
)
"""The same inside modules that may be compiled."""


def module_names(view: HostView) -> list[str]:
    """Every row a frame can be divided into, in the order of a frame; `host overhead` is what no other row holds."""
    stages = [_stage(number) for number in range(len(view.stage_starts()))]
    layers = [_layer(number) for number in range(len(view.cross_attentions()))]
    return [
        ROUTER, ENCODER, *stages, PACKING, SHORTCUT, KEYS, QUERIES, ATTENTION, *layers, PROMPTS, DECODER, MEMORY, REST,
    ]  # fmt: skip


@contextmanager
def probed(view: HostView, probe: Probe, inside: bool = True) -> Iterator[None]:
    """Inside, every part of the model opens a span of `probe`; afterwards no hook is left.

    Args:
        view: the model.
        probe: takes the spans.
        inside: also divide the encoder into stages and memory attention into layers; False for compiled modules,
            whose insides are one graph.
    """
    with ExitStack() as stack:
        for name, module in _parts(view, inside):
            stack.callback(module.register_forward_pre_hook(_opener(probe, name)).remove)
            # Kept for failing calls too, so that an exception leaves no span open.
            stack.callback(module.register_forward_hook(_closer(probe), always_call=True).remove)
        for owner, function, name in (*_SEAMS, *(_INNER if inside else ())):
            stack.enter_context(_replaced(owner, function, _span(probe, name, getattr(owner, function))))
        yield


def _parts(view: HostView, inside: bool) -> Iterator[tuple[str, nn.Module]]:
    yield ENCODER, view.image_encoder()
    yield ATTENTION, view.memory_attention()
    yield from ((DECODER, module) for module in view.decoder_calls())
    yield PROMPTS, view.prompt_encoder()
    yield MEMORY, view.memory_encoder()
    if not inside:
        return
    blocks, starts = view.blocks(), view.stage_starts()
    for index, block in enumerate(blocks):
        yield _stage(sum(start <= index for start in starts) - 1), block
        shortcut = block._modules.get("shortcut")
        if shortcut is not None:
            yield SHORTCUT, shortcut
    layers: Any = view.memory_attention().layers
    for number, layer in enumerate(layers):
        yield _layer(number), layer


def _stage(number: int) -> str:
    return f"encoder: stage {number + 1}"


def _layer(number: int) -> str:
    return f"memory attention: layer {number + 1}"


def _opener(probe: Probe, name: str) -> Callable[..., None]:
    return lambda *_: probe.enter(name)


def _closer(probe: Probe) -> Callable[..., None]:
    return lambda *_: probe.leave()


def _span(probe: Probe, name: str, function: Callable[..., Any]) -> Callable[..., Any]:
    def run(*args: Any, **kwargs: Any) -> Any:
        probe.enter(name)
        try:
            return function(*args, **kwargs)
        finally:
            probe.leave()

    return run


_ROUTER_REASONS = ("scene cut", "lost object", "every window needed")
"""Why the router may ask for a dense frame although some windows could be skipped."""


@contextmanager
def forced_windows(view: HostView, share: float | None) -> Iterator[tuple[int, ...] | None]:
    """Inside, frames that may be routed compute `share` of the windows, from the centre outwards; None: as routed.

    Under query routing the queries are the tokens of these windows and of the rolling ones, wherever the objects are.
    The router still does its work, and is timed with it; only its choice is replaced, its own wish for a dense frame
    (cut, lost object, all windows needed) included. Frames that cannot be routed stay dense.
    """
    binding, grid = view.binding, view.binding.grid
    if share is None or grid is None:
        yield None
        return
    windows = tuple(sorted(middle_first(grid.rows, grid.cols)[: max(1, round(share * grid.count))]))
    choose = control.choose_windows

    def chosen(given: Any, view: Any, state: Any, *args: Any) -> tuple[list[int] | None, str | None]:
        answer = choose(given, view, state, *args)
        if given is binding and (answer[0] is not None or answer[1] in _ROUTER_REASONS):
            for obj_id, near in state.regions.items():
                state.regions[obj_id] = ObjectRegion(torch.zeros_like(near.tokens), (0,) * len(near.counts))
            return list(windows), None
        return answer

    with _replaced(control, "choose_windows", chosen):
        yield windows


@contextmanager
def _replaced(owner: Any, name: str, value: Any) -> Iterator[None]:
    before = getattr(owner, name)
    setattr(owner, name, value)
    try:
        yield
    finally:
        setattr(owner, name, before)


def middle_first(rows: int, columns: int) -> list[int]:
    """Window ids from the centre outwards: where an object usually is, and full windows before padded ones."""
    centre = ((rows - 1) / 2, (columns - 1) / 2)
    cells = [(row, column) for row in range(rows) for column in range(columns)]
    cells.sort(key=lambda cell: (cell[0] - centre[0]) ** 2 + (cell[1] - centre[1]) ** 2)
    return [row * columns + column for row, column in cells]

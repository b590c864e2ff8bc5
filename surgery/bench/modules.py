"""Which parts of a model a frame is divided into, the same names for both hosts, dense and sparse."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

from torch import nn

from surgery.bench.probe import REST, Probe
from surgery.core.host import HostView
from surgery.core.surgery import Run, Site, Surgery
from surgery.operations.memory_retrieval.bound import BoundRetrieval
from surgery.operations.query_routing import QueryRouter
from surgery.operations.window_routing.bound import WindowRouter
from surgery.operations.window_routing.policy import FixedWindows

ENCODER, ATTENTION = "encoder: rest", "memory attention: rest"
DECODER, PROMPTS, MEMORY = "mask decoder", "prompt encoder", "memory encoder"
OWN_SEAMS = ("encode", "memory_attention", "stored")
"""Where what an operation does by itself lies between the host's modules, not inside of one."""


def module_names(host: HostView, surgery: Surgery | None) -> list[str]:
    """Every row a frame can be divided into, in the order of a frame; `host overhead` is what no other row holds."""
    stages = [_stage(number) for number in range(len(host.stage_starts()))]
    layers = [_layer(number) for number in range(len(host.cross_attentions()))]
    bound = surgery.bound if surgery is not None else ()
    own = [_operation(each) for each in bound if any(patch.seam in OWN_SEAMS for patch in each.patches())]
    learned = [each.learned[1] for each in bound if each.learned is not None]
    return [*own, ENCODER, *stages, *learned, ATTENTION, *layers, PROMPTS, DECODER, MEMORY, REST]


@contextmanager
def probed(host: HostView, surgery: Surgery | None, probe: Probe, inside: bool = True) -> Iterator[None]:
    """Inside, every part of the model opens a span of `probe`; afterwards no hook is left.

    Args:
        host: the model. surgery: that it is under, or None.
        probe: takes the spans.
        inside: also divide the encoder into stages and memory attention into layers; False for compiled modules,
            whose insides are one graph.
    """
    with ExitStack() as stack:
        for name, module in _parts(host, surgery, inside):
            stack.callback(module.register_forward_pre_hook(lambda *_, name=name: probe.enter(name)).remove)
            # Kept for failing calls too, so that an exception leaves no span open.
            stack.callback(module.register_forward_hook(lambda *_: probe.leave(), always_call=True).remove)
        for module in (host.model, host.memory_attention()) if surgery is not None else ():
            site: Site | None = vars(module).get("_surgery")
            if site is not None:
                stack.callback(setattr, site, "runs", site.runs)
                site.runs = site.runs | {
                    seam: tuple(_spanned(probe, run.__self__, run) for run in runs)  # type: ignore[attr-defined]
                    for seam, runs in site.runs.items()
                    if seam in OWN_SEAMS
                }
        router = surgery.find(WindowRouter) if surgery is not None else None
        if router is not None:
            # It chooses inside the encoder.
            stack.callback(setattr, router, "policy", router.policy)
            router.policy = _spanned(probe, router, router.policy)
        yield


def _parts(host: HostView, surgery: Surgery | None, inside: bool) -> Iterator[tuple[str, nn.Module]]:
    yield ENCODER, host.image_encoder()
    yield ATTENTION, host.memory_attention()
    yield from ((DECODER, module) for module in host.decoder_calls())
    yield PROMPTS, host.prompt_encoder()
    yield MEMORY, host.memory_encoder()
    if not inside:
        return
    blocks, starts = host.blocks(), host.stage_starts()
    for index, block in enumerate(blocks):
        yield _stage(sum(start <= index for start in starts) - 1), block
    for bound in surgery.bound if surgery is not None else ():
        if bound.learned is not None:
            yield bound.learned[1], bound.learned[2]
    layers: Any = host.memory_attention().layers
    for number, layer in enumerate(layers):
        yield _layer(number), layer


def _stage(number: int) -> str:
    return f"encoder: stage {number + 1}"


def _layer(number: int) -> str:
    return f"memory attention: layer {number + 1}"


def _operation(bound: Any) -> str:
    return str(bound.settings.type).replace("_", " ")


def _spanned(probe: Probe, bound: Any, run: Run) -> Run:
    """`run` in a span of an operation."""
    return probe.span(_operation(bound))(run)


@contextmanager
def fixed_windows(surgery: Surgery, share: float | None) -> Iterator[tuple[int, ...] | None]:
    """Inside, frames that may be routed compute `share` of the windows, from the centre outwards; None: as routed.

    Under query routing the queries are the tokens of these windows and of the rolling ones, wherever the objects are.
    Memory is pruned whether masks are unsure or not: those of random weights always are.
    The router still does its work, and is timed with it; only its choice is replaced, its own wish for a dense frame
    (cut, lost object, all windows needed) included. Frames that cannot be routed stay dense.
    """
    router = surgery.find(WindowRouter)
    if share is None or router is None:
        yield None
        return
    grid = router.grid
    windows = tuple(sorted(middle_first(grid.rows, grid.cols)[: max(1, round(share * grid.count))]))
    policy = FixedWindows(windows, timed=True)
    with ExitStack() as stack:
        for bound, name, value in (
            (router, "policy", policy),
            (surgery.find(QueryRouter), "reaches", False),
            (surgery.find(BoundRetrieval), "restores", False),
        ):
            if bound is not None:
                stack.callback(setattr, bound, name, getattr(bound, name))
                setattr(bound, name, value)
        yield windows


def middle_first(rows: int, columns: int) -> list[int]:
    """Window ids from the centre outwards: where an object usually is, and full windows before padded ones."""
    centre = ((rows - 1) / 2, (columns - 1) / 2)
    cells = [(row, column) for row in range(rows) for column in range(columns)]
    cells.sort(key=lambda cell: (cell[0] - centre[0]) ** 2 + (cell[1] - centre[1]) ** 2)
    return [row * columns + column for row, column in cells]

"""Window routing from inside: windows of a test's choice, and the encoder alone on a route."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from surgery.core.cost import count
from surgery.core.frame import FrameContext
from surgery.core.patching import is_patched
from surgery.core.session import VideoState
from surgery.engine import require_surgery
from surgery.operations.window_routing.blocks import TYPE
from surgery.operations.window_routing.bound import WindowRouter, require_router
from surgery.operations.window_routing.policy import FixedWindows, by_evidence
from surgery.operations.window_routing.span import Route


def router_of(model: Any) -> WindowRouter:
    return require_router(require_surgery(model))


def force(model: Any, windows: Sequence[int] | None) -> None:
    """Compute these windows on every frame that may be routed; None: those of the recipe's rules."""
    router_of(model).policy = by_evidence if windows is None else FixedWindows(tuple(windows))


def encoder(model: Any) -> Any:
    return model.image_encoder.trunk if hasattr(model, "image_encoder") else model.vision_encoder.backbone


def blocks_that_run(model: Any, kind: type) -> list[int]:
    """Numbers of the encoder blocks at which something of this kind runs."""
    blocks = enumerate(require_surgery(model).host.blocks())
    sites = {number: vars(block)["_surgery"] for number, block in blocks if is_patched(block)}
    return [number for number, site in sites.items() if any(isinstance(run, kind) for run in site.runs["block"])]


@contextmanager
def on_route(model: Any, route: Route | None) -> Iterator[None]:
    """Inside, the encoder called by itself is routed so; None: as stock."""
    context = None
    if route is not None:
        context = FrameContext(0, VideoState(None), None, records={TYPE: route})
    with require_surgery(model).within(context):
        yield


def levels_of(model: Any, pixels: Tensor, route: Route | None = None) -> list[Tensor]:
    """Stage outputs [1, C, H, W] of the trunk, finest first; of one without stages its output [1, H * W, C]."""
    with on_route(model, route):
        out = encoder(model)(pixels)
    if isinstance(out, list):
        return out
    if not hasattr(out, "intermediate_hidden_states"):
        return [out.last_hidden_state]
    return [level.permute(0, 3, 1, 2) for level in out.intermediate_hidden_states]


def encoder_gflop(model: Any, windows: Sequence[int]) -> float:
    """GFLOP of the encoder on a frame that computes just these windows."""
    context, host = FrameContext(0, VideoState(None), None), require_surgery(model).host
    router_of(model).pretend_windows(context, windows)
    module, side = host.image_encoder(), host.image_size()
    with on_route(model, context.records[TYPE]):
        return count(host, module, lambda: module(torch.empty(1, 3, side, side)))

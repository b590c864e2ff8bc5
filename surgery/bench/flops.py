"""Floating-point operations of one frame, dense and sparse, counted by running the real code on fake tensors.

Matrix products and convolutions only, one multiply-add = 2 (torch.utils.flop_counter); norms, softmax, gathers and
copies are not counted. No memory or time proportional to the model is spent.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from surgery.hosts.base import HostView
from surgery.retrieval.bank import KeyPlan
from surgery.retrieval.saliency import kept_count
from surgery.routing.span import SpanMemory, make_route


@dataclass(frozen=True)
class FrameFlops:
    """GFLOP of the parts that the surgery changes, for one object with a full memory bank."""

    encoder: float
    memory_attention: float

    def speedup(self, dense: FrameFlops) -> float:
        """Predicted ratio of `dense` to this, over both parts."""
        return (dense.encoder + dense.memory_attention) / (self.encoder + self.memory_attention)


@contextmanager
def _unchanged(module: nn.Module) -> Iterator[None]:
    """Put back every plain attribute: hosts cache position codes, and a fake one would poison all later frames."""
    registries = {"_parameters", "_buffers", "_modules"}
    saved = [
        (part, {name: dict(value) if type(value) is dict else value for name, value in vars(part).items()})
        for part in module.modules()
    ]
    try:
        yield
    finally:
        for part, attributes in saved:
            vars(part).update({name: value for name, value in attributes.items() if name not in registries})


def count(module: nn.Module, call: Callable[[], object]) -> float:
    """GFLOP of `call`, which runs `module` and builds its inputs itself; nothing is computed, `module` is unchanged."""
    with (
        torch.no_grad(),
        _unchanged(module),
        FakeTensorMode(allow_non_fake_inputs=True),
        sdpa_kernel(SDPBackend.MATH),
    ):
        counter = FlopCounterMode(display=False)
        with counter:
            call()
    return counter.get_total_flops() / 1e9


def encoder_gflop(view: HostView, windows: Sequence[int] | None = None) -> float:
    """GFLOP of the image encoder, neck included.

    Args:
        view: a model under surgery with window routing.
        windows: stage-3 windows computed; None for the stock encoder.
    """
    binding, span = view.binding, view.span_info
    encoder = view.image_encoder()
    side = view.image_size()
    reference = next(encoder.parameters())
    if windows is not None:
        assert binding.grid is not None and span is not None and binding.routing is not None
        routing, shortcut = binding.routing, view.shortcut_module(span)
        memory = None
        if routing.temporal:
            still = torch.zeros(binding.grid.tokens, span.channels, device=reference.device, dtype=reference.dtype)
            memory = SpanMemory(still, still)
        binding.route = make_route(
            binding.grid, sorted(windows), reference.device, memory, routing.padding == "published",
            not shortcut.pointwise,
        )  # fmt: skip
    try:
        return count(
            encoder, lambda: encoder(torch.empty(1, 3, side, side, device=reference.device, dtype=reference.dtype))
        )
    finally:
        binding.route = None


def memory_attention_gflop(
    view: HostView, frames: int = 7, pointers: int = 64, keep: float | None = None, conditioning: int = 1
) -> float:
    """GFLOP of memory attention for one object.

    Args:
        view: a model under surgery; with memory retrieval when `keep` is given.
        frames: memory frames in the bank. pointers: object pointer rows.
        keep: share of tokens kept of the middle frames, the measuring of the newest frame included; None for stock.
        conditioning: frames among them that are never pruned, besides the newest.
    """
    layers = view.cross_attentions()
    tokens = (view.image_size() // 16) ** 2
    length = frames * tokens + pointers
    reference = next(view.memory_attention().parameters())
    if keep is not None:
        kept = kept_count(tokens, keep)
        middle = max(0, frames - conditioning - 1)
        spatial = torch.arange((conditioning + 1) * tokens + middle * kept, device=reference.device) % tokens
        index = torch.arange(len(spatial) + pointers, device=reference.device)
        stride = view.binding.retrieval.query_stride if view.binding.retrieval is not None else 1
        rows: list[Tensor | None] = [spatial] * len(layers)
        view.binding.plan = KeyPlan(
            layers=len(layers), keep=keep, query_stride=stride, index=[index] * len(layers), rows=rows,
            newest=torch.arange(tokens, device=reference.device), newest_frame=0, picked=[None] * len(layers), kept=0,
            total=1,
        )  # fmt: skip
    try:
        return count(
            view.memory_attention(),
            lambda: view.run_memory_attention(*_bank(view, tokens, length, reference), pointers),
        )
    finally:
        view.binding.plan = None


def _bank(view: HostView, tokens: int, length: int, reference: Tensor) -> tuple[Tensor, Tensor]:
    """Current features [T, 1, C] and memory [M, 1, 64]."""
    width = next(part.in_features for part in view.cross_attentions()[0].modules() if isinstance(part, nn.Linear))
    options = {"device": reference.device, "dtype": reference.dtype}
    return torch.empty(tokens, 1, width, **options), torch.empty(length, 1, 64, **options)  # type: ignore[call-overload]


def predicted(view: HostView, windows: Sequence[int] | None, keep: float | None) -> FrameFlops:
    """FLOPs of a frame with these windows and this keep ratio (None: stock)."""
    return FrameFlops(encoder_gflop(view, windows), memory_attention_gflop(view, keep=keep))

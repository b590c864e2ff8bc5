"""Floating-point operations of one frame, dense and sparse, counted by running the real code on fake tensors.

Matrix products and convolutions only, one multiply-add = 2 (torch.utils.flop_counter); norms, softmax, gathers and
copies are not counted. No memory or time proportional to the model is spent.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from surgery.hosts.base import Binding, HostView
from surgery.operations import SparseMemoryRetrieval, SparseQueryRouting, SparseWindowRouting
from surgery.recipe import Recipe
from surgery.retrieval.bank import Conditioning, KeyPlan, ObjectMemory, plan_keys
from surgery.retrieval.queries import QueryRoute, query_count
from surgery.operations.memory_retrieval.saliency import kept_count
from surgery.routing.span import SpanMemory, make_route


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


@contextmanager
def _countable(binding: Binding) -> Iterator[None]:
    """Eager, in the stock precision, and whole maps: strips cost the same operations in ten times as many calls."""
    before, binding.strips = binding.strips, False
    try:
        with binding.stock_precision(), binding.uncompiled():
            yield
    finally:
        binding.strips = before


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
        memory, tiles, late = None, None, None
        if routing.span == "tiles" and binding.tiles is not None:
            extra, grid = routing.early > 0, binding.tiles
            blank = grid.blank(span.channels, reference.device, reference.dtype, extra)
            urgency = torch.zeros(grid.count, device=reference.device) if extra else None
            tiles = grid.route(sorted(windows), reference.device, blank, urgency, round(routing.early * grid.count))
        elif routing.temporal:
            still = torch.zeros(binding.grid.tokens, span.channels, device=reference.device, dtype=reference.dtype)
            memory = SpanMemory(still, still)
        if routing.stage4 == "routed" and binding.late is not None:
            last = binding.late.blank(reference.device, reference.dtype)
            late = binding.late.route(sorted(windows), reference.device, last)
        binding.route = make_route(
            binding.grid, sorted(windows), reference.device, memory, routing.padding == "published",
            not shortcut.pointwise, tiles, late,
        )  # fmt: skip
    try:
        with _countable(binding):
            return count(
                encoder, lambda: encoder(torch.empty(1, 3, side, side, device=reference.device, dtype=reference.dtype))
            )
    finally:
        binding.route = None


def memory_attention_gflop(
    view: HostView, frames: int | None = None, pointers: int = 64, keep: float | None = None, conditioning: int = 1,
    queries: float | None = None,
) -> float:  # fmt: skip
    """GFLOP of memory attention for one object.

    Args:
        view: a model under surgery; with memory retrieval when `keep` is given, with query routing when `queries` is.
        frames: memory frames in the bank; None for a full one. pointers: object pointer rows.
        keep: share of tokens kept of the middle frames, the measuring of the newest frame included; None for stock.
        conditioning: conditioning frames among them.
        queries: share of the tokens that are queries; None for all.
    """
    layers = view.cross_attentions()
    tokens, frames = view.frame_tokens(), frames or view.bank_size()
    length = frames * tokens + pointers
    reference = next(view.memory_attention().parameters())
    if keep is not None:
        settings = view.binding.retrieval
        view.binding.plan = _full_bank_plan(
            keep if settings is None else settings.model_copy(update={"keep": keep}),
            layers=len(layers), frames=frames, tokens=tokens, pointers=pointers, conditioning=conditioning,
            device=reference.device,
        )  # fmt: skip
    if queries is not None:
        index = torch.arange(query_count(tokens, 0, round(queries * tokens)), device=reference.device)
        still = torch.zeros(tokens, _width(view), device=reference.device, dtype=reference.dtype)
        view.binding.query = QueryRoute(index, tokens, still, [still] * len(layers))
    try:
        with _countable(view.binding):
            return count(
                view.memory_attention(),
                lambda: view.run_memory_attention(*_bank(view, tokens, length, reference), pointers),
            )
    finally:
        view.binding.plan = view.binding.query = None


def _full_bank_plan(
    settings: SparseMemoryRetrieval | float, *, layers: int, frames: int, tokens: int, pointers: int, conditioning: int,
    device: torch.device,
) -> KeyPlan | None:  # fmt: skip
    """The plan of a late frame: every frame but the newest was measured, the newest is measured now."""
    if isinstance(settings, float):
        settings = SparseMemoryRetrieval(keep=settings)
    memory = ObjectMemory(measured=frames)
    memory_frames: list[Conditioning | int] = [Conditioning(frame) for frame in range(conditioning)]
    memory_frames += range(conditioning, frames)
    for frame in range(frames - 1):
        share = settings.keep_conditioning if frame < conditioning else settings.keep
        if share < 1.0:
            memory.frames[frame] = [torch.arange(kept_count(tokens, share), device=device)] * layers
            memory.offsets[frame] = [torch.zeros((), device=device)] * layers
    return plan_keys(
        memory_frames, memory, tokens=tokens, length=frames * tokens + pointers, pointers=pointers, layers=layers,
        keep=settings.keep, query_stride=settings.query_stride, middle=0, stride=1, device=device,
        keep_conditioning=settings.keep_conditioning, rebalance=settings.rebalance,
    )  # fmt: skip


def _width(view: HostView) -> int:
    """Channels of the current features."""
    return next(part.in_features for part in view.cross_attentions()[0].modules() if isinstance(part, nn.Linear))


def _bank(view: HostView, tokens: int, length: int, reference: Tensor) -> tuple[Tensor, Tensor]:
    """Current features [T, 1, C] and memory [M, 1, D]."""
    width = _width(view)
    memory = torch.empty(length, 1, view.memory_channels(), device=reference.device, dtype=reference.dtype)
    return memory.new_empty(tokens, 1, width), memory


class FlopModel:
    """GFLOP of encoder and memory attention of one object, linear in windows and keys between two counted points.

    Args:
        view: a model under surgery; the recipes asked about need what it has grafted (tiles, routed stage 4, queries).
    """

    def __init__(self, view: HostView) -> None:
        self.view = view
        self.encoder = encoder_gflop(view)
        self.memory = memory_attention_gflop(view)
        self.memory_floor = memory_attention_gflop(view, frames=1)
        self.memory_slope = (self.memory - self.memory_floor) / (1 - 1 / view.bank_size())
        self._lines: dict[tuple[str, float, str], tuple[float, float]] = {}
        self._queries: dict[float, float] = {}

    def shares(self, recipe: Recipe, windows: float, keys: float, queries: float | None = None) -> dict[str, float]:
        """What is computed of either part, as shares of the dense model's both.

        Args:
            recipe: the settings. windows, keys, queries: fractions computed, read and asked. Without `queries` as many
            as the budget of query routing allows: how far objects reach is not known before a run.
        """
        encoder, routed = self.encoder, recipe.find(SparseWindowRouting)
        if windows < 1.0 and routed is not None:
            floor, slope = self._line(routed)
            encoder = floor + windows * slope
        memory = self.memory - (1.0 - keys) * self.memory_slope
        asked = recipe.find(SparseQueryRouting)
        if windows < 1.0 and asked is not None:
            memory *= self._of_queries(max(windows, asked.budget) if queries is None else queries)
        both = self.encoder + self.memory
        return {"encoder": encoder / both, "memory_attention": memory / both}

    def _line(self, routing: SparseWindowRouting) -> tuple[float, float]:
        """Encoder GFLOP without any window, and what all of them add."""
        binding, key = self.view.binding, (routing.span, routing.early, routing.stage4)
        if key not in self._lines and binding.grid is not None:
            count, before = binding.grid.count, binding.routing
            binding.routing = routing
            try:
                few, most = (encoder_gflop(self.view, range(windows)) for windows in (1, max(1, count - 1)))
            finally:
                binding.routing = before
            slope = (most - few) / (count - 2) * count if count > 2 else 0.0
            self._lines[key] = few - slope / count, slope
        return self._lines.get(key, (self.encoder, 0.0))

    def _of_queries(self, share: float) -> float:
        if share not in self._queries:
            self._queries[share] = memory_attention_gflop(self.view, queries=min(1.0, share)) / self.memory
        return self._queries[share]

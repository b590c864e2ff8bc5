"""Quantised layers in one model. Packed weights lie here, beside the model's own fp32 ones, which nothing touches."""

from __future__ import annotations

import itertools
import weakref
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from surgery.core.access import replaced
from surgery.core.operation import OwnWork, Patch
from surgery.core.parts import ENCODER, LINEAR_PARTS, Part
from surgery.core.values import cast, floats
from surgery.core.weights import mark, require_fp32, require_unquantised, warned_of_caller
from surgery.errors import WeightsError
from surgery.operations.quantize.backends import Packed, chosen, packed

if TYPE_CHECKING:
    from surgery.operations.quantize import Quantize

_TOKENS = itertools.count()
_BY_TOKEN: weakref.WeakValueDictionary[int, Quantization] = weakref.WeakValueDictionary()


@dataclass(frozen=True, eq=False)
class PackedLayer:
    """A layer as it was packed. made_from: its weight and bias, with marks that change when they do."""

    run: Packed
    made_from: tuple[tuple[Tensor, tuple[int, int]], ...]

    def current(self, layer: nn.Linear) -> bool:
        """Whether the layer's weights are those that were packed: not loaded, trained, moved or replaced since."""
        own = layer._parameters
        return all(
            own[name] is tensor and mark(tensor) == made
            for name, (tensor, made) in zip(("weight", "bias"), self.made_from, strict=False)
        )


class Quantization(OwnWork[Any]):
    """live: a part runs quantised now."""

    settings: Quantize

    def _start(self) -> None:
        self.live = False
        self._packed: dict[int, PackedLayer] = {}
        self._warned = False
        self._token = next(_TOKENS)
        _BY_TOKEN[self._token] = self

    @cached_property
    def names(self) -> dict[int, str]:
        """Paths of the layers that are quantised, by number at the seam."""
        host, settings = self.surgery.host, self.settings
        paths = [(part, path) for part in LINEAR_PARTS for path in host.linear_layers(part)]
        return {
            number: path
            for number, (part, path) in enumerate(paths)
            if part in settings.parts and not settings.skips(path)
        }

    @cached_property
    def layers(self) -> Sequence[Any]:
        """All of the seam."""
        return self.surgery.host.modules("linear")

    def patches(self) -> Iterator[Patch]:
        """See `Bound.patches`."""
        yield from (Patch("part", self._run, part) for part in self.settings.parts)
        yield from (Patch("linear", self._linear, number) for number in self.names)

    def undone(self) -> None:
        """See `Bound.undone`."""
        self._packed.clear()

    def inside(self, part: Part, device: str) -> AbstractContextManager[None]:
        """See `Bound.inside`."""
        quantised = part in self.settings.parts and self.surgery.observer is None
        return self._inside(part, device) if quantised else nullcontext()

    @contextmanager
    def _inside(self, part: str, device: str) -> Iterator[None]:
        asked = f"quantises part {part}, all else of it being fp32"
        self._warned = self._warned or warned_of_caller(device, torch.float32, asked)
        with replaced(self, "live", True), torch.autocast(device, enabled=False):
            yield

    def _run(
        self, part: str, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], proceed: Callable[..., Any]
    ) -> Any:
        """A part with its layers quantised, and all else of it in fp32; see `Precision` for what goes in and out.

        While an observer looks on it runs as stock.
        """
        if self.surgery.observer is not None:
            return proceed(args, kwargs)
        given = list(floats((args, kwargs)))
        first = given[0]
        if type(first) is not Tensor:
            return proceed(args, kwargs)  # a fake tensor, while operations are counted
        if first.device.type == "cpu" and not all(bool(torch.isfinite(each).all()) for each in given):
            # Codes have no NaN, and one infinite token would take all others' bits: as stock, which keeps them apart.
            return proceed(args, kwargs)
        require_fp32(f"part {part}", next(module.parameters()), "quantize")
        context = self.surgery.context
        if part == ENCODER and context is not None:
            context.rounded = True
        with self._inside(part, first.device.type):
            args, kwargs = cast((args, kwargs), lambda found: torch.float32)
            out = require_unquantised(module, part, "quantised", lambda: proceed(args, kwargs))
        return cast(out, lambda found: first.dtype)

    def _linear(self, number: int, layer: nn.Linear, tokens: Tensor, proceed: Callable[[Tensor], Tensor]) -> Tensor:
        if not self.live:
            return proceed(tokens)
        if torch.compiler.is_compiling():
            # Opaque to the graph, so that packed weights are no constants of it and are still made anew.
            return torch.ops.surgery.quantised_linear(tokens, self._token, number, layer.out_features)
        return self.product(number, layer, tokens)

    def product(self, number: int, layer: nn.Linear, tokens: Tensor) -> Tensor:
        """The layer's output by its packed weights, which are made when they are missing or the weights changed.

        Raises:
            ModelStateError: the weights are no longer fp32. WeightsError: or no longer finite.
        """
        held = self._packed.get(number)
        if held is None or not held.current(layer):
            held = self._packed[number] = self._pack(number, layer)
        return held.run(tokens)

    def _pack(self, number: int, layer: nn.Linear) -> PackedLayer:
        weight, name = layer.weight, self.names[number]
        require_fp32(name, weight, "quantize")
        if not torch.isfinite(weight).all():
            raise WeightsError(f"{name}.weight has values that are not finite")
        backend = chosen(self.settings.scheme, self.settings.backend, weight.device)
        own = tuple((each, mark(each)) for each in (weight, layer.bias) if each is not None)
        return PackedLayer(packed(layer, self.settings.scheme, backend), own)


@torch.library.custom_op(
    "surgery::quantised_linear", mutates_args=(), schema="(Tensor tokens, int token, int number, int width) -> Tensor"
)
def _quantised_linear(tokens: Tensor, token: int, number: int, width: int) -> Tensor:
    bound = _BY_TOKEN[token]
    return bound.product(number, bound.layers[number], tokens)


@_quantised_linear.register_fake
def _(tokens: Tensor, token: int, number: int, width: int) -> Tensor:
    return tokens.new_empty((*tokens.shape[:-1], width))

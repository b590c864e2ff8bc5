"""Linear layers of a part in few bits, beside whatever sparsity leaves dense."""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from fnmatch import fnmatchcase
from typing import Any, ClassVar, Literal

import torch
from pydantic import Field, field_validator
from torch import nn

from surgery.core.host import HostView
from surgery.core.operation import Bound, Operation
from surgery.core.parts import LINEAR_PARTS, Part, each_part_once
from surgery.core.surgery import Surgery
from surgery.core.values import name_of
from surgery.errors import ModelStateError, RecipeError, SlowHardwareWarning, nearest
from surgery.operations.quantize.backends import Choice, Scheme, chosen, vnni
from surgery.operations.quantize.bound import Quantization

LinearPart = Literal["encoder", "memory_attention"]
COUNTS = (0, 1, 2, 4, 8, 16)
"""How many of the layers that lose most calibration tries to keep as they are."""

TIE = 1e-6
"""What a layer loses that no mask shows."""


class Quantize(Operation):
    """Linear layers of the encoder and of memory attention multiply in few bits; the model's weights stay fp32."""

    type: Literal["quantize"] = "quantize"
    parts: tuple[LinearPart, ...] = Field(("encoder",), description="whose linear layers are quantised")
    scheme: Scheme = Field(
        "int8_dynamic", description="weights by output channel, tokens at run time; `fp8_dynamic`: CUDA 8.9 and above"
    )
    backend: Choice = Field(
        "auto", description="`onednn` and `fbgemm` are torch's own, for CPUs; `auto`: the fastest that is there"
    )
    skip: tuple[str, ...] = Field(
        (), description="patterns such as `*.blocks.0.*` of layers left as they are, by their names in stock `sam2`"
    )

    alias: ClassVar[str] = "quantize"

    @field_validator("parts", mode="before")
    @classmethod
    def _parts_with_a_seam(cls, value: Any) -> Any:
        found = each_part_once(value)
        other = [part for part in found if part not in LINEAR_PARTS]
        if other or not found:
            raise ValueError(
                f"expected a non-empty list out of {', '.join(LINEAR_PARTS)}; got {value!r:.80} (the other parts have "
                "below 2 % of the work)"
            )
        return found

    @property
    def approximate(self) -> bool:
        """Always: products are rounded."""
        return True

    @property
    def clause(self) -> str:
        """See `Operation.clause`."""
        return f"{self.scheme.split('_')[0]} in {' and '.join(part.replace('_', ' ') for part in self.parts)}"

    @property
    def numbers_of(self) -> tuple[Part, ...]:
        """See `Operation.numbers_of`."""
        return self.parts

    def skips(self, path: str) -> bool:
        """Whether a layer, by its neutral path, is left as it is."""
        return any(fnmatchcase(path, pattern) for pattern in self.skip)

    def beside(self, others: Sequence[Operation]) -> None:
        """See `Operation.beside`: nobody else decides the number format of these parts."""
        for other in others:
            both = [part for part in self.parts if part in other.numbers_of]
            if both:
                raise ValueError(
                    f"quantize and {other.type} both decide the numbers of {', '.join(both)}; take it out of one of "
                    f"them (precision.keep_fp32: [{', '.join(both)}])"
                )

    def structure(self) -> dict[str, Any]:
        """See `Operation.structure`: operations are as many, whatever their numbers."""
        return {}

    def weighed(self, parts: dict[Part, float]) -> dict[Part, float]:
        """See `Operation.weighed`: a third where layers are quantised (measured 3 to 6 times faster, beside what is
        not), a little more for each that is skipped."""
        share = min(1.0, (1 + 0.01 * len(self.skip)) / 3)
        return {part: value * share if part in self.parts else value for part, value in parts.items()}

    def check(self, host: HostView) -> list[nn.Module]:
        """See `Operation.check`: fp32 layers, patterns that name some, a backend that can do it where they are."""
        layers = {path: layer for part in self.parts for path, layer in host.linear_layers(part).items()}
        for pattern in self.skip:
            if not any(fnmatchcase(path, pattern) for path in layers):
                raise RecipeError(f"quantize.skip: {pattern!r} names no layer{nearest(pattern, layers)}")
        for path, layer in layers.items():
            if layer.weight.dtype != torch.float32:
                raise ModelStateError(
                    f"{path} is {name_of(layer.weight.dtype)}, and quantize starts from fp32 weights; load the model "
                    "in fp32, or take a recipe without quantize"
                )
        for device in {layer.weight.device for layer in layers.values() if not layer.weight.is_meta}:
            chosen(self.scheme, self.backend, device)
            if device.type == "cpu" and not vnni():
                warnings.warn(
                    "quantize: this processor has no AVX-512 VNNI, so int8 layers are little or no faster than fp32 "
                    "and keep one bit less; measure, or take a recipe without quantize",
                    SlowHardwareWarning,
                    stacklevel=2,
                )
        return list(layers.values())

    def bind(self, surgery: Surgery, before: Bound[Any] | None) -> Bound[Any]:
        """See `Operation.bind`."""
        return Quantization(self, surgery)

    def trials(self, host: HostView) -> dict[str, Operation]:
        """See `Operation.trials`: every layer quantised alone."""
        layers = [path for part in self.parts for path in host.linear_layers(part) if not self.skips(path)]
        return {
            path: self.model_copy(update={"skip": (*self.skip, *(other for other in layers if other != path))})
            for path in layers
        }

    def searched(self, drops: Mapping[str, float]) -> dict[str, tuple[Any, ...]]:
        """See `Operation.searched`: none skipped, or so many of the layers that lose most."""
        worst = sorted(drops, key=lambda path: drops[path], reverse=True)
        counts = sorted({min(count, len(worst)) for count in COUNTS})
        return {"skip": tuple([*self.skip, *worst[:count]] for count in counts)}

    def risk(self, drops: Mapping[str, float]) -> float | None:
        """See `Operation.risk`: of the layers that are quantised; those that no mask shows lose a little too."""
        if not drops:
            return 1.0 / (1 + len(self.skip))
        return sum(drop + TIE for path, drop in drops.items() if not self.skips(path))


__all__ = ["Quantization", "Quantize"]

"""The graft of a whole part of the model: its precision around the call, its compiled forward inside."""

from __future__ import annotations

from typing import Any, ClassVar

from torch import Tensor

from surgery.core.parts import ATTENTION, DECODER, ENCODER, MEMORY
from surgery.errors import ModelStateError
from surgery.graft import Graft
from surgery.hosts.base import HostView
from surgery.hosts.control import key_plan
from surgery.hosts.query import Run, conditioned, shared_self_attention
from surgery.hosts.weights import quantised_layer
from surgery.operations.precision import run_part


class ModelPart(Graft):
    """A part of the model. Precision is set in `__call__`, where a compiled forward finds it; hooks stay outside of
    the graph."""

    part: ClassVar[str]
    # The view. Not by its type: transformers evaluates the annotations of its models' classes.
    _surgery: Any

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        binding = self._surgery.binding
        try:
            return run_part(binding, self.part, self, super().__call__, args, kwargs)  # type: ignore[misc]
        except Exception as error:
            # Asked only now: looking for it costs time on every frame.
            layer = quantised_layer(self) if binding.precision or binding.compiled else None  # type: ignore[arg-type]
            if layer is None:
                raise
            raise ModelStateError(
                f"part {self.part}: {layer} was quantised after the surgery, and the recipe runs the part "
                f"{'in half precision' if binding.precision else 'compiled'}, which failed ({type(error).__name__}); "
                "take a recipe without operations precision and compile"
            ) from error

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        binding = self._surgery.binding
        compilation = binding.compilation
        if compilation is None or not compilation.wanted(self.part, binding):
            return super().forward(*args, **kwargs)  # type: ignore[misc]
        return compilation.run(self.part, binding, super().forward, args, kwargs)  # type: ignore[misc]


class EncoderPart(ModelPart):
    """The image encoder."""

    part = ENCODER


class MemoryAttentionPart(ModelPart):
    """Memory attention; hosts say what a call was given."""

    part = ATTENTION

    def _conditioned(
        self, current: Tensor, positions: Tensor | None, memory: Tensor, pointers: int, stride: int, run: Run
    ) -> Any:
        """One call: features of the frame [T, 1, C], their positions, memory [M, 1, 64] whose last rows are pointers.

        stride: frames between two memories. run: see `conditioned`.
        """
        view, layers = self._surgery, len(self.layers)  # type: ignore[attr-defined]
        with (
            shared_self_attention(view.binding, current, positions),
            key_plan(
                view.binding,
                length=memory.shape[0],
                pointers=pointers,
                layers=layers,
                bank=view.bank_size(),
                stride=stride,
                device=memory.device,
            ),
        ):
            return conditioned(view.binding, current, positions, layers, run)


class MemoryEncoderPart(ModelPart):
    """The memory encoder."""

    part = MEMORY


class MaskDecoderPart(ModelPart):
    """The mask decoder."""

    part = DECODER


def part_mixin(view: HostView, part: str) -> type[Graft]:
    """The class that is put in front of the own class of a part's module."""
    mixins: dict[str, type[Graft]] = {
        ENCODER: EncoderPart,
        ATTENTION: view.memory_attention_mixin,
        MEMORY: MemoryEncoderPart,
        DECODER: view.decoder or MaskDecoderPart,
    }
    return mixins[part]

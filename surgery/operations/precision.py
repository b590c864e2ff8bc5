"""Parts of a model in half precision: their weights, what goes in and comes out, and the precision of the caller.

A part (`HostView.parts`) is entered under its own precision and left in the dtype it was entered with, so the host's
code between the parts, its sessions and the user never meet another one.
"""

from __future__ import annotations

import math
import statistics
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import torch
from pydantic import Field, field_validator
from torch import Tensor, nn

from surgery.core.host import HostView
from surgery.core.observer import Prediction, Simulation
from surgery.core.operation import Bound, Operation, OwnWork, Patch
from surgery.core.parts import ENCODER, PARTS, Part, Parts
from surgery.core.surgery import Surgery
from surgery.core.values import HALVES, cast, floats, name_of
from surgery.core.weights import mark, require_fp32, require_unquantised, warned_of_caller
from surgery.errors import ModelStateError, UnsupportedModelError, WeightsError

_NAMES = {"bfloat16": "bf16", "float16": "fp16"}
DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16}
BROKEN = 10.0
"""Relative error that stands for an output that is not finite."""


class Precision(Operation):
    """Parts of the model run in half precision; what they take and give, and everything between them, stays fp32."""

    type: Literal["precision"] = "precision"
    dtype: Literal["bf16", "fp16"] = Field("bf16", description="`bfloat16` and `float16` are read as well")
    cast: Literal["autocast", "weights"] = Field(
        "autocast",
        description="`autocast`: as torch.autocast casts operations; `weights`: by half-precision weights",
    )
    keep_fp32: Parts = Field((), description="parts left as they are")

    alias: ClassVar[str] = "precision"

    @field_validator("dtype", mode="before")
    @classmethod
    def _full_names(cls, value: Any) -> Any:
        return _NAMES.get(value, value) if isinstance(value, str) else value

    @property
    def clause(self) -> str:
        """See `Operation.clause`."""
        half = [part.replace("_", " ") for part in self.numbers_of]
        return f"{self.dtype} in {', '.join(half) or 'no part'}"

    @property
    def numbers_of(self) -> tuple[Part, ...]:
        """See `Operation.numbers_of`."""
        return tuple(part for part in PARTS if part not in self.keep_fp32)

    @classmethod
    def simulate(cls, surgery: Surgery, candidates: Sequence[Any]) -> PrecisionSimulation:
        """See `Operation.simulate`."""
        return PrecisionSimulation(candidates)

    def weighed(self, parts: dict[Part, float]) -> dict[Part, float]:
        """See `Operation.weighed`: half as much in half precision."""
        return {part: value if part in self.keep_fp32 else value / 2 for part, value in parts.items()}

    def check(self, host: HostView) -> list[nn.Module]:
        """See `Operation.check`: weights that are fp32, on a device of which torch knows autocast, and that fit the
        half-precision type."""
        for name in self.numbers_of:
            module = host.parts()[name]
            owned = [(key, value) for key, value in module.named_parameters() if ".shortcut." not in f".{key}"]
            if self.cast == "weights":
                _require_present(name, module)
            for key, value in owned:
                require_fp32(f"part {name}: {key}", value, "precision", before=True)
                if not torch.amp.is_autocast_available(value.device.type):
                    raise UnsupportedModelError(
                        f"torch has no autocast for device {value.device.type!r}; expected cpu or cuda"
                    )
            largest = torch.stack([value.detach().abs().amax() for _, value in owned])
            limit = torch.finfo(DTYPES[self.dtype]).max
            place = int(largest.argmax())
            if float(largest[place]) > limit:
                raise WeightsError(
                    f"part {name}: {owned[place][0]} has a weight of {float(largest[place]):.4g}, {self.dtype} ends at "
                    f"{limit:.4g}; use bf16, or add {name} to precision.keep_fp32"
                )
        return []

    def bind(self, surgery: Surgery, before: Bound[Any] | None) -> BoundPrecision:
        """See `Operation.bind`."""
        return BoundPrecision(self, surgery)


@dataclass(frozen=True, eq=False)
class PartSeen:
    """Told to an observer after every call of a part. exact: what it returned; run: the same in another precision."""

    part: str
    exact: Any
    run: Callable[[Precision], Any]


class BoundPrecision(OwnWork[Precision]):
    """Half precision in one model.

    halves: half-precision copies of weights by part, made again when they are missing. lock: held while a part has
    other weights than its own. warned: the caller's autocast was noticed.
    """

    def _start(self) -> None:
        self._halves: dict[str, HalfWeights] = {}
        self._lock = threading.RLock()
        self._warned = False

    def patches(self) -> Iterator[Patch]:
        """See `Bound.patches`: every part, those that stay fp32 as well, under whatever autocast the caller has."""
        yield Patch("part", self._run)

    def undone(self) -> None:
        """See `Bound.undone`."""
        self._halves.clear()

    def inside(self, part: Part, device: str) -> AbstractContextManager[Any]:
        """See `Bound.inside`."""
        if self.surgery.observer is not None:
            return nullcontext()
        return self._entered(part, self.surgery.host.parts()[part], self.settings, device)

    def _run(
        self, part: str, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], proceed: Callable[..., Any]
    ) -> Any:
        """A part in the precision the recipe gives it; half-precision tensors come back in the dtype of the first
        floating-point tensor given.

        Raises:
            ModelStateError: the weights are no longer fp32.
        """
        context, observer = self.surgery.context, self.surgery.observer
        if observer is None:
            if part == ENCODER and context is not None and part not in self.settings.keep_fp32:
                context.rounded = True
            return self._cast(part, module, self.settings, args, kwargs, proceed)
        exact = proceed(args, kwargs)

        def run(settings: Precision) -> Any:
            with self.surgery.within(None):
                return self._cast(part, module, settings, args, kwargs, proceed)

        observer.noted(PartSeen(part, exact, run))
        return exact

    def _cast(
        self, part: str, module: nn.Module, settings: Precision, args: tuple[Any, ...], kwargs: dict[str, Any],
        proceed: Callable[..., Any],
    ) -> Any:  # fmt: skip
        first = next(floats((args, kwargs)))
        given = first.dtype
        with self._entered(part, module, settings, first.device.type) as dtype:
            # Weights of one type take only tensors of that type; autocast takes fp32 and its own.
            whole = settings.cast == "weights" and dtype in HALVES
            args, kwargs = cast(
                (args, kwargs), lambda found: dtype if whole else found if found == dtype else torch.float32
            )
            out = require_unquantised(module, part, "in half precision", lambda: proceed(args, kwargs))
        return cast(out, lambda found: given if found in HALVES else found)

    @contextmanager
    def _entered(self, part: str, module: nn.Module, settings: Precision, device: str) -> Iterator[torch.dtype]:
        require_fp32(f"part {part}", next(module.parameters()), "precision")
        dtype = torch.float32 if part in settings.keep_fp32 else DTYPES[settings.dtype]
        asked = f"asks for {name_of(dtype)} in part {part}"
        self._warned = self._warned or warned_of_caller(device, dtype, asked)
        if dtype == torch.float32:
            with torch.autocast(device, enabled=False):
                yield dtype
        elif settings.cast == "autocast":
            # Autocast's cache knows weights, not types: under a caller's autocast of another type it would mix them.
            with torch.autocast(device, dtype=dtype, cache_enabled=False):
                yield dtype
        else:
            # The lock, because another thread would meet half-precision weights where the model's own should be.
            with (
                self._lock,
                torch.autocast(device, enabled=False),
                self._half_weights(part, module, dtype).bound(),
            ):
                yield dtype

    def _half_weights(self, part: str, module: nn.Module, dtype: torch.dtype) -> HalfWeights:
        held = self._halves.get(part)
        if held is None or held.dtype != dtype or not held.current():
            _require_present(part, module)
            held = self._halves[part] = HalfWeights(module, dtype)
        return held


class PrecisionSimulation(Simulation):
    """Runs every part a second time in each precision of the candidates. errors: relative, of its outputs."""

    def __init__(self, settings: Sequence[Precision]) -> None:
        self.settings = list(dict.fromkeys(_bare(each) for each in settings))
        self.errors: dict[tuple[str, Precision], list[float]] = {}

    def noted(self, what: Any) -> None:
        """See `Observer.noted`."""
        if not isinstance(what, PartSeen):
            return
        exact = list(floats(what.exact))
        for settings in self.settings:
            rounded = floats(what.run(settings))
            error = max(_relative(one, other) for one, other in zip(rounded, exact, strict=True))
            self.errors.setdefault((what.part, settings), []).append(error)

    def predict(self, settings: Precision, lengths: Sequence[int]) -> Prediction:
        """See `Simulation.predict`: the errors of the parts in half precision are at risk."""
        errors = [self.errors.get((part, _bare(settings)), []) for part in settings.numbers_of]
        return Prediction(None, sum(statistics.fmean(each) for each in errors if each))


def _bare(settings: Precision) -> Precision:
    return settings.model_copy(update={"keep_fp32": ()})


def _relative(rounded: Tensor, exact: Tensor) -> float:
    """|rounded - exact| / |exact|, at most BROKEN."""
    size = float(exact.float().norm().clamp_min(1e-12))
    error = float((rounded.float() - exact.float()).norm()) / size
    return min(error, BROKEN) if math.isfinite(error) else BROKEN


class HalfWeights:
    """Half-precision copies of a part's fp32 weights.

    The originals stay the module's own between calls, so that a state dict, `.to()`, an adapter and `desparsify` meet
    nothing else. Costs half the memory of the weights on top of them.
    """

    def __init__(self, module: nn.Module, dtype: torch.dtype) -> None:
        self.dtype = dtype
        copies: dict[int, nn.Parameter] = {}
        self._slots: list[tuple[dict[str, Any], str, nn.Parameter, tuple[int, int], nn.Parameter]] = []
        with torch.inference_mode(False), torch.no_grad():
            for part in module.modules():
                for name, own in part._parameters.items():
                    if own is None or own.dtype != torch.float32:
                        continue
                    if id(own) not in copies:
                        copies[id(own)] = nn.Parameter(own.detach().to(dtype), requires_grad=False)
                    self._slots.append((part._parameters, name, own, mark(own), copies[id(own)]))

    def current(self) -> bool:
        """Whether the weights are those that were copied: not loaded, trained, moved or replaced since."""
        return all(home.get(name) is own and mark(own) == made for home, name, own, made, _ in self._slots)

    @contextmanager
    def bound(self) -> Iterator[None]:
        """Inside, the module has the copies for weights."""
        try:
            for home, name, _, _, copy in self._slots:
                home[name] = copy
            yield
        finally:
            for home, name, own, _, _ in self._slots:
                home[name] = own


def _require_present(name: str, module: nn.Module) -> None:
    if any(weight.device.type == "meta" for weight in module.parameters()):
        raise ModelStateError(
            f"part {name} has weights that are offloaded, and cast 'weights' keeps copies on the device; use cast "
            "'autocast'"
        )

"""What an operation of a recipe is, and the registry in which recipes find it.

An operation is the pydantic model that its YAML entry is. It checks a host's model by itself, before anything is
touched, and says what it needs beside it in a recipe. Bound to a model it says what runs at which seam. `register` is
all that a new type has to call.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from types import MappingProxyType
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Generic, TypeVar

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator

from surgery.core.evidence import EvidenceSettings
from surgery.core.moved import at_new_places, told_as_written
from surgery.core.parts import ENCODER, Part
from surgery.core.windows import WindowGrid
from surgery.errors import RecipeError

if TYPE_CHECKING:
    from pydantic.functional_validators import ModelWrapValidatorHandler
    from torch import Tensor, nn
    from typing_extensions import Self

    from surgery.core.frame import FrameContext
    from surgery.core.host import HostView
    from surgery.core.observer import Simulation
    from surgery.core.surgery import Surgery

MOST = 1_000_000
"""The largest count a field takes."""

Fraction = Annotated[float, Field(gt=0.0, le=1.0)]
Share = Annotated[float, Field(ge=0.0, le=1.0)]
Count = Annotated[int, Field(ge=0, le=MOST)]


class Fields(BaseModel):
    """Immutable, strict about types, closed to unknown keys and to numbers that are not finite."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, allow_inf_nan=False)

    @field_validator("*", mode="before")
    @classmethod
    def _sequences(cls, value: Any) -> Any:
        # What YAML and JSON call a list; a field that cannot be changed is a tuple.
        return tuple(value) if isinstance(value, list) else value


@dataclass(frozen=True)
class Patch:
    """What runs at a seam (`surgery.core.seams`).

    run: None where the host's class in front does it all. index: which module of the seam, by number, or a part by
    name; None: every one.
    """

    seam: str
    run: Callable[..., Any] | None
    index: int | str | None = None


class Operation(Fields):
    """One entry of a recipe. A subclass narrows `type` to a literal with a default and adds its fields.

    alias: short name for overrides and `calibration.search`. order: operations of a lower one run outside of those of a
    higher one where they share a seam. share: name of what it keeps a share of, for status and calibration; by_frame:
    it is the same for all objects of a frame. fixed_shapes: it needs the shapes of routed frames not to depend on what
    is chosen. for_pictures: it needs no video. moved: dotted names that fields had in older recipes, to those of now.
    """

    type: str
    alias: ClassVar[str]
    order: ClassVar[int] = 0
    share: ClassVar[str | None] = None
    by_frame: ClassVar[bool] = False
    fixed_shapes: ClassVar[bool] = False
    for_pictures: ClassVar[bool] = False
    moved: ClassVar[Mapping[str, str]] = MappingProxyType({})

    @model_validator(mode="wrap")
    @classmethod
    def _as_of_now(cls, data: Any, handler: ModelWrapValidatorHandler[Self]) -> Self:
        if not (cls.moved and isinstance(data, Mapping)):
            return handler(data)
        found, written = at_new_places(data, cls.moved)
        try:
            return handler(found)
        except ValidationError as error:
            raise told_as_written(error, written) from None

    @property
    def approximate(self) -> bool:
        """Whether masks may differ from the stock model's."""
        return False

    @property
    def clause(self) -> str:
        """What it does with these settings, as a part of a sentence."""
        return self.type.replace("_", " ")

    @property
    def evidence(self) -> EvidenceSettings | None:
        """What it needs to know of the objects on the frame before, if anything."""
        return None

    @property
    def numbers_of(self) -> tuple[Part, ...]:
        """Parts whose number format it decides: no two operations may decide that of one part."""
        return ()

    def beside(self, others: Sequence[Operation]) -> None:
        """Raises ValueError when the other operations of the recipe are not those it needs."""

    @classmethod
    def unasked(cls) -> Operation | None:
        """What runs in recipes that do not name this operation, if anything."""
        return None

    @classmethod
    def neutral(cls) -> Operation:
        """Settings that no other operation's and no searched value can clash with."""
        return cls()  # type: ignore[call-arg]

    def check(self, host: HostView) -> list[nn.Module]:
        """Whether the model can be operated on, before anything is touched.

        Returns:
            Modules whose weights must be there and finite, and that must not carry a forward of their own, which would
            bypass the surgery.

        Raises:
            UnsupportedModelError, ModelStateError, WeightsError, RecipeError: whatever is wrong with the model.
        """
        return []

    def bind(self, surgery: Surgery, before: Bound[Any] | None) -> Bound[Any]:
        """What it does in the model of `surgery`; nothing is touched yet.

        before: the same operation in the surgery that this one replaces, whose trained weights it goes on with.
        """
        return Bound(self, surgery)

    @classmethod
    def simulate(cls, surgery: Surgery, candidates: Sequence[Any]) -> Simulation | None:
        """Predict from dense passes what each of these settings would do; None: settings are compared by real runs."""
        return None

    def trials(self, host: HostView) -> dict[str, Operation]:
        """Settings that do a single thing of what these do, by its name. Calibration runs each alone, to see what it
        loses."""
        return {}

    def searched(self, drops: Mapping[str, float]) -> dict[str, tuple[Any, ...]]:
        """Values to try besides those of the recipe's search, by field, given what each of `trials` lost (1 - J&F)."""
        return {}

    def risk(self, drops: Mapping[str, float]) -> float | None:
        """What these settings would lose if what each of `trials` lost added up, on a scale of its own where none were
        run; None: no trial says anything of it."""
        return None

    def structure(self) -> dict[str, Any]:
        """The settings that decide what a share costs; two with the same are counted once."""
        return self.model_dump(mode="json")

    def allowed(self, kept: Mapping[str, float]) -> float | None:
        """The share that the settings allow on a frame, given those of operations before it; None: it is not known."""
        return None

    def weighed(self, parts: dict[Part, float]) -> dict[Part, float]:
        """What the operations of every part weigh when settings are ranked, half as much where they are twice as fast.

        parts: GFLOP, or shares of a frame's.
        """
        return parts


_O = TypeVar("_O", bound=Operation)


class Bound(Generic[_O]):
    """An operation in one model.

    settings: the entry of the recipe. surgery: which it is a part of. saves_in: the part that its share is of. steps:
    its share changes by one in so many. needs_memory_frames: whether hosts note which
    frames they hand to memory attention. learned: a module whose weights calibration fits and adapters hold, with the
    module of the host it is added to and its name there. grid: windows by which it computes the encoder's map.
    """

    needs_memory_frames = False
    saves_in: ClassVar[Part] = ENCODER
    steps: int = 1

    def __init__(self, settings: _O, surgery: Surgery) -> None:
        self.settings, self.surgery = settings, surgery
        self.learned: tuple[nn.Module, str, nn.Module] | None = None
        self.grid: WindowGrid | None = None

    def patches(self) -> Iterable[Patch]:
        """What runs at which seam."""
        return ()

    def applied(self) -> None:
        """The model is about to be patched: what must be changed besides is changed."""

    def undone(self) -> None:
        """The surgery was undone: what `applied` changed is put back."""

    def pretend(self, context: FrameContext, kept: Mapping[str, float]) -> None:
        """Leave in the context and in its video what a late frame would find there, with these shares kept, so that
        what runs on it can be counted. A share that is absent is what the settings allow; 1 means nothing is left out.
        """

    def inside(self, part: Part, device: str) -> AbstractContextManager[Any]:
        """What to enter for work of other operations with the modules of a part, between the host's calls."""
        return nullcontext()

    def kind(self, context: FrameContext, part: Part, fixed: bool) -> tuple[Any, ...]:
        """What kind of call a part gets on this frame, as far as this operation decides: every kind is compiled apart.

        fixed: sizes that differ make kinds of their own; else they are marked as symbols.
        """
        return ()

    def constants(self) -> Iterable[Tensor]:
        """Tensors that it hands to the modules of a part and that never change."""
        return ()

    def own(self, context: FrameContext, part: Part) -> None:
        """Copy what was noted inside of a compiled part out of memory that its next call may use again."""


class OwnWork(Bound[_O]):
    """An operation that makes things of one model when they are needed. A copy of the model makes its own."""

    def __init__(self, settings: _O, surgery: Surgery) -> None:
        super().__init__(settings, surgery)
        self._start()

    def _start(self) -> None:
        """Nothing is made yet."""

    def __getstate__(self) -> dict[str, Any]:
        return {"settings": self.settings, "surgery": self.surgery, "learned": None, "grid": None}

    def __setstate__(self, state: dict[str, Any]) -> None:
        vars(self).update(state)
        self._start()


_KINDS: dict[str, type[Operation]] = {}


def register(kind: type[_O]) -> type[_O]:
    """Make an operation known to recipes; returns it, so that it can decorate the class.

    Raises:
        RecipeError: its type or alias is another one's.
    """
    name: str = kind.model_fields["type"].default
    for known, other in _KINDS.items():
        if other is not kind and (known == name or other.alias == kind.alias):
            raise RecipeError(
                f"operation {name!r} (alias {kind.alias!r}): {known!r} (alias {other.alias!r}) is registered already; "
                "expected another type and alias"
            )
    _KINDS[name] = kind
    return kind


def percent(share: float) -> str:
    """A share as people read it: 0.125 is "12.5 %"."""
    return f"{100 * share:.3g} %"


def known() -> Mapping[str, type[Operation]]:
    """Every registered operation by its type."""
    return MappingProxyType(_KINDS)

"""What an operation of a recipe is, and the registry in which recipes find it.

An operation is the pydantic model that its YAML entry is. It checks a host's model by itself, before anything is
touched, and says what it needs beside it in a recipe. `register` is all that a new type has to call.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import TYPE_CHECKING, Annotated, ClassVar, TypeVar

from pydantic import BaseModel, ConfigDict, Field

from surgery.errors import RecipeError

if TYPE_CHECKING:
    from torch import nn

    from surgery.hosts.base import HostView

MOST = 1_000_000
"""The largest count a field takes."""

Fraction = Annotated[float, Field(gt=0.0, le=1.0, allow_inf_nan=False)]


class Settings(BaseModel):
    """Immutable, strict about types, closed to unknown keys."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)


class Operation(Settings):
    """One entry of a recipe. A subclass narrows `type` to a literal with a default and adds its fields.

    alias: short name for overrides and `calibration.search`.
    """

    type: str
    alias: ClassVar[str]

    @property
    def approximate(self) -> bool:
        """Whether masks may differ from the stock model's."""
        return False

    @property
    def clause(self) -> str:
        """What it does with these settings, as a part of a sentence."""
        return self.type.replace("_", " ")

    def beside(self, others: Sequence[Operation]) -> None:
        """Raises ValueError when the other operations of the recipe are not those it needs."""

    @classmethod
    def neutral(cls) -> Operation:
        """Settings that no other operation's and no searched value can clash with."""
        return cls()  # type: ignore[call-arg]

    def check(self, view: HostView) -> list[nn.Module]:
        """Whether the model can be operated on, before anything is touched.

        Returns:
            Modules that must not carry a forward of their own, which would bypass the surgery.

        Raises:
            UnsupportedModelError, ModelStateError, WeightsError, RecipeError: whatever is wrong with the model.
        """
        return []


_O = TypeVar("_O", bound=Operation)
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

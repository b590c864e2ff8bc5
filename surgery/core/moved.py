"""Fields that moved inside an operation: data that names their old places goes on to mean the same."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from pydantic import ValidationError
from pydantic_core import InitErrorDetails, PydanticCustomError

Place = tuple[Any, ...]
"""Keys that lead to a field."""
ABSENT: Any = object()


def places(moved: Mapping[str, str]) -> dict[Place, Place]:
    """Dotted names, old to new, as places."""
    return {tuple(old.split(".")): tuple(new.split(".")) for old, new in moved.items()}


def translated(place: Place, names: Mapping[Place, Place]) -> Place:
    """A place with the longest beginning that `names` knows replaced, itself when it knows none."""
    for end in range(len(place), 0, -1):
        if place[:end] in names:
            return (*names[place[:end]], *place[end:])
    return place


def take(data: dict[Any, Any], place: Sequence[Any]) -> Any:
    """Remove what is at a place and return it, or `ABSENT`. Groups that are empty then go as well."""
    key, *rest = place
    if not rest:
        return data.pop(key, ABSENT)
    group = data.get(key)
    found = take(group, rest) if isinstance(group, dict) else ABSENT
    if found is not ABSENT and not group:
        del data[key]
    return found


def put(data: dict[Any, Any], place: Sequence[Any], value: Any) -> Place | None:
    """Add a value at a place, a mapping key by key. Returns the place where something is already, if any."""
    key, *rest = place
    for part in reversed(rest):
        value = {part: value}
    if key not in data:
        data[key] = value
        return None
    if not (isinstance(data[key], dict) and isinstance(value, dict)):
        return (key,)
    clashes = [put(data[key], (inner,), each) for inner, each in value.items()]
    return next(((key, *clash) for clash in clashes if clash is not None), None)


def at_new_places(data: Mapping[Any, Any], moved: Mapping[str, str]) -> tuple[dict[Any, Any], dict[Place, Place]]:
    """A copy of `data` with moved fields where they are now, and where what is there was written.

    Raises:
        ValueError: a field is given at its old and at its new place.
    """
    found, written = _copied(data), {}
    for old, new in places(moved).items():
        value = take(found, old)
        if value is ABSENT:
            continue
        if new[0] not in data:
            written[new[:1]] = ()
        written[new] = old
        clash = put(found, new, value)
        if clash is not None:
            raise ValueError(f"{_dotted(old)} is now {_dotted(new)}, and {_dotted(clash)} is given as well; give one")
    return found, written


def told_as_written(error: ValidationError, written: Mapping[Place, Place]) -> ValidationError:
    """The same problems, at the places where the data has them."""
    problems = [
        InitErrorDetails(
            type=PydanticCustomError(each["type"], each["msg"], each.get("ctx")),
            loc=translated(each["loc"], written),
            input=each["input"],
        )
        for each in error.errors()
    ]
    return ValidationError.from_exception_data(error.title, problems)


def _copied(data: Any) -> Any:
    return {key: _copied(value) for key, value in data.items()} if isinstance(data, Mapping) else data


def _dotted(place: Place) -> str:
    return ".".join(map(str, place))

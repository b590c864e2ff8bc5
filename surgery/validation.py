"""What a pydantic model says of data that does not fit it, in one line; and JSON files read through such a model."""

from __future__ import annotations

import json
import re
import reprlib
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ValidationError

from surgery.core.moved import places, translated
from surgery.errors import SurgeryError, nearest, nearest_field

_SHOWN = 8
_SHORT = reprlib.Repr()
_SHORT.maxstring = 80  # depth and number of items stay bounded as the library has them


def explain(error: ValidationError, model: type[BaseModel], prefix: str = "") -> str:
    """The problems, each as where, what was expected and what was found, with the nearest valid choice."""
    found = [_problem(dict(problem), model, prefix) for problem in error.errors()[:_SHOWN]]
    more = error.error_count() - len(found)
    return "; ".join([*found, *([f"and {more} more"] if more else [])])


def read_as(path: Path, model: type[BaseModel], raises: type[SurgeryError]) -> dict[str, Any]:
    """The object in a JSON file that `model` accepts, as it stands there.

    Raises:
        raises: the file cannot be read, is not JSON, or does not fit; the message names the file and the key.
    """
    try:
        data = json.loads(path.read_text(encoding="utf-8"), parse_constant=_no_constant)
    except OSError as error:
        raise raises(f"{path}: cannot be read ({error.strerror})") from error
    except (ValueError, RecursionError) as error:
        raise raises(f"{path}: not JSON: {error}") from error
    return check(data, model, path, raises)


def check(data: Any, model: type[BaseModel], source: Path, raises: type[SurgeryError]) -> dict[str, Any]:
    """`data`, an object that `model` accepts. Raises `raises`, with the key, when it does not."""
    try:
        model.model_validate(data)
    except ValidationError as error:
        raise raises(f"{source}: {explain(error, model)}") from error
    return dict(data)


def _problem(problem: dict[str, Any], model: type[BaseModel], prefix: str) -> str:
    *parents, last = problem["loc"] or ("",)
    path = "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in problem["loc"])
    where = (prefix + path[1:]).rstrip(".")[:200]
    kind, value = problem["type"], problem["input"]
    if kind == "extra_forbidden":
        fields = _fields_at(model, parents)
        valid = [field for field in fields if "." not in field]
        known = f"; valid: {', '.join(valid)}" if valid else ""
        return f"{where}: unknown key{nearest_field(str(last), fields)}, or one of a newer surgery{known}"
    if kind == "missing":
        return f"{where}: missing{nearest(str(last), map(str, value)) if isinstance(value, dict) else ''}"
    if kind == "value_error":
        text = str(problem["ctx"]["error"])
        return text if text.startswith(where) else f"{where}: {text}"
    # Of a model pydantic names the class, which no user knows.
    expected = "expected an object" if kind == "model_type" else problem["msg"]
    text = f"{expected}, got {_SHORT.repr(value):.80}"
    if kind == "literal_error" and isinstance(value, str):
        text += nearest(value, re.findall(r"'([^']*)'", problem["ctx"]["expected"]))
    return f"{where}: {text}" if where else text


def _fields_at(model: type[BaseModel], path: list[Any]) -> list[str]:
    """Dotted names of the fields at a place, those of groups included. Operations may have had the place elsewhere."""
    current: type[BaseModel] | None = model
    for part in translated(tuple(path), places(getattr(model, "moved", {}))):
        current = _group(current, part) if current is not None else None
    return _fields(current) if current is not None else []


def _fields(model: type[BaseModel], prefix: str = "") -> list[str]:
    found = []
    for name, field in model.model_fields.items():
        group = _group(model, name)
        found.append(path := f"{prefix}{field.alias or name}")
        found += _fields(group, f"{path}.") if group is not None else []
    return found


def _group(model: type[BaseModel], name: Any) -> type[BaseModel] | None:
    annotation = model.model_fields[name].annotation if name in model.model_fields else None
    return annotation if isinstance(annotation, type) and issubclass(annotation, BaseModel) else None


def _no_constant(name: str) -> float:
    raise ValueError(f"{name} is not a JSON number")

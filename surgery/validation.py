"""What a pydantic model says of data that does not fit it, in one line; and JSON files read through such a model."""

from __future__ import annotations

import json
import re
import reprlib
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ValidationError

from surgery.errors import SurgeryError, nearest

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
    found: dict[str, Any] = data
    return found


def _problem(problem: dict[str, Any], model: type[BaseModel], prefix: str) -> str:
    *parents, last = problem["loc"] or ("",)
    path = "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in problem["loc"])
    where = (prefix + path[1:]).rstrip(".")[:200]
    kind, value = problem["type"], problem["input"]
    if kind == "extra_forbidden":
        valid = _fields_at(model, parents)
        known = f"; valid: {', '.join(valid)}" if valid else ""
        return f"{where}: unknown key{nearest(str(last), valid)}, or one of a newer surgery{known}"
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
    current = model
    for part in path:
        annotation = current.model_fields[part].annotation if part in current.model_fields else None
        if not (isinstance(annotation, type) and issubclass(annotation, BaseModel)):
            return []
        current = annotation
    return [field.alias or name for name, field in current.model_fields.items()]


def _no_constant(name: str) -> float:
    raise ValueError(f"{name} is not a JSON number")

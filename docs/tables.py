"""Write the tables of fields in docs/recipes.md from the settings themselves: python docs/tables.py"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import yaml
from pydantic import BaseModel

import surgery.operations  # noqa: F401  makes those that ship known
from surgery.core.operation import known
from surgery.core.promise import CalibrationSettings

PAGE = Path(__file__).with_name("recipes.md")
SECTIONS: dict[str, type[BaseModel]] = {
    **{name: kind for name, kind in known().items() if kind.__module__.startswith("surgery.")},
    "calibration": CalibrationSettings,
}
_KINDS = {"number": "a number", "integer": "a whole number", "string": "text", "null": "`null`", "object": "a mapping"}

_ENDS = {"exclusiveMinimum": "above", "minimum": "from", "exclusiveMaximum": "below", "maximum": "to"}


def filled(page: str) -> str:
    """The page with the table of every section made anew."""
    for section, model in SECTIONS.items():
        first = page.index("\n| field |", page.index(f"\n## {section}\n")) + 1
        page = page[:first] + table(model()) + page[page.index("\n\n", first) :]
    return page


def table(settings: BaseModel) -> str:
    """Markdown of the fields, below each group those in it. Raises KeyError for a field without a description."""
    return "\n".join(["| field | default | values | |", "|---|---|---|---|", *_rows(settings)])


def _rows(settings: BaseModel, prefix: str = "") -> Iterator[str]:
    fields, defaults = type(settings).model_json_schema()["properties"], settings.model_dump(mode="json")
    for name, value in settings:
        if isinstance(value, BaseModel):
            yield f"| **`{prefix}{name}`** | | | {fields[name]['description']} |"
            yield from _rows(value, f"{prefix}{name}.")
        elif "const" not in fields[name]:
            default = yaml.safe_dump(defaults[name], default_flow_style=True, width=1000).split("\n")[0]
            about = f"{_values(fields[name])} | {fields[name]['description']}"
            yield f"| `{prefix}{name}` | `{default}` | {about} |"


def _values(field: dict[str, Any]) -> str:
    """What a field may be, from its JSON schema."""
    if "anyOf" in field:
        return ", ".join(map(_values, field["anyOf"]))
    if "enum" in field:
        return ", ".join(f"`{value}`" for value in field["enum"])
    kind = field["type"]
    if kind == "boolean":
        return "`true`, `false`"
    if kind == "array":
        return f"list of {_values(field['items'])}"
    ends = [f"{word} {field[key]:,}".removesuffix(".0") for key, word in _ENDS.items() if key in field]
    return " ".join(ends) or _KINDS[kind]


if __name__ == "__main__":
    PAGE.write_text(filled(PAGE.read_text(encoding="utf-8")), encoding="utf-8")

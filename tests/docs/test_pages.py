"""The pages: links lead somewhere, and every field of every operation is documented with its default."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import yaml
from pydantic import BaseModel

from surgery.core.operation import known
from surgery.core.promise import CalibrationSettings
from surgery.operations import SparseWindowRouting
from surgery.recipe import Recipe, list_recipes

ROOT = Path(__file__).resolve().parents[2]
PAGES = sorted(
    [
        *(ROOT / name for name in ("README.md", "CONTRIBUTING.md", "CHANGELOG.md", "benchmarks/README.md")),
        *(ROOT / "docs").rglob("*.md"),
    ]
)
_FENCE = re.compile(r"^ *```.*?^ *```", re.M | re.S)
_LINK = re.compile(r"\]\(([^()\s]+)\)")


def anchors(page: str) -> set[str]:
    """What GitHub makes of the headings."""
    headings = re.findall(r"^#+ (.+?) *$", _FENCE.sub("", page), re.M)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


def broken_links(page: Path) -> list[str]:
    """Relative links of a page that lead to no file, or to no heading of their page."""
    broken = []
    for link in _LINK.findall(_FENCE.sub("", page.read_text(encoding="utf-8"))):
        if re.match(r"[a-z]+:", link):
            continue
        name, _, anchor = link.partition("#")
        target = page.parent / name if name else page
        if not target.exists() or (anchor and anchor not in anchors(target.read_text(encoding="utf-8"))):
            broken.append(link)
    return broken


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.relative_to(ROOT).as_posix())
def test_links_lead_somewhere(page: Path) -> None:
    assert broken_links(page) == []


def test_a_broken_link_is_seen(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text(
        "# One `two`, three\n[a](nothing.md) [b](page.md#one) [c](#one-two-three) [d](https://example.org/x)\n"
    )
    assert broken_links(page) == ["nothing.md", "page.md#one"]


def fields(model: type[BaseModel], prefix: str = "") -> dict[str, Any]:
    """`{dotted field: default}`, `type` left out."""
    found: dict[str, Any] = {}
    for name, value in model().model_dump(mode="json").items():
        inner = model.model_fields[name].annotation
        if isinstance(inner, type) and issubclass(inner, BaseModel):
            found |= fields(inner, f"{prefix}{name}.")
            if "type" in inner.model_fields:
                found[f"{prefix}{name}.type"] = value["type"]
        elif name != "type":
            found[prefix + name] = value
    return found


@pytest.mark.parametrize("section", [*known(), "calibration"])
def test_every_field_of_an_operation_is_documented_with_its_default(section: str) -> None:
    page = (ROOT / "docs" / "recipes.md").read_text(encoding="utf-8")
    (text,) = re.findall(rf"^## {section}\n(.*?)(?=^## |\Z)", page, re.M | re.S)
    rows = re.findall(r"^\| `([\w.]+)` \| `([^`]*)` \|", text, re.M)
    documented = {name: yaml.safe_load(default) for name, default in rows}
    assert documented == fields(known().get(section, CalibrationSettings))


def test_every_shipped_recipe_is_listed() -> None:
    page = (ROOT / "docs" / "recipes.md").read_text(encoding="utf-8")
    table = page[: page.index("## Writing one")]
    assert [name for name in list_recipes() if f"`{name}`" not in table] == []


def test_the_recipe_of_the_page_is_one() -> None:
    page = (ROOT / "docs" / "recipes.md").read_text(encoding="utf-8")
    (text,) = re.findall(r"^```yaml\n(.*?)^```", page, re.M | re.S)
    recipe = Recipe.from_dict(yaml.safe_load(text))
    assert recipe.find(SparseWindowRouting) is not None and recipe.find(SparseWindowRouting).budget == 0.4

"""The pages: links lead somewhere, and the tables of fields are made from the operations' settings."""

from __future__ import annotations

import re
import runpy
from pathlib import Path
from typing import Literal

import pytest
import yaml
from pydantic import BaseModel, Field, create_model

from surgery import sparsify
from surgery.bench.modules import module_names
from surgery.engine import require_surgery
from surgery.operations import SparseWindowRouting, TrimCaches
from surgery.recipe import Recipe, list_recipes
from tests.hosts.drive import make

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


TABLES = runpy.run_path(str(ROOT / "docs" / "tables.py"))


def test_the_tables_of_fields_are_those_of_the_settings() -> None:
    page = (ROOT / "docs" / "recipes.md").read_text(encoding="utf-8")
    assert TABLES["filled"](page) == page, "run: python docs/tables.py"


class Group(BaseModel):
    type: Literal["a", "b"] = Field("b", description="of the group")


class Toy(BaseModel):
    type: Literal["toy"] = "toy"
    share: float = Field(0.5, gt=0.0, le=1.0, description="a share")
    count: int | None = Field(None, ge=1, description="a count")
    gate: float = Field(5.0, description="a gate")
    parts: tuple[Literal["x", "y"], ...] = Field(("x",), description="some parts")
    search: dict[str, int] = Field({}, description="by name")
    group: Group = Field(Group(), description="a group")


def test_a_table_has_every_field_with_its_default_values_and_description() -> None:
    assert TABLES["table"](Toy()).splitlines()[2:] == [
        "| `share` | `0.5` | above 0 to 1 | a share |",
        "| `count` | `null` | from 1, `null` | a count |",
        "| `gate` | `5.0` | a number | a gate |",
        "| `parts` | `[x]` | list of `x`, `y` | some parts |",
        "| `search` | `{}` | a mapping | by name |",
        "| **`group`** | | | a group |",
        "| `group.type` | `b` | `a`, `b` | of the group |",
    ]
    with pytest.raises(KeyError, match="description"):
        TABLES["table"](create_model("Silent", share=(float, 0.5))())


def test_every_shipped_recipe_is_listed() -> None:
    page = (ROOT / "docs" / "recipes.md").read_text(encoding="utf-8")
    table = page[: page.index("## Writing one")]
    assert [name for name in list_recipes() if f"`{name}`" not in table] == []


def test_the_recipe_of_the_page_is_one() -> None:
    page = (ROOT / "docs" / "recipes.md").read_text(encoding="utf-8")
    (text,) = re.findall(r"^```yaml\n(.*?)^```", page, re.M | re.S)
    recipe = Recipe.from_dict(yaml.safe_load(text))
    assert recipe.find(SparseWindowRouting) is not None and recipe.find(SparseWindowRouting).budget == 0.26


def test_every_row_of_a_frame_is_on_the_page_of_speed() -> None:
    page = (ROOT / "docs" / "bench.md").read_text(encoding="utf-8")
    surgery = require_surgery(sparsify(make("sam2").model, Recipe.load("turbo").with_operation(TrimCaches())))
    names = [name for name in module_names(surgery.host, surgery) if not re.search(r"[3-9]$", name)]
    assert len(names) > 12 and [name for name in names if f"`{name}`" not in page] == []

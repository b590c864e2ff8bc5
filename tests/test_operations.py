"""The registry of operations, and recipes that hold one from outside of the package."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, Literal

import pytest
from pydantic import Field
from torch import nn

import surgery
from surgery import RecipeError, UnsupportedModelError
from surgery.core import operation as registry
from surgery.core.operation import Fields, Operation, known, register
from surgery.core.patching import is_patched
from surgery.describe import described
from surgery.operations import SparseMemoryRetrieval
from surgery.recipe import Recipe
from tests.hosts.drive import make


class Picky(Operation):
    """Takes no model with an encoder of more than `blocks` blocks, and stands only beside memory retrieval."""

    type: Literal["picky"] = "picky"
    blocks: int = Field(100, ge=1)

    alias: ClassVar[str] = "picky"

    def beside(self, others: Sequence[Operation]) -> None:
        if not any(isinstance(other, SparseMemoryRetrieval) for other in others):
            raise ValueError("picky needs sparse_memory_retrieval")

    def check(self, view: Any) -> list[nn.Module]:
        if len(view.blocks()) > self.blocks:
            raise UnsupportedModelError(f"{len(view.blocks())} blocks, expected at most {self.blocks}")
        return []


@pytest.fixture(autouse=True)
def registered(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(registry, "_KINDS", dict(known()))
    register(Picky)


def text(*kinds: str) -> str:
    operations = ", ".join(f"{{type: {kind}}}" for kind in kinds)
    return f"{{schema: 1, metadata: {{name: mine, description: Mine.}}, operations: [{operations}]}}"


def test_an_operation_from_outside_is_part_of_a_recipe() -> None:
    recipe = Recipe.parse(text("sparse_memory_retrieval", "picky"))
    assert recipe.with_overrides(["picky.blocks=3"]).find(Picky) == Picky(blocks=3)
    assert Recipe.parse(recipe.to_yaml()) == recipe
    assert described(recipe).endswith("; picky.")
    assert recipe.without(Picky).operations == (SparseMemoryRetrieval(),)
    with pytest.raises(RecipeError, match="did you mean 'blocks'"):
        recipe.with_overrides(["picky.block=3"])
    with pytest.raises(RecipeError, match="picky needs sparse_memory_retrieval"):
        Recipe.parse(text("picky"))


@pytest.mark.parametrize("host", ["sam2", "transformers"])
def test_what_it_checks_is_checked_before_anything_is_touched(host: str) -> None:
    model = make(host).model
    recipe = Recipe.parse(text("sparse_memory_retrieval", "picky")).with_overrides(["picky.blocks=3"])
    with pytest.raises(UnsupportedModelError, match="expected at most 3"):
        surgery.sparsify(model, recipe)
    assert not any(is_patched(module) for module in model.modules())


@pytest.mark.parametrize(("type_", "alias"), [("picky", "other"), ("other", "routing")])
def test_a_name_is_taken_once(type_: str, alias: str) -> None:
    class Another(Operation):
        type: str = type_

    Another.alias = alias
    with pytest.raises(RecipeError, match="registered already"):
        register(Another)
    assert Another not in known().values()


class Inner(Fields):
    size: int = Field(1, ge=1)
    shape: str = "round"


class Grouped(Operation):
    """Its fields were `size` and `look.shape` before they were in a group."""

    type: Literal["grouped"] = "grouped"
    inner: Inner = Inner()

    alias: ClassVar[str] = "grouped"
    moved: ClassVar[Mapping[str, str]] = {"size": "inner.size", "look.shape": "inner.shape"}


def test_fields_of_any_operation_can_move() -> None:
    register(Grouped)
    data = {"type": "grouped", "size": 3, "look": {"shape": "flat"}}
    found = Grouped.model_validate(data)
    assert found == Grouped(inner=Inner(size=3, shape="flat"))
    assert data == {"type": "grouped", "size": 3, "look": {"shape": "flat"}}, "what was given is left as it was"
    recipe = Recipe.parse(text("grouped")).with_overrides(["grouped.size=3", "grouped.look.shape=flat"])
    assert recipe.find(Grouped) == found and Recipe.parse(recipe.to_yaml()) == recipe
    for changes, words in (
        ({"size": 0}, r"operations\.grouped\.size: Input should be greater"),
        ({"inner": {"size": 0}, "look": {"shape": 1}}, r"inner\.size: .*; operations\.grouped\.look\.shape: Input"),
        ({"look": {"shap": "flat"}}, r"operations\.grouped\.look: unknown key"),
        ({"size": 3, "inner": {"size": 3}}, r"size is now inner\.size, and inner\.size is given as well; give one"),
        ({"sise": 3}, r"sise: unknown key \(did you mean 'inner\.size'\?\)"),
    ):
        with pytest.raises(RecipeError, match=words):
            Recipe.from_dict({**recipe.to_dict(), "operations": [{"type": "grouped", **changes}]})

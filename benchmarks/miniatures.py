"""The trained models that benchmarks can be run on: the embedded one, and the SAM 3 miniature of the repository."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import surgery.demo as demo
from benchmarks import sam3_miniature
from surgery.recipe import Recipe

ROOT = Path(__file__).resolve().parent.parent


@dataclass(frozen=True)
class Miniature:
    """A trained model.

    name: in the names of files. hosts: that build it. load: by host. folder: of its adapters, in the repository.
    search: what its calibration may try besides what a recipe has to try.
    """

    name: str
    hosts: tuple[str, ...]
    load: Callable[[str], Any]
    folder: str
    search: Mapping[str, tuple[Any, ...]] = field(default_factory=dict)

    def recipe(self, name: str) -> Recipe:
        """A built-in recipe, with what calibration may try on this model."""
        recipe = Recipe.load(name)
        plan = recipe.calibration
        if plan is None:
            return recipe
        return recipe.model_copy(
            update={"calibration": plan.model_copy(update={"search": {**plan.search, **self.search}})}
        )

    def adapter(self, recipe: str, root: Path = ROOT) -> Path:
        """Where its adapter of a recipe is."""
        return root / self.folder / f"{self.name}-{recipe}"

    def host(self, asked: str | None) -> str:
        """The host asked for, or its first; another than it has is a ValueError."""
        if asked is not None and asked not in self.hosts:
            raise ValueError(f"--host {asked}: the {self.name} miniature runs on {' or '.join(self.hosts)}")
        return asked or self.hosts[0]


MINIATURES = {
    each.name: each
    for each in (
        Miniature("demo", ("sam2", "transformers"), demo.load, "adapters"),
        Miniature(
            "sam3",
            ("transformers_sam3",),
            lambda _: sam3_miniature.load(),
            "benchmarks/adapters",
            {"retrieval.keep": (0.02, 0.05, 0.1, 1.0), "retrieval.keep_conditioning": (0.1, 0.2, 0.4, 1.0)},
        ),
    )
}

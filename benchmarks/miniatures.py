"""The trained models that benchmarks can be run on: the embedded one, and the SAM 3 miniature of the repository."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import surgery.demo as demo
from benchmarks import sam3_miniature
from surgery.core.promise import CalibrationSettings
from surgery.recipe import Recipe

ROOT = Path(__file__).resolve().parent.parent


@dataclass(frozen=True)
class Miniature:
    """A trained model.

    name: in the names of files. hosts: that build it. load: by host. folder: of its adapters, in the repository.
    values: put in a recipe before calibration, which then searches nothing and only measures. max_drop: its promise.
    """

    name: str
    hosts: tuple[str, ...]
    load: Callable[[str], Any]
    folder: str
    values: Mapping[str, Any] = field(default_factory=dict)
    max_drop: float = 0.02

    def recipe(self, name: str) -> Recipe:
        """What is calibrated under the name of a built-in recipe."""
        recipe = Recipe.load(name)
        if not self.values:
            return recipe
        plan = CalibrationSettings(max_drop=self.max_drop, max_clip_drop=2 * self.max_drop)
        return recipe.with_values(dict(self.values)).model_copy(update={"calibration": plan})

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
            {
                "routing.stages.globals": "dense",
                "routing.budget": 0.33,
                "routing.object.unsure": None,
                "routing.object.max_wait": 1,
                "retrieval.keep": 0.16,
                "retrieval.keep_conditioning": 0.2,
                "retrieval.unsure": None,
            },
        ),
    )
}

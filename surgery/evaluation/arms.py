"""The models of an evaluation, stock and sparse, and what they do with a sequence."""

from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import PIL

from surgery.api import sparsify, status
from surgery.bench.machine import machine
from surgery.digests import code_digest, weights_digest
from surgery.engine import current_surgery, desparsify
from surgery.evaluation.sequence_run import Asked, SequenceRun
from surgery.hosts import view_of
from surgery.recipe import Recipe

Found = dict[str, Any]
"""Of one sequence: see `SequenceRun.run`."""


class Arms:
    """The models to run, stock first. Nothing the caller holds is changed.

    Args: as of `evaluate`.
    """

    def __init__(
        self, model: Any, recipe: str | Path | Recipe | None, adapter: str | Path | None, dense_too: bool
    ) -> None:
        sparse = model
        if recipe is not None or adapter is not None:
            sparse = sparsify(copy.deepcopy(model), recipe, adapter=adapter)
        self.models = {"sparse": sparse}
        if current_surgery(sparse) is None:
            self.models = {"dense": model}
        elif dense_too:
            stock = model if current_surgery(model) is None else desparsify(copy.deepcopy(model))
            self.models = {"dense": stock, "sparse": sparse}

    def facts(self) -> dict[str, Any]:
        """Everything of the models and the machine that can change a result, as plain data."""
        some = next(iter(self.models.values()))
        reference = next(some.parameters())
        state = status(self.models["sparse"]) if "sparse" in self.models else None
        facts = machine(reference.device)
        return {
            "model": type(some).__name__,
            "host": view_of(some).name,
            "dtype": str(reference.dtype).removeprefix("torch."),
            "arms": list(self.models),
            "weights": {arm: weights_digest(model.state_dict()) for arm, model in self.models.items()},
            "recipe": state.recipe.to_dict() if state is not None and state.recipe is not None else None,
            "adapter": state.adapter if state is not None else None,
            "machine": {**facts, "versions": {**facts["versions"], "pillow": PIL.__version__}},  # decodes the frames
            "code": code_digest(),
        }

    def run(self, asked: Asked, step: Callable[[], None]) -> Found:
        """Track and score a sequence; `step` is called after every frame."""
        return SequenceRun(asked, self.models).run(step)

"""The models of an evaluation, stock and sparse, and what of them can change a result."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import PIL

from surgery.api import sparsify, status
from surgery.bench.machine import machine
from surgery.digests import code_digest, weights_digest
from surgery.engine import current_surgery, desparsify
from surgery.hosts import view_of
from surgery.recipe import Recipe


def arms_of(
    model: Any, recipe: str | Path | Recipe | None, adapter: str | Path | None, dense_too: bool
) -> dict[str, Any]:
    """The models to run, stock first. Nothing the caller holds is changed.

    Args: as of `evaluate`.
    """
    sparse = model
    if recipe is not None or adapter is not None:
        sparse = sparsify(copy.deepcopy(model), recipe, adapter=adapter)
    if current_surgery(sparse) is None:
        return {"dense": model}
    if not dense_too:
        return {"sparse": sparse}
    return {"dense": model if current_surgery(model) is None else desparsify(copy.deepcopy(model)), "sparse": sparse}


def facts_of(arms: dict[str, Any]) -> dict[str, Any]:
    """Everything of the models and the machine that can change a result, as plain data."""
    some = next(iter(arms.values()))
    reference = next(some.parameters())
    state = status(arms.get("sparse", some))
    facts = machine(reference.device)
    return {
        "model": type(some).__name__,
        "host": view_of(some).name,
        "dtype": str(reference.dtype).removeprefix("torch."),
        "arms": list(arms),
        "weights": {arm: weights_digest(model.state_dict()) for arm, model in arms.items()},
        "recipe": state.recipe.to_dict() if state.recipe is not None else None,
        "adapter": state.adapter,
        "machine": {**facts, "versions": {**facts["versions"], "pillow": PIL.__version__}},  # decodes the frames
        "code": code_digest(),
    }

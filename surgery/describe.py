"""What a recipe does, in words made from its settings: a sentence that cannot fall behind them."""

from __future__ import annotations

from surgery.operations import PARTS, Precision, SparseMemoryRetrieval, SparseQueryRouting, SparseWindowRouting
from surgery.recipe import Metadata, Recipe

_SUFFIX = "-calibrated"
_LONGEST = 80


def described(recipe: Recipe) -> str:
    """One sentence from the settings alone, such as "65 % of the windows, those that changed most; all memory read"."""
    clauses = [_windows(recipe.routing), _memory(recipe.retrieval)]
    if recipe.queries is not None:
        clauses.append(_queries(recipe.queries))
    if recipe.precision is not None:
        clauses.append(_precision(recipe.precision))
    if recipe.caches is not None:
        clauses.append("caches trimmed")
    if recipe.compilation is not None:
        clauses.append("compiled")
    text = "; ".join(clauses)
    return text[0].upper() + text[1:] + "."


def calibrated(recipe: Recipe, origin: Metadata) -> Recipe:
    """`recipe` under the name of the recipe it was calibrated from, marked so, and described by its own settings."""
    base = origin.name.removesuffix(_SUFFIX)
    metadata = Metadata(
        name=base[: _LONGEST - len(_SUFFIX)] + _SUFFIX,
        description=f"{described(recipe)} Chosen by calibration from the recipe {base}.",
    )
    return recipe.model_copy(update={"metadata": metadata})


def _windows(routing: SparseWindowRouting | None) -> str:
    if routing is None:
        return "encoder as it is"
    if routing.windows == "all":
        return "all windows"
    unit = "tiles" if routing.span == "tiles" else "windows"
    if routing.budget < 1.0:
        text = f"{'' if routing.fill else 'at most '}{_percent(routing.budget)} of the {unit}, those that changed most"
    elif routing.fill:
        text = f"all {unit}"
    else:
        text = f"{unit} near the object"
        if routing.rolling:
            text += f" and {routing.rolling} of the others in turn"
    if routing.span == "tiles":
        text += ", from the first block on"
    if routing.refresh.every:
        text += f", a whole frame after every {routing.refresh.every}"
    if routing.refresh.lost == "always":
        text += ", whole frames while an object is lost"
    return text


def _memory(retrieval: SparseMemoryRetrieval | None) -> str:
    if retrieval is None or min(retrieval.keep, retrieval.keep_conditioning) == 1.0:
        return "all memory read"
    kept = {"older frames": retrieval.keep, "prompted frames": retrieval.keep_conditioning}
    pruned = [f"of {frames} pruned to {_percent(share)}" for frames, share in kept.items() if share < 1.0]
    return f"memory {' and '.join(pruned)}" + (", rebalanced" if retrieval.rebalance else "")


def _queries(queries: SparseQueryRouting) -> str:
    if queries.budget < 1.0:
        return f"memory attention for at most {_percent(queries.budget)} of the tokens"
    return "memory attention for computed windows and near the object"


def _precision(precision: Precision) -> str:
    half = [part.replace("_", " ") for part in PARTS if part not in precision.keep_fp32]
    return f"{precision.dtype} in {', '.join(half) or 'no part'}"


def _percent(share: float) -> str:
    return f"{100 * share:.3g} %"


__all__ = ["calibrated", "described"]

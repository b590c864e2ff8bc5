"""What a recipe does, in words made from its settings: a sentence that cannot fall behind them."""

from __future__ import annotations

from surgery.recipe import Metadata, Recipe

_SUFFIX = "-calibrated"
_LONGEST = 80


def described(recipe: Recipe) -> str:
    """One sentence from the settings alone, such as "65 % of the windows, those that changed most; all memory read"."""
    text = "; ".join(operation.clause for operation in recipe.operations)
    return text[0].upper() + text[1:] + "."


def calibrated(recipe: Recipe, origin: Metadata) -> Recipe:
    """`recipe` under the name of the recipe it was calibrated from, marked so, and described by its own settings."""
    base = origin.name.removesuffix(_SUFFIX)
    how = "Chosen by calibration" if recipe.calibration is not None and recipe.calibration.search else "Calibrated"
    metadata = Metadata(
        name=base[: _LONGEST - len(_SUFFIX)] + _SUFFIX,
        description=f"{described(recipe)} {how} from the recipe {base}.",
    )
    return recipe.model_copy(update={"metadata": metadata})

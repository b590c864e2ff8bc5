"""Whether a model is the base that an adapter was fitted on."""

from __future__ import annotations

import warnings

from surgery.adapters.fingerprint import Match
from surgery.errors import AdapterMismatchError


class BaseModelWarning(UserWarning):
    """Something is worth knowing about the base model an adapter was loaded on."""


class RoundedBaseWarning(BaseModelWarning):
    """The model is the adapter's base, proven, but rounded to fewer bits; masks differ by that rounding."""


class UnprovenBaseWarning(BaseModelWarning):
    """The model could not be proven to be the adapter's base: none recorded, or forced."""


def require_base(source: str, base_id: str | None, match: Match | None, parts: str, force: bool) -> None:
    """Warn or refuse where a model is not, or not exactly, an adapter's base.

    Args:
        source: of the adapter. base_id: of the base, as recorded.
        match: with the recorded fingerprint; None: none is recorded.
        parts: of the model that the fingerprint is of, for messages.
        force: warn instead of refusing.

    Raises:
        AdapterMismatchError: other weights.
    """
    base = f" ({base_id})" if base_id else ""
    if match is None:
        text = f"no fingerprint of the base model{base} is recorded; its structure fits this model, its weights "
        warnings.warn(f"{source}: {text}were not compared", UnprovenBaseWarning, stacklevel=3)
    elif match.verdict == "rounded":
        text = f"this model is the adapter's base{base} rounded to {match.precision}; masks may differ slightly "
        warnings.warn(f"{source}: {text}from the unrounded model's", RoundedBaseWarning, stacklevel=3)
    elif match.verdict == "different":
        text = (
            f"{source}: {parts} of this model have other weights than the base it was fitted on{base}, or were rounded "
            "in another way"
        )
        if not force:
            raise AdapterMismatchError(
                f"{text}; load it on that base, calibrate anew, or pass force=True to load it all the same"
            )
        warnings.warn(f"{text}; loaded because force=True", UnprovenBaseWarning, stacklevel=3)

"""What is worth knowing when an adapter is loaded."""

from __future__ import annotations


class BaseModelWarning(UserWarning):
    """Something is worth knowing about the base model an adapter was loaded on."""


class RoundedBaseWarning(BaseModelWarning):
    """The model is the adapter's base, proven, but rounded to fewer bits; masks differ by that rounding."""


class UnprovenBaseWarning(BaseModelWarning):
    """The model could not be proven to be the adapter's base: none recorded, or forced."""

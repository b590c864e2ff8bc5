"""What calibration promises of a recipe, and what it may change to keep it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from pydantic import Field, field_validator, model_validator

from surgery.core.operation import Fields, Fraction

_MAX_CANDIDATES = 5000


class CalibrationSettings(Fields):
    """What calibration promises, and what it may change to keep the promise.

    Drops are 1 - J&F of the sparse masks against the dense model's own masks, on clips that took no part in fitting.
    The Jaccard distance is a metric, so the drop in J against any ground truth is at most 1 - J against dense masks.
    """

    max_drop: Fraction = Field(0.05, description="promise on the mean over held-out clips")
    max_clip_drop: Fraction = Field(0.2, description="promise on the worst held-out clip")
    search: dict[str, tuple[Any, ...]] = Field(
        default_factory=dict,
        description="values to try, by dotted field; every combination is a candidate, at most 5,000",
    )

    @model_validator(mode="before")
    @classmethod
    def _of_older_files(cls, data: Any) -> Any:
        """Without what the gradient steps of 0.1.0 were told; the closed form is all of the fit now."""
        return {key: data[key] for key in data if key not in ("objective", "steps")} if isinstance(data, dict) else data

    @field_validator("search", mode="before")
    @classmethod
    def _lists(cls, value: Any) -> Any:
        if not isinstance(value, Mapping):
            raise ValueError(f"expected a mapping of dotted fields to lists of values, got {value!r:.80}")
        count = 1
        for key, values in value.items():
            if not isinstance(values, (list, tuple)) or not values:
                raise ValueError(f"{key!r:.80}: expected a non-empty list of values, got {values!r:.80}")
            count *= len(values)
        if count > _MAX_CANDIDATES:
            raise ValueError(f"{count} combinations of values, expected at most {_MAX_CANDIDATES}")
        return {str(key): tuple(values) for key, values in value.items()}

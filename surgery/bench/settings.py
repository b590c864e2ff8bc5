"""What one case of a benchmark is: every choice that changes its figures, and the digest that names it."""

from __future__ import annotations

import hashlib
import json
from typing import Any, Literal

from pydantic import Field, ValidationError, model_validator

from surgery.core.operation import Fields
from surgery.errors import SurgeryError
from surgery.operations import CompileMode
from surgery.validation import explain

SCHEMA = 1


class BenchmarkError(SurgeryError):
    """A benchmark cannot be run as asked: a setting out of range, or one that the host or device cannot do."""


class Settings(Fields):
    """One case.

    objects: tracked at once. windows: share of the stage-3 windows computed on routed frames, in (0, 1], or None for
    the router's own choice. precision: "fp32", "bf16" or "fp16", by `cast`: "autocast" around the calls or "weights"
    converted; of both models, or of the stock one alone when the recipe has a precision of its own. compile: which
    modules go through torch.compile, "none", "encoder" or "all", or "graphs": all are recorded with CUDA graphs
    instead; mode: torch.compile's. frames: measured per model, in
    turn. warm: tracked before them. module_frames: measured with spans, 0 leaves the modules out. seed: of the
    synthetic clip. clock: "wall", or "processor" for the processor time of this process (CPU only): on a machine that
    others use, wall time is theirs as well.

    Raises:
        BenchmarkError: a value that is out of range, or that does not go with another.
    """

    objects: int = Field(1, ge=1)
    windows: float | None = Field(None, gt=0, le=1)
    precision: Literal["fp32", "bf16", "fp16"] = "fp32"
    cast: Literal["autocast", "weights"] = "autocast"
    compile: Literal["none", "encoder", "all", "graphs"] = "none"
    mode: CompileMode = "default"
    frames: int = Field(20, ge=2)
    warm: int = Field(10, ge=0)
    module_frames: int = Field(3, ge=0)
    seed: int = Field(0, ge=0)
    clock: Literal["wall", "processor"] = "wall"

    def __init__(self, **values: Any) -> None:
        try:
            super().__init__(**values)
        except ValidationError as error:
            raise BenchmarkError(explain(error, Settings)) from error

    @model_validator(mode="after")
    def _together(self) -> Settings:
        if self.precision == "fp32" and self.cast == "weights":
            raise ValueError("cast 'weights' converts weights to bf16 or fp16; with precision fp32 use 'autocast'")
        return self


def digest(*facts: Any) -> str:
    """16 hex digits of a canonical JSON of `facts`: equal facts, equal digest."""
    text = json.dumps([SCHEMA, *facts], sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()[:16]

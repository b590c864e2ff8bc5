"""What one case of a benchmark is: every choice that changes its figures, and the digest that names it."""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict, dataclass
from typing import Any, get_args

from surgery.errors import SurgeryError, nearest
from surgery.operations import CompileMode

PRECISIONS = ("fp32", "bf16", "fp16")
CASTS = ("autocast", "weights")
SCOPES = ("none", "encoder", "all")
MODES: tuple[str, ...] = get_args(CompileMode)
PROTOCOLS = ("surgery", "sam2")
CLOCKS = ("wall", "processor")
SCHEMA = 1


class BenchmarkError(SurgeryError):
    """A benchmark cannot be run as asked: a setting out of range, or one that the host or device cannot do."""


@dataclass(frozen=True)
class Settings:
    """One case.

    objects: tracked at once. windows: share of the stage-3 windows computed on routed frames, in (0, 1], or None for
    the router's own choice. precision: "fp32", "bf16" or "fp16", by `cast`: "autocast" around the calls or "weights"
    converted; of both models, or of the stock one alone when the recipe has a precision of its own. compile: which
    modules go through torch.compile, "none", "encoder" or "all"; mode: torch.compile's.
    protocol: "surgery" synchronises every frame, keeps the masks and alternates the models frame by frame; "sam2" is
    the one of SAM 2's benchmark.py: whole passes without synchronisation, the models alternating pass by pass.
    frames: measured per model (per pass under "sam2"). warm: tracked before them. passes: under "sam2", the first one
    not counted. module_frames: measured with spans, 0 leaves the modules out. seed: of the synthetic clip.
    long: when above 0, a long run of that many frames instead. clock: "wall", or "processor" for the processor time of
    this process (CPU only): on a machine that others use, wall time is theirs as well.
    """

    objects: int = 1
    windows: float | None = None
    precision: str = "fp32"
    cast: str = "autocast"
    compile: str = "none"
    mode: str = "default"
    protocol: str = "surgery"
    frames: int = 20
    warm: int = 10
    passes: int = 5
    module_frames: int = 3
    seed: int = 0
    long: int = 0
    clock: str = "wall"

    def __post_init__(self) -> None:
        for name, known in _CHOICES.items():
            value = getattr(self, name)
            if value not in known:
                raise BenchmarkError(
                    f"{name} {value!r}: expected one of {', '.join(known)}{nearest(str(value), known)}"
                )
        for name, least in _LEAST.items():
            value = getattr(self, name)
            if not isinstance(value, int) or value < least:
                raise BenchmarkError(f"{name} {value!r}: expected a whole number from {least} on")
        if self.windows is not None and not 0 < self.windows <= 1:
            raise BenchmarkError(f"windows {self.windows!r}: expected a share above 0 and up to 1, or the router's own")
        if self.precision == "fp32" and self.cast == "weights":
            raise BenchmarkError("cast 'weights' converts weights to bf16 or fp16; with precision fp32 use 'autocast'")
        if self.protocol == "sam2" and self.objects != 1:
            raise BenchmarkError(
                f"protocol sam2 tracks one object, {self.objects} were asked for; use protocol surgery"
            )

    def as_dict(self) -> dict[str, Any]:
        """The settings as plain data."""
        return asdict(self)


_CHOICES = {
    "precision": PRECISIONS,
    "cast": CASTS,
    "compile": SCOPES,
    "mode": MODES,
    "protocol": PROTOCOLS,
    "clock": CLOCKS,
}
_LEAST = {"objects": 1, "frames": 2, "warm": 0, "passes": 2, "module_frames": 0, "seed": 0, "long": 0}


def digest(*facts: Any) -> str:
    """16 hex digits of a canonical JSON of `facts`: equal facts, equal digest."""
    text = json.dumps([SCHEMA, *facts], sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()[:16]

"""What calibration measured, as an adapter carries it (`calibration` in adapter_config.json)."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field

_Number = Annotated[float, Field(allow_inf_nan=False)]
_Share = Annotated[float, Field(ge=0.0, le=1.0, allow_inf_nan=False)]
_Count = Annotated[int, Field(ge=0)]


class _Record(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, protected_namespaces=())


class Fidelity(_Record):
    """Loss of J&F (fractions of 1) on clips that took no part in fitting.

    reference: what sparse masks were compared with. drop: mean over clips; 1 - J&F against the dense model's own masks,
    dense J&F - sparse J&F against ground truth (negative: sparse was better). interval: 95 % bootstrap interval of the
    mean over clips, None when there was but one. worst_drop, worst_clip: the clip that lost most.
    """

    reference: Literal["dense masks", "ground truth"]
    drop: _Number
    interval: tuple[_Number, _Number] | None
    worst_drop: _Number
    worst_clip: str

    def spread(self, form: str = ".4f") -> str:
        """The interval in words."""
        if self.interval is None:
            return "no interval: one clip"
        return " to ".join(format(end, form) for end in self.interval)


class CalibrationRecord(_Record):
    """How an adapter was calibrated and what it was measured to lose.

    fit: how the shortcut got its weights. fit_clips, held_out_clips: clip names. fit_frames, held_out_frames: tracked
    frames. max_drop, max_clip_drop: the recipe's promise on the mean and on the worst clip. kept: whether the promise
    was met. windows_kept, keys_kept: measured fractions on the held-out clips. valid_range: for each calibrated
    recipe field (dotted name) the range of values that were run and met the promise. seed: of fit and clip split.
    """

    fit: Literal["identity", "closed form", "closed form and steps"]
    steps: _Count
    fit_clips: tuple[str, ...]
    fit_frames: _Count
    held_out_clips: tuple[str, ...]
    held_out_frames: _Count
    max_drop: _Number
    max_clip_drop: _Number
    kept: bool
    windows_kept: _Share | None
    keys_kept: _Share | None
    against_dense: Fidelity
    against_truth: Fidelity | None
    valid_range: dict[str, tuple[_Number, _Number]]
    seed: _Count

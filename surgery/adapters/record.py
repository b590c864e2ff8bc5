"""What calibration measured, as an adapter carries it (`calibration` in adapter_config.json)."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

_MAX_CLIPS = 100_000

_Share = Annotated[float, Field(ge=0.0, le=1.0)]
_Loss = Annotated[float, Field(ge=-1.0, le=1.0)]
_Count = Annotated[int, Field(ge=0)]
# JSON has no tuples: a list is taken for one.
_Range = Annotated[tuple[float, float], Field(strict=False)]
_Names = Annotated[tuple[str, ...], Field(strict=False, max_length=_MAX_CLIPS)]


class _Record(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True, frozen=True, allow_inf_nan=False, protected_namespaces=())


_AGAINST = {
    "dense state": "a few frames from the dense state", "dense masks": "against dense masks",
    "chance": "the same, beyond chance", "ground truth": "against ground truth",
}  # fmt: skip


class Fidelity(_Record):
    """Loss of J&F (fractions of 1) on clips that took no part in fitting.

    reference: what sparse masks were compared with. drop: mean over clips; 1 - J&F against the dense model's own masks,
    from its own state a few frames before ("dense state") or over whole clips ("dense masks"), the latter less what
    chance does ("chance"), dense J&F - sparse J&F against ground truth (negative: sparse was better). interval: 95 %
    bootstrap interval of the mean, None when there was but one clip. over: what it was drawn from. worst_drop,
    worst_clip: the clip that lost most.
    """

    reference: Literal["dense masks", "ground truth", "dense state", "chance"]
    drop: _Loss
    interval: _Range | None
    worst_drop: _Loss
    worst_clip: str
    over: Literal["clips", "segments"] = "clips"

    @model_validator(mode="after")
    def _inside(self) -> Fidelity:
        if self.interval is not None and not self.interval[0] <= self.drop <= self.interval[1]:
            raise ValueError(f"drop {self.drop} lies outside its own interval {self.interval}")
        return self

    def spread(self) -> str:
        """The interval in words."""
        if self.interval is None:
            return "no interval: one clip"
        return "{:.4f} to {:.4f}".format(*self.interval) + (" over segments" if self.over == "segments" else "")


class CalibrationRecord(_Record):
    """How an adapter was calibrated and what it was measured to lose.

    fit: how the shortcut got its weights. fit_clips, held_out_clips: clip names. fit_frames, held_out_frames: tracked
    frames. max_drop, max_clip_drop: the recipe's promise on the mean and on the worst clip. kept: whether the promise
    was met. windows_kept, keys_kept: measured fractions on the held-out clips. valid_range: for each calibrated
    recipe field (dotted name) the range of values that were run and met the promise. seed: of fit and clip split.
    """

    fit: Literal["identity", "closed form", "closed form and steps"]
    steps: _Count
    fit_clips: _Names
    fit_frames: _Count
    held_out_clips: _Names
    held_out_frames: _Count
    max_drop: float
    max_clip_drop: float
    kept: bool
    windows_kept: _Share | None
    keys_kept: _Share | None
    against_dense: Fidelity
    against_truth: Fidelity | None
    from_state: Fidelity | None = None
    against_chance: Fidelity | None = None
    valid_range: dict[str, _Range]
    seed: _Count

    def table(self) -> list[str]:
        """What was lost, in markdown."""
        lines = ["| loss of J&F (fraction of 1) | mean over clips | 95 % interval of the mean | worst clip |"]
        lines.append("|---|---|---|---|")
        for found in (self.from_state, self.against_dense, self.against_chance, self.against_truth):
            if found is not None:
                clip = found.worst_clip.replace("|", "\\|").replace("\n", " ").replace("`", "'")
                worst = f"{found.worst_drop:.4f} (`{clip}`)"
                row = f"{_AGAINST[found.reference]} | {found.drop:.4f} | {found.spread()} | {worst}"
                lines.append(f"| {row} |")
        return lines

    @model_validator(mode="after")
    def _consistent(self) -> CalibrationRecord:
        for name, (low, high) in self.valid_range.items():
            if low > high:
                raise ValueError(f"valid_range of {name!r:.80} is empty: {low} is above {high}")
        clips = len(self.held_out_clips)
        if clips != 1 and any(
            one is not None and one.interval is None for one in (self.against_dense, self.against_truth)
        ):
            raise ValueError(f"no interval of {clips} held-out clips; only one clip has none")
        return self

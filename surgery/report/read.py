"""Result files in: eval, bench, calibration and trace JSON, checked key by key before anything is drawn.

The models hold what a report computes with; other keys, and text that is only shown, are left alone.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

from surgery.errors import SurgeryError
from surgery.validation import check, read_as


class ReportError(SurgeryError):
    """A result file cannot be read, is of an unknown kind, or lacks what its kind must hold; or frames are missing."""


_Arm = Literal["dense", "sparse"]
_Pair = Annotated[list[Annotated[int, Field(ge=1)]], Field(min_length=2, max_length=2)]


class _Checked(BaseModel):
    model_config = ConfigDict(strict=True, allow_inf_nan=False, protected_namespaces=())


class _File(_Checked):
    kind: Literal["bench", "eval", "trace", "calibration"]
    schema_: Literal[1] = Field(alias="schema")
    machine: dict[str, Any] | None = None


class _Side(_Checked):
    median: float
    p95: float
    p99: float
    first: float | None = None


class _Module(_Checked):
    name: str
    dense_ms: float
    sparse_ms: float
    dense_gflop: float | None = None
    sparse_gflop: float | None = None


class _Latency(_Checked):
    name: str
    ms: list[float]


class _Windows(_Checked):
    computed: float
    of: int
    share: float


class _Keys(_Checked):
    read: float


class _Row(_Checked):
    model: str
    precision: str
    device: str
    host: str
    objects: int
    windows_share: float | None = None
    whole_frame_speedup: float
    interval: list[float]
    predicted: float | None = None
    measured_over_predicted: float | None = None
    dense: _Side
    sparse: _Side
    modules: list[_Module]
    latency: list[_Latency]
    windows: _Windows | None = None
    keys: _Keys | None = None
    peak_memory_mb: float | None = None
    compile_s: float | None = None


class _Bench(_File):
    rows: list[_Row]
    not_measured: list[dict[str, str]] | None = None


class _Kept(_Checked):
    windows_kept: float | None = None
    keys_kept: float | None = None


class _Scores(_Kept):
    j_and_f: float | None = None
    j: float | None = None
    f: float | None = None
    ms: float | None = None


class _Sequence(_Kept):
    sequence: str
    frames: int
    dense: _Scores | None = None
    sparse: _Scores | None = None
    difference: dict[str, float | None] | None = None


class _Spread(_Checked):
    mean: float
    low: float
    high: float


class _Summary(_Checked):
    sequences: int
    dense: _Scores | None = None
    sparse: _Scores | None = None
    difference: dict[str, _Spread | None] | None = None
    speedup: _Spread | None = None


class _EvalSettings(_Checked):
    model: str
    dataset: str | None = None


class _Eval(_File):
    settings: _EvalSettings
    sequences: list[_Sequence]
    summary: _Summary


class _Candidate(_Kept):
    settings: Any
    predicted_cost: float | None = None
    drop: float | None = None
    worst_drop: float | None = None
    interval: list[float] | None = None
    run: bool
    chosen: bool


class _Clip(_Checked):
    name: str
    role: str
    drop: float | None = None


class _Calibration(_File):
    candidates: list[_Candidate]
    clips: list[_Clip]
    kept: bool | None = None


class _Frame(_Checked):
    index: int
    name: str
    windows: list[int] | None = None
    keys_kept: float | None = None
    tokens_kept: list[int] | None = None
    masks: dict[str, dict[_Arm, list[Annotated[int, Field(ge=0)]] | None]]
    ms: dict[_Arm, float | None] | None = None


class _Trace(_File):
    """A player trusts sizes, window ids and run lengths blindly."""

    sequence: str
    size: _Pair
    fps: float | None = None
    grid: _Pair | None = None
    cover: float | None = None
    tokens: _Pair | None = None
    objects: list[str]
    frames: Annotated[list[_Frame], Field(min_length=1)]

    @model_validator(mode="after")
    def _inside(self) -> _Trace:
        pixels = self.size[0] * self.size[1]
        for number, frame in enumerate(self.frames):
            at = f"frames[{number}]"
            for name, grid in (("tokens_kept", self.tokens), ("windows", self.grid)):
                for one in getattr(frame, name) or ():
                    if grid is None or not 0 <= one < grid[0] * grid[1]:
                        raise ValueError(f"{at}.{name}: {one} is not in the grid {grid}")
            for thing, arms in frame.masks.items():
                if thing not in self.objects:
                    raise ValueError(f"{at}.masks: no such object {thing!r:.80}; expected one of {self.objects!r:.80}")
                for arm, runs in arms.items():
                    if runs is not None and sum(runs) != pixels:
                        raise ValueError(f"{at}.masks.{thing:.80}.{arm}: lengths add up to {sum(runs)}, not {pixels}")
        return self


_KINDS: dict[str, type[_File]] = {"bench": _Bench, "eval": _Eval, "trace": _Trace, "calibration": _Calibration}


@dataclass(frozen=True)
class Result:
    """A checked result file."""

    path: Path
    kind: str
    data: dict[str, Any]


def read_result(path: Path) -> Result:
    """Read and check one file.

    Raises:
        ReportError: no such file, not JSON, an unknown kind, or a key that is missing or of the wrong type; the message
            names the file and the key.
    """
    data = read_as(path, _File, ReportError)
    return Result(path, data["kind"], check(data, _KINDS[data["kind"]], path, ReportError))

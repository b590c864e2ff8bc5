"""Result files in: eval, bench, calibration and trace JSON, checked key by key before anything is drawn."""

from __future__ import annotations

import json
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from surgery.errors import SurgeryError, nearest


class ReportError(SurgeryError):
    """A result file cannot be read, is of an unknown kind, or lacks what its kind must hold; or frames are missing."""


@dataclass(frozen=True)
class Optional:
    """A key that may be absent or null."""

    shape: Any


NUMBER, TEXT, WHOLE, FLAG, ANY = "a number", "text", "a whole number", "true or false", "anything"
_MAYBE = Optional(NUMBER)
_SIDE = {"median": NUMBER, "p95": NUMBER, "p99": NUMBER, "first": _MAYBE}
_KEPT = {"windows_kept": _MAYBE, "keys_kept": _MAYBE}
_SCORES = Optional({"j_and_f": _MAYBE, "j": _MAYBE, "f": _MAYBE, "ms": _MAYBE, **_KEPT})
_SPREAD = Optional({"mean": NUMBER, "low": NUMBER, "high": NUMBER})
_MACHINE = {"cpu": Optional(TEXT), "device": Optional(TEXT), "threads": Optional(WHOLE)}
_HEAD = {"command": Optional(TEXT), "date": Optional(TEXT), "machine": Optional(_MACHINE)}

_SHAPES: dict[str, dict[str, Any]] = {
    "bench": {
        **_HEAD,
        "rows": [
            {
                "model": TEXT, "precision": TEXT, "device": TEXT, "host": TEXT, "objects": WHOLE,
                "windows_share": _MAYBE, "recipe": Optional(TEXT), "whole_frame_speedup": NUMBER, "interval": [NUMBER],
                "predicted": _MAYBE, "measured_over_predicted": _MAYBE, "dense": _SIDE, "sparse": _SIDE,
                "modules": [{
                    "name": TEXT, "dense_ms": NUMBER, "sparse_ms": NUMBER, "dense_gflop": _MAYBE,
                    "sparse_gflop": _MAYBE, "dense_gb_per_s": _MAYBE, "sparse_gb_per_s": _MAYBE,
                }],
                "latency": [{"name": TEXT, "ms": [NUMBER], "frame": Optional([WHOLE])}],
                "memory_over_time": Optional([{"name": TEXT, "frame": [WHOLE], "mb": [NUMBER]}]),
                "windows": Optional({"computed": NUMBER, "of": WHOLE, "share": NUMBER}),
                "keys": Optional({"read": NUMBER, "of": NUMBER, "share": NUMBER}),
                "peak_memory_mb": _MAYBE, "memory_kind": Optional(TEXT), "compile_s": _MAYBE, "compile": Optional(TEXT),
                "protocol": Optional(TEXT), "long": Optional(WHOLE),
            }
        ],
        "not_measured": Optional([{"device": TEXT, "reason": TEXT}]),
    },
    "eval": {
        **_HEAD,
        "settings": {"model": TEXT, "dataset": Optional(TEXT), "recipe": Optional(ANY)},
        "sequences": [
            {
                "sequence": TEXT, "frames": WHOLE, "dense": _SCORES, "sparse": _SCORES,
                "difference": Optional({"j_and_f": _MAYBE}), **_KEPT,
            }
        ],
        "summary": {
            "sequences": WHOLE, "dense": _SCORES, "sparse": _SCORES,
            "difference": Optional({"j_and_f": _SPREAD}), "speedup": _SPREAD,
        },
    },
    "trace": {
        "sequence": TEXT, "size": [WHOLE], "fps": _MAYBE, "grid": Optional([WHOLE]), "cover": _MAYBE, "objects": [TEXT],
        "tokens": Optional([WHOLE]),
        "frames": [
            {
                "index": WHOLE, "name": TEXT, "windows": Optional([WHOLE]), "dense_reason": Optional(TEXT),
                "keys_kept": _MAYBE, "tokens_kept": Optional([WHOLE]), "masks": ANY,
                "ms": Optional({"dense": _MAYBE, "sparse": _MAYBE}),
            }
        ],
    },
    "calibration": {
        **_HEAD,
        "candidates": [
            {
                "settings": ANY, "windows_kept": _MAYBE, "keys_kept": _MAYBE, "predicted_cost": _MAYBE, "drop": _MAYBE,
                "worst_drop": _MAYBE, "interval": Optional([NUMBER]), "run": FLAG, "chosen": FLAG,
            }
        ],
        "clips": [{"name": TEXT, "role": TEXT, "drop": _MAYBE}],
        "loss": Optional([{"step": NUMBER, "loss": NUMBER}]),
        "promise": Optional(ANY),
        "kept": Optional(FLAG),
    },
}  # fmt: skip
"""What a report reads of each kind, by key; keys beside these are left alone."""


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
    try:
        data = json.loads(path.read_text(encoding="utf-8"), parse_constant=_no_constant)
    except OSError as error:
        raise ReportError(f"{path}: cannot be read ({error.strerror})") from error
    except ValueError as error:
        raise ReportError(f"{path}: not JSON: {error}") from error
    if not isinstance(data, dict):
        raise ReportError(f"{path}: expected an object with a key 'kind', found {_called(data)}")
    known = ", ".join(_SHAPES)
    if "kind" not in data:
        raise ReportError(f"{path}: key 'kind' is missing; expected one of {known}")
    kind = data["kind"]
    if kind not in _SHAPES:
        raise ReportError(f"{path}: kind {kind!r:.60}: expected one of {known}{nearest(str(kind), _SHAPES)}")
    if data.get("schema") != 1:
        raise ReportError(f"{path}: schema {data.get('schema')!r:.60}: this version reads schema 1")
    _check(data, _SHAPES[kind], path, "")
    if kind == "trace":
        _check_trace(data, path)
    return Result(path, kind, data)


def _check(value: Any, shape: Any, path: Path, at: str) -> None:
    if isinstance(shape, Optional):
        if value is None:
            return
        shape = shape.shape
    if isinstance(shape, dict):
        _expect(isinstance(value, dict), value, "an object", path, at)
        for key, inner in shape.items():
            where = f"{at}.{key}" if at else key
            if key not in value and not isinstance(inner, Optional):
                raise ReportError(f"{path}: key '{where}' is missing{nearest(key, value)}")
            _check(value.get(key), inner, path, where)
    elif isinstance(shape, list):
        _expect(isinstance(value, list), value, "a list", path, at)
        for number, item in enumerate(value):
            _check(item, shape[0], path, f"{at}[{number}]")
    elif shape == NUMBER:
        number = isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)
        _expect(number, value, shape, path, at)
    elif shape == WHOLE:
        _expect(isinstance(value, int) and not isinstance(value, bool), value, shape, path, at)
    elif shape != ANY:
        _expect(isinstance(value, str if shape == TEXT else bool), value, shape, path, at)


def _check_trace(data: dict[str, Any], path: Path) -> None:
    """Sizes, window ids and run lengths, which a player trusts blindly."""
    if len(data["size"]) != 2 or min(data["size"]) < 1:
        raise ReportError(f"{path}: key 'size': expected [height, width], found {data['size']!r:.60}")
    if not data["frames"]:
        raise ReportError(f"{path}: key 'frames': expected at least one frame, found none")
    height, width = data["size"]
    grid = data.get("grid")
    if grid is not None and (len(grid) != 2 or min(grid) < 1):
        raise ReportError(f"{path}: key 'grid': expected [rows, columns], found {grid!r:.60}")
    tokens = data.get("tokens")
    if tokens is not None and (len(tokens) != 2 or min(tokens) < 1):
        raise ReportError(f"{path}: key 'tokens': expected [rows, columns], found {tokens!r:.60}")
    for number, frame in enumerate(data["frames"]):
        at = f"frames[{number}]"
        for token in frame.get("tokens_kept") or ():
            if tokens is None or not 0 <= token < tokens[0] * tokens[1]:
                raise ReportError(f"{path}: key '{at}.tokens_kept': token {token} is not in the grid {tokens}")
        for window in frame.get("windows") or ():
            if grid is None or not 0 <= window < grid[0] * grid[1]:
                raise ReportError(f"{path}: key '{at}.windows': window {window} is not in the grid {grid}")
        _expect(isinstance(frame["masks"], dict), frame["masks"], "an object", path, f"{at}.masks")
        for thing, arms in frame["masks"].items():
            where = f"{at}.masks.{thing}"
            if thing not in data["objects"]:
                raise ReportError(f"{path}: key '{where}': no such object; expected one of {data['objects']!r:.80}")
            _check(arms, {"dense": Optional([WHOLE]), "sparse": Optional([WHOLE])}, path, where)
            for arm, runs in arms.items():
                if runs is not None and (min(runs, default=0) < 0 or sum(runs) != height * width):
                    raise ReportError(
                        f"{path}: key '{where}.{arm}': run lengths add up to {sum(runs)}, expected {height * width}"
                    )


def _expect(right: bool, value: Any, wanted: str, path: Path, at: str) -> None:
    if not right:
        raise ReportError(f"{path}: key '{at}': expected {wanted}, found {_called(value)}")


def _called(value: Any) -> str:
    if value is None:
        return "null"
    if isinstance(value, (dict, list)):
        return "an object" if isinstance(value, dict) else "a list"
    return f"{value!r:.60}"


def _no_constant(name: str) -> float:
    raise ValueError(f"{name} is not a JSON number")

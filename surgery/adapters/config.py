"""`adapter_config.json`: its schema, the versions it has had, and reading it suspiciously."""

from __future__ import annotations

import json
from itertools import pairwise
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator

from surgery.adapters.fingerprint import Fingerprint
from surgery.adapters.record import CalibrationRecord
from surgery.errors import AdapterError, nearest
from surgery.operations.window_routing.settings import WindowSettings
from surgery.operations.window_routing.shortcut import SHORTCUTS
from surgery.validation import explain

SCHEMA_VERSION = 2
CONFIG, WEIGHTS, RECIPE, CARD = "adapter_config.json", "adapter_model.safetensors", "recipe.yaml", "README.md"
FILES = (CONFIG, WEIGHTS, RECIPE, CARD)
THRESHOLDS = ("saliency_mass", "score_gate")
MAX_JSON = 1_000_000
_MAX_CHANNELS, _MAX_BLOCK, _MAX_POOL = 8192, 1000, 4
_OLD_FINGERPRINT = "bf16-sha256:"

_Text = Annotated[str, Field(max_length=300, pattern=r"^[^\x00-\x1f\x7f]*$")]


_Stage = Annotated[list[Annotated[int, Field(ge=1, le=_MAX_CHANNELS)]], Field(min_length=2, max_length=2)]


class _Part(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True, protected_namespaces=())


class BaseModelInfo(_Part):
    """The model an adapter belongs to. id: Hub id; revision: commit; fingerprint: None when it was never computed."""

    id: _Text | None = None
    revision: _Text | None = None
    fingerprint: Fingerprint | None


class Provenance(_Part):
    """Where imported weights came from. origin: project and file; sha256: of that file."""

    origin: _Text
    sha256: Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]


class AdapterConfig(_Part):
    """`adapter_config.json`. Block indices are the same in both hosts.

    entry_block: the first routed block, which carries the shortcut. exit_block: the dense block that merges. channels:
    width of stage 3. window: side of a stage-3 window, tokens. stages: (side, channels) of the patch embedding and of
    every stage before the span, where reused stage outputs are corrected, else None. thresholds: the recipe's
    saliency_mass and score_gate. calibration: what was measured, None when nothing was. provenance: of imported
    weights, else None.
    """

    schema_version: Literal[2] = 2
    library: Literal["surgery"] = "surgery"
    library_version: Annotated[str, Field(min_length=1, max_length=40, pattern=r"^[0-9A-Za-z.+!-]+$")]
    base_model: BaseModelInfo
    entry_block: Annotated[int, Field(ge=0, le=_MAX_BLOCK)]
    exit_block: Annotated[int, Field(ge=1, le=_MAX_BLOCK)]
    channels: Annotated[int, Field(ge=1, le=_MAX_CHANNELS)]
    window: Annotated[int, Field(ge=1, le=_MAX_CHANNELS)]
    shortcut: str
    stages: Annotated[list[_Stage], Field(min_length=2, max_length=8)] | None = None
    thresholds: dict[str, Annotated[float, Field(allow_inf_nan=False)]]
    calibration: CalibrationRecord | None = None
    provenance: Provenance | None = None

    @field_validator("shortcut")
    @classmethod
    def _known(cls, value: str) -> str:
        if value not in SHORTCUTS:
            raise ValueError(
                f"unknown shortcut {value!r:.80}{nearest(value, SHORTCUTS)}; known: {', '.join(SHORTCUTS)}"
            )
        return value

    @model_validator(mode="after")
    def _consistent(self) -> AdapterConfig:
        if self.exit_block <= self.entry_block:
            raise ValueError(f"exit_block {self.exit_block} is not after entry_block {self.entry_block}")
        sides = [side for side, _ in self.stages or ()]
        if any(above > below or below % above or below // above > _MAX_POOL for below, above in pairwise(sides)):
            raise ValueError(
                f"stages have sides {sides}; expected each to divide the one before, by {_MAX_POOL} at most"
            )
        if set(self.thresholds) != set(THRESHOLDS):
            raise ValueError(
                f"thresholds are {', '.join(map(repr, self.thresholds)) or 'none'}; expected {', '.join(THRESHOLDS)}"
            )
        if not 0 < self.thresholds["saliency_mass"] <= 1:
            raise ValueError(f"saliency_mass is {self.thresholds['saliency_mass']}; expected above 0, at most 1")
        return self


def thresholds_of(routing: WindowSettings) -> dict[str, float]:
    """The calibrated fields of a recipe's routing, by name."""
    return {name: float(getattr(routing.object, name)) for name in THRESHOLDS}


def encode_config(config: AdapterConfig) -> bytes:
    """The file's bytes; the same for equal configurations."""
    content = config.model_dump()
    if content["stages"] is None:
        del content["stages"]  # so that versions that do not know the field read the file
    return json.dumps(content, indent=2, sort_keys=True, allow_nan=False).encode() + b"\n"


def read_bounded(path: Path, limit: int, what: str) -> bytes:
    """A regular file's bytes. Raises AdapterError when it is missing, unreadable or larger than `limit` bytes."""
    try:
        if not path.is_file():
            raise AdapterError(f"{path}: missing")
        with path.open("rb") as file:
            content = file.read(limit + 1)
    except (OSError, ValueError) as error:
        raise AdapterError(f"{path}: cannot be read: {error}") from error
    if len(content) > limit:
        raise AdapterError(f"{path}: larger than {limit} bytes, not {what}")
    return content


def read_json(path: Path) -> Any:
    """Parse a JSON file of at most 1 MB, no key twice, at most 4300 digits a number, bounded depth.

    Raises:
        AdapterError: missing, larger, or not such JSON.
    """
    content = read_bounded(path, MAX_JSON, "an adapter configuration")
    try:
        return json.loads(content.decode("utf-8"), object_pairs_hook=_unique, parse_int=_integer)
    except (ValueError, RecursionError) as error:
        raise AdapterError(f"{path}: not valid JSON: {error}") from error


def read_config(path: Path) -> AdapterConfig:
    """Read, migrate and validate `adapter_config.json`.

    Raises:
        AdapterError: missing, malformed, of an unknown schema version, or with fields this version does not know.
    """
    data = read_json(path)
    version = data.get("schema_version") if isinstance(data, dict) else None
    if type(version) is int and version > SCHEMA_VERSION:
        raise AdapterError(
            f"{path}: schema_version is {version!s:.20}, written by a newer surgery"
            f" ({data.get('library_version')!r:.40}); this one reads 1 to {SCHEMA_VERSION}: upgrade surgery"
        )
    if type(version) is not int or version < 1:
        raise AdapterError(
            f"{path}: schema_version is {version!r:.80}; this version of surgery reads 1 to {SCHEMA_VERSION}"
        )
    try:
        return AdapterConfig.model_validate(_migrate(data) if version == 1 else data)
    except ValidationError as error:
        raise AdapterError(f"{path}: {explain(error, AdapterConfig)}") from error
    except ValueError as error:
        raise AdapterError(f"{path}: {error}") from error


def _migrate(data: dict[str, Any]) -> dict[str, Any]:
    """Schema 1 (0.1.0) to 2: the fingerprint was one digest in a string; provenance did not exist."""
    if "provenance" in data:
        raise ValueError("provenance: unknown field in schema 1")
    base = data.get("base_model")
    if isinstance(base, dict):
        old = base.get("fingerprint")
        if not isinstance(old, str) or not old.startswith(_OLD_FINGERPRINT):
            raise ValueError(f"base_model.fingerprint: expected '{_OLD_FINGERPRINT}<64 hex digits>', got {old!r:.80}")
        base = {**base, "fingerprint": {"bfloat16": old.removeprefix(_OLD_FINGERPRINT)}}
    return {**data, "schema_version": SCHEMA_VERSION, "base_model": base}


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for name, value in pairs:
        if name in found:
            raise ValueError(f"{name!r:.80} is given twice")
        found[name] = value
    return found


def _integer(digits: str) -> int:
    # Python before 3.10.7 converts any number of digits, in quadratic time.
    if len(digits) > 4300:
        raise ValueError(f"a number of {len(digits)} digits")
    return int(digits)

"""What adapters hold, and `adapter_config.json`: its schema, the versions it has had, reading it suspiciously."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Generic, Literal, TypeVar

from pydantic import BaseModel, ConfigDict, Field, ValidationError, with_config
from torch import Tensor
from typing_extensions import TypedDict

from surgery.adapters.fingerprint import Fingerprint
from surgery.adapters.record import CalibrationRecord
from surgery.errors import AdapterError
from surgery.operations.window_routing.settings import WindowSettings
from surgery.recipe import Recipe
from surgery.validation import explain

SCHEMA_VERSION = 2
CONFIG, WEIGHTS, RECIPE, CARD = "adapter_config.json", "adapter_model.safetensors", "recipe.yaml", "README.md"
FILES = (CONFIG, WEIGHTS, RECIPE, CARD)
_MAX_JSON = 1_000_000
_MAX_CHANNELS, _MAX_BLOCK = 8192, 1000

_Text = Annotated[str, Field(max_length=300, pattern=r"^[^\x00-\x1f\x7f]*$")]
_Version = Annotated[str, Field(min_length=1, max_length=40, pattern=r"^[0-9A-Za-z.+!-]+$")]
_Channels = Annotated[int, Field(ge=1, le=_MAX_CHANNELS)]
_FAMILY = "SAM 2"
_STRICT = ConfigDict(extra="forbid", strict=True)


class Part(BaseModel):
    """A part of a configuration: strict, closed to unknown keys."""

    model_config = _STRICT


class BaseModelInfo(Part):
    """The model an adapter belongs to. id: Hub id; revision: commit; fingerprint: None when it was never computed."""

    id: _Text | None = None
    revision: _Text | None = None
    fingerprint: Fingerprint | None


class Provenance(Part):
    """Where imported weights came from. origin: project and file; sha256: of that file."""

    origin: _Text
    sha256: Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]


@with_config(_STRICT)
class Thresholds(TypedDict):
    """The calibrated fields of a recipe's routing."""

    saliency_mass: Annotated[float, Field(gt=0.0, le=1.0)]
    score_gate: Annotated[float, Field(allow_inf_nan=False)]


class AdapterConfig(Part):
    """`adapter_config.json`. Block indices are the same in both hosts.

    entry_block: the first routed block, which carries the shortcut. exit_block: the dense block that merges. channels:
    width of stage 3. window: side of a stage-3 window, tokens. family: of models, see `HostView`. runs: of blocks, each
    with a shortcut. thresholds: the recipe's saliency_mass and score_gate. calibration: what was measured, None when
    nothing was. provenance: of imported weights, else None.
    """

    schema_version: Literal[2] = 2
    library: Literal["surgery"] = "surgery"
    library_version: _Version
    base_model: BaseModelInfo
    family: Annotated[str, Field(max_length=40, pattern=r"^[A-Za-z0-9][A-Za-z0-9 .-]*$")] = _FAMILY
    entry_block: Annotated[int, Field(ge=0, le=_MAX_BLOCK)]
    exit_block: Annotated[int, Field(ge=1, le=_MAX_BLOCK)]
    channels: _Channels
    window: _Channels
    shortcut: Literal["bottleneck", "identity", "ffn", "attention"]
    runs: Annotated[int, Field(ge=1, le=_MAX_BLOCK)] = 1
    thresholds: Thresholds
    calibration: CalibrationRecord | None = None
    provenance: Provenance | None = None


class ProposalConfig(Part):
    """`adapter_config.json` of a proposal head. channels: of the features at strides 4, 8 and 16. base_model: its
    fingerprint is over encoder, prompt encoder and mask decoder."""

    kind: Literal["proposals"] = "proposals"
    schema_version: Literal[1] = 1
    library: Literal["surgery"] = "surgery"
    library_version: _Version
    base_model: BaseModelInfo
    channels: Annotated[list[_Channels], Field(min_length=3, max_length=3)]


C = TypeVar("C", AdapterConfig, ProposalConfig)


@dataclass(frozen=True, eq=False)
class Held(Generic[C]):
    """A validated adapter in memory. source: folder or `repo@commit`. tensors: state dict (fp32) of what was added."""

    source: str
    config: C
    recipe: Recipe
    tensors: dict[str, Tensor]

    @property
    def parameters(self) -> int:
        """Number of added parameters."""
        return sum(value.numel() for value in self.tensors.values())

    def folder(self, weights: bytes, card: str) -> dict[str, bytes]:
        """Its four files by name; the same for equal adapters."""
        content = self.config.model_dump()
        # So that versions that do not know these fields read the file.
        for field, usual in (("runs", 1), ("family", _FAMILY)):
            if field in content and content[field] == usual:
                del content[field]
        config = json.dumps(content, indent=2, sort_keys=True, allow_nan=False) + "\n"
        return {CONFIG: config.encode(), WEIGHTS: weights, RECIPE: self.recipe.to_yaml().encode(), CARD: card.encode()}


def thresholds_of(routing: WindowSettings) -> Thresholds:
    """Those of a recipe."""
    return Thresholds(saliency_mass=routing.object.saliency_mass, score_gate=routing.object.score_gate)


def require_small(path: Path, limit: int, what: str) -> None:
    """Raise AdapterError when a file is missing or larger than `limit` bytes."""
    try:
        if not path.is_file():
            raise AdapterError(f"{path}: missing")
        if path.stat().st_size > limit:
            raise AdapterError(f"{path}: larger than {limit} bytes, not {what}")
    except (OSError, ValueError) as error:
        raise AdapterError(f"{path}: cannot be read: {error}") from error


def read_json(path: Path) -> Any:
    """Parse a JSON file of at most 1 MB. Raises AdapterError: missing, larger, or not JSON."""
    require_small(path, _MAX_JSON, "an adapter configuration")
    try:
        return json.loads(path.read_bytes().decode())
    except (OSError, ValueError, RecursionError) as error:
        raise AdapterError(f"{path}: not valid JSON: {error}") from error


def read_config(path: Path) -> AdapterConfig | ProposalConfig:
    """Read, migrate and validate `adapter_config.json`.

    Raises:
        AdapterError: missing, malformed, of an unknown schema version, or with fields this version does not know.
    """
    data = read_json(path)
    proposals = isinstance(data, dict) and data.get("kind") == "proposals"
    kind: type[AdapterConfig | ProposalConfig] = ProposalConfig if proposals else AdapterConfig
    try:
        return kind.model_validate(data if proposals else _current(data, path))
    except ValidationError as error:
        raise AdapterError(f"{path}: {explain(error, kind)}") from error


def _current(data: Any, path: Path) -> dict[str, Any]:
    """What a shortcut's configuration of any schema version is in this one. Raises AdapterError: an unknown one."""
    version = data.get("schema_version") if isinstance(data, dict) else None
    if type(version) is not int or not 1 <= version <= SCHEMA_VERSION:
        newer = type(version) is int and version > SCHEMA_VERSION
        by = f", written by a newer surgery ({data.get('library_version')!r:.40}): upgrade surgery" if newer else ""
        raise AdapterError(
            f"{path}: schema_version is {version!r:.80}{by}; this version of surgery reads 1 to {SCHEMA_VERSION}"
        )
    if version == SCHEMA_VERSION:
        return dict(data)
    # In 0.1.0 the fingerprint was one digest in a string.
    base = data.get("base_model")
    if isinstance(base, dict):
        base = {**base, "fingerprint": {"bfloat16": str(base.get("fingerprint")).removeprefix("bf16-sha256:")}}
    return {**data, "schema_version": SCHEMA_VERSION, "base_model": base}

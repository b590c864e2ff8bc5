"""Recipes: what is done to a model, as data.

A recipe is a short YAML file (or the same thing built in Python): `schema`, `metadata`, a list of `operations`, each a
mapping with a `type` (surgery/operations.py), and optionally `calibration`. Unknown keys are refused with the nearest
valid key, so that a typo never silently means "default"; for the same reason a value must have its field's own type
(`"0.7"` and `true` are not numbers), and no key may be given twice.
"""

from __future__ import annotations

import difflib
import unicodedata
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, Literal, TypeVar

from pydantic import Field, ValidationError, ValidationInfo, field_validator, model_validator

from surgery.errors import RecipeError, nearest
from surgery.operations import (
    OPERATIONS,
    CalibrationSettings,
    CompileParts,
    Precision,
    Settings,
    SparseMemoryRetrieval,
    SparseQueryRouting,
    SparseWindowRouting,
    TrimCaches,
)
from surgery.plain_yaml import read_yaml, write_yaml
from surgery.validation import explain

__all__ = [
    "OPERATIONS",
    "CalibrationSettings",
    "CompileParts",
    "Metadata",
    "Precision",
    "Recipe",
    "SparseMemoryRetrieval",
    "SparseQueryRouting",
    "SparseWindowRouting",
    "TrimCaches",
    "list_recipes",
]

SCHEMA_VERSION = 1
_MAX_BYTES = 64_000
_T = TypeVar("_T", bound=Settings)


class Metadata(Settings):
    """Name and one-sentence description of a recipe. Both are shown in terminals and model cards."""

    name: str = Field(min_length=1, max_length=80)
    description: str = Field(min_length=1, max_length=2000)

    @field_validator("name", "description")
    @classmethod
    def _printable(cls, value: str, info: ValidationInfo) -> str:
        allowed = "\n" if info.field_name == "description" else ""
        for char in value:
            if unicodedata.category(char) in {"Cc", "Zl", "Zp"} and char not in allowed:
                raise ValueError(f"expected printable text, found {char!r}")
        return value


class Recipe(Settings):
    """A validated recipe. Immutable; `with_overrides` returns a changed copy."""

    schema_: Literal[1] = Field(1, alias="schema")
    metadata: Metadata
    operations: tuple[Any, ...]
    calibration: CalibrationSettings | None = None

    @field_validator("schema_", mode="before")
    @classmethod
    def _a_whole_number(cls, value: Any) -> Any:
        if type(value) is not int:
            raise ValueError(f"expected {SCHEMA_VERSION}, got {value!r:.80}")
        return value

    @field_validator("operations", mode="before")
    @classmethod
    def _parse_operations(cls, value: Any) -> tuple[Settings, ...]:
        if not isinstance(value, (list, tuple)) or not value:
            raise ValueError("expected a non-empty list of operations")
        parsed: list[Settings] = []
        for position, entry in enumerate(value):
            if isinstance(entry, Settings) and type(entry) in OPERATIONS.values():
                parsed.append(entry)
                continue
            if not isinstance(entry, Mapping) or "type" not in entry:
                raise ValueError(f"operation {position}: expected a mapping with a 'type', got {entry!r:.80}")
            kind = str(entry["type"])
            if kind not in OPERATIONS:
                known = ", ".join(OPERATIONS)
                raise ValueError(
                    f"operation {position}: unknown type {kind!r:.80}{nearest(kind, OPERATIONS)}; known: {known}"
                )
            try:
                parsed.append(OPERATIONS[kind].model_validate(dict(entry)))
            except ValidationError as error:
                raise ValueError(explain(error, OPERATIONS[kind], f"operations.{kind}.")) from error
        kinds = [type(operation) for operation in parsed]
        if len(set(kinds)) != len(kinds):
            raise ValueError("each operation type may appear once")
        return tuple(parsed)

    @model_validator(mode="after")
    def _queries_follow_windows(self) -> Recipe:
        if self.queries is not None and (self.routing is None or self.routing.windows != "object"):
            raise ValueError(
                "sparse_query_routing needs sparse_window_routing with windows: object, whose computed windows are its "
                "queries"
            )
        return self

    @model_validator(mode="after")
    def _searches_its_own_fields(self) -> Recipe:
        bare = self.model_copy(update={"calibration": None})
        # A value may clash with what the recipe has now and not with another searched value, or an override to come.
        plain = tuple(
            type(each)(temporal=True) if isinstance(each, SparseWindowRouting) else type(each)()
            for each in self.operations
        )
        neutral = bare.model_copy(update={"operations": plain})
        for key, values in (self.calibration.search if self.calibration is not None else {}).items():
            for value in values:
                try:
                    bare.with_values({key: value})
                except RecipeError as error:
                    try:
                        neutral.with_values({key: value})
                    except RecipeError:
                        raise ValueError(f"calibration.search: {error}") from error
        return self

    @property
    def routing(self) -> SparseWindowRouting | None:
        """The window-routing operation, or None when the recipe has none."""
        return self._find(SparseWindowRouting)

    @property
    def retrieval(self) -> SparseMemoryRetrieval | None:
        """The memory-retrieval operation, or None when the recipe has none."""
        return self._find(SparseMemoryRetrieval)

    @property
    def queries(self) -> SparseQueryRouting | None:
        """The query-routing operation, or None when the recipe has none."""
        return self._find(SparseQueryRouting)

    @property
    def precision(self) -> Precision | None:
        """The precision operation, or None when the recipe has none."""
        return self._find(Precision)

    @property
    def caches(self) -> TrimCaches | None:
        """The cache-trimming operation, or None when the recipe has none."""
        return self._find(TrimCaches)

    @property
    def compilation(self) -> CompileParts | None:
        """The compile operation, or None when the recipe has none."""
        return self._find(CompileParts)

    @property
    def approximate(self) -> bool:
        """Whether masks may differ from the stock model's: some windows, keys or queries may be left out."""
        routing, retrieval = self.routing, self.retrieval
        return (
            (routing is not None and routing.windows != "all")
            or (retrieval is not None and min(retrieval.keep, retrieval.keep_conditioning) < 1.0)
            or self.queries is not None
        )

    def with_compilation(self, settings: CompileParts | None) -> Recipe:
        """Return a copy with this compile operation instead of its own; None: with none.

        Raises:
            RecipeError: nothing else is in the recipe.
        """
        others = tuple(each for each in self.operations if not isinstance(each, CompileParts))
        operations = others if settings is None else (*others, settings)
        if not operations:
            raise RecipeError(f"recipe {self.metadata.name!r} only compiles; without that it has no operation left")
        return self.model_copy(update={"operations": operations})

    def _find(self, kind: type[_T]) -> _T | None:
        return next((operation for operation in self.operations if isinstance(operation, kind)), None)

    @classmethod
    def load(cls, name_or_path: str | Path | Recipe, overrides: Iterable[str] = ()) -> Recipe:
        """Load a built-in recipe by name, or a YAML file by path, then apply dotted overrides.

        Args:
            name_or_path: a name from `list_recipes()`, or a path ending in .yaml or .yml. A `Recipe` passes through.
            overrides: strings such as `"routing.score_gate=3"`; see `with_overrides`.

        Raises:
            RecipeError: unknown name, missing or unreadable file, or content that does not validate.
        """
        if isinstance(name_or_path, Recipe):
            return name_or_path.with_overrides(overrides)
        text = str(name_or_path)
        path = Path(text)
        if path.suffix not in {".yaml", ".yml"}:
            names = _builtin()
            if text not in names:
                raise RecipeError(
                    f"unknown recipe {text!r:.200}{nearest(text, names)}; built in: {', '.join(names)}; "
                    "a path must end in .yaml"
                )
            path = names[text]
        try:
            if not path.is_file():
                raise RecipeError(f"no recipe file at {text!r}")
            with path.open("rb") as file:
                content = file.read(_MAX_BYTES + 1).decode("utf-8")
        except (OSError, UnicodeDecodeError) as error:
            raise RecipeError(f"{path}: cannot be read as UTF-8 text: {error}") from error
        return cls.parse(content, source=str(path)).with_overrides(overrides)

    @classmethod
    def parse(cls, text: str, source: str = "recipe") -> Recipe:
        """Parse YAML text. Raises `RecipeError` naming `source` and the offending key."""
        if len(text) > _MAX_BYTES:
            raise RecipeError(f"{source}: larger than {_MAX_BYTES} bytes, not a recipe")
        try:
            data = read_yaml(text)
        except ValueError as error:
            raise RecipeError(f"{source}: not valid YAML: {error}") from error
        return cls.from_dict(data, source)

    @classmethod
    def from_dict(cls, data: Any, source: str = "recipe") -> Recipe:
        """Validate a plain mapping. Raises `RecipeError` naming `source` and the offending key."""
        if not isinstance(data, Mapping):
            raise RecipeError(f"{source}: expected a mapping with schema, metadata and operations, got {data!r:.80}")
        try:
            return cls.model_validate(dict(data))
        except ValidationError as error:
            raise RecipeError(f"{source}: {explain(error, cls)}") from error

    def to_dict(self) -> dict[str, Any]:
        """Plain data, every field spelt out; `Recipe.from_dict` reads it back to an equal recipe."""
        data = {
            "schema": self.schema_,
            "metadata": self.metadata.model_dump(),
            "operations": [operation.model_dump() for operation in self.operations],
        }
        if self.calibration is not None:
            fields = self.calibration.model_dump()
            data["calibration"] = {**fields, "search": {key: list(each) for key, each in fields["search"].items()}}
        return data

    def with_values(self, values: Mapping[str, Any]) -> Recipe:
        """Return a copy with `{"<operation>.<field>": value}` set; `with_overrides` with values that are not text.

        Raises:
            RecipeError: see `with_overrides`.
        """
        return self.with_overrides(f"{key}={write_yaml(value, flow=True)}" for key, value in values.items())

    def to_yaml(self) -> str:
        """YAML text that `Recipe.parse` reads back to an equal recipe."""
        return write_yaml(self.to_dict())

    def with_overrides(self, overrides: Iterable[str]) -> Recipe:
        """Return a copy with `"<operation>.<field>[.<field>]=<value>"` applied.

        `<operation>` is an operation type or its short name (`routing`, `retrieval`); values are read as YAML.

        Raises:
            RecipeError: a malformed override, an operation the recipe lacks, an unknown field or an invalid value.
        """
        data = self.to_dict()
        changed = False
        for override in [overrides] if isinstance(overrides, str) else overrides:
            changed = True
            key, _, raw = str(override).partition("=")
            parts = key.strip().split(".")
            aliases = {getattr(kind, "alias"): name for name, kind in OPERATIONS.items()}  # noqa: B009
            by_name = {entry["type"]: entry for entry in data["operations"]}
            present = {alias: by_name[name] for alias, name in aliases.items() if name in by_name}
            if not raw.strip() or len(parts) < 2:
                raise RecipeError(
                    f"override {override!r}: expected '<operation>.<field>=<value>'{_meant(present, parts[-1])}"
                )
            target: Any = by_name.get(aliases.get(parts[0], parts[0]))
            if target is None:
                raise RecipeError(
                    f"override {override!r}: this recipe has no operation {parts[0]!r}"
                    f"{_meant(present, key.strip()) or nearest(parts[0], present)}; it has: {', '.join(present)}"
                )
            for depth, part in enumerate(parts[1:], start=1):
                valid = [field for field in target if depth > 1 or field != "type"] if isinstance(target, dict) else []
                if part not in valid:
                    raise RecipeError(
                        f"override {override!r}: no field {part!r}{nearest(part, valid)}; "
                        f"valid: {', '.join(valid) or 'none, ' + repr(parts[depth - 1]) + ' is a value'}"
                    )
                if depth == len(parts) - 1:
                    if isinstance(target[part], dict):
                        raise RecipeError(
                            f"override {override!r}: {part!r} is a group; set one of its fields: "
                            + ", ".join(f"{key}.{field}" for field in target[part])
                        )
                    try:
                        target[part] = read_yaml(raw)
                    except ValueError as error:
                        raise RecipeError(f"override {override!r:.200}: {raw!r:.80} is not a YAML value") from error
                else:
                    target = target[part]
        return self.from_dict(data, "override") if changed else self


def _builtin() -> dict[str, Path]:
    here = Path(__file__).resolve().parent
    for folder in (here / "_recipes", here.parent / "recipes"):
        if folder.is_dir():
            return {path.stem: path for path in sorted(folder.glob("*.yaml"))}
    raise RecipeError(f"the built-in recipes are missing from this installation (looked in {here / '_recipes'})")


def list_recipes() -> dict[str, str]:
    """Return `{name: description}` of the built-in recipes, sorted by name."""
    return {name: Recipe.load(path).metadata.description for name, path in _builtin().items()}


def _meant(operations: Mapping[str, Any], key: str) -> str:
    """The fields that `key` may be the end of, or a misspelt end. operations: plain data by short name."""
    known = [path for alias, entry in operations.items() for path in _paths(entry, alias)]
    found = [path for path in known if path.endswith(f".{key}")]
    if not found and "." not in key:
        close = difflib.get_close_matches(key, {path.split(".")[-1] for path in known})
        found = [path for path in known if path.split(".")[-1] in close]
    return f" (did you mean {' or '.join(map(repr, found))}?)" if found else ""


def _paths(entry: Any, prefix: str) -> list[str]:
    """Dotted names of the fields of an operation, those of its groups included."""
    if not isinstance(entry, dict):
        return [prefix]
    fields = [(name, value) for name, value in entry.items() if name != "type" or "." in prefix]
    return [path for name, value in fields for path in _paths(value, f"{prefix}.{name}")]

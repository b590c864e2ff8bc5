"""Recipes: what is done to a model, as data.

A recipe is a short YAML file (or the same thing built in Python): `schema`, `metadata`, a list of `operations`, each a
mapping with a `type` (surgery/operations/), and optionally `calibration`. Unknown keys are refused with the nearest
valid key, so that a typo never silently means "default"; for the same reason a value must have its field's own type
(`"0.7"` and `true` are not numbers), and no key may be given twice.
"""

from __future__ import annotations

import difflib
import unicodedata
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar

from pydantic import Field, SerializeAsAny, ValidationError, ValidationInfo, field_validator, model_validator

import surgery.operations  # noqa: F401  what ships is known to recipes
from surgery.core.moved import Place, places, put, take, translated
from surgery.core.operation import Fields, Operation, known
from surgery.core.promise import CalibrationSettings
from surgery.digests import PACKAGE
from surgery.errors import RecipeError, nearest, nearest_field
from surgery.plain_yaml import read_yaml, write_yaml
from surgery.validation import explain

SCHEMA_VERSION = 1
_MAX_BYTES = 64_000
_T = TypeVar("_T", bound=Operation)


class Metadata(Fields):
    """Name and one-sentence description of a recipe, shown in terminals and model cards. fits: the families of models
    it is for, such as "SAM 2"; empty: it does not say. What a model cannot do is found out when it is applied."""

    name: str = Field(min_length=1, max_length=80)
    description: str = Field(min_length=1, max_length=2000)
    fits: tuple[Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9 .-]{0,39}$")], ...] = ()

    @field_validator("name", "description")
    @classmethod
    def _printable(cls, value: str, info: ValidationInfo) -> str:
        allowed = "\n" if info.field_name == "description" else ""
        for char in value:
            if unicodedata.category(char) in {"Cc", "Zl", "Zp"} and char not in allowed:
                raise ValueError(f"expected printable text, found {char!r}")
        return value


class Recipe(Fields):
    """A validated recipe. Immutable; `with_overrides` returns a changed copy."""

    schema_: Literal[1] = Field(1, alias="schema")
    metadata: Metadata
    operations: tuple[SerializeAsAny[Operation], ...]
    calibration: CalibrationSettings | None = None

    @field_validator("schema_", mode="before")
    @classmethod
    def _a_whole_number(cls, value: Any) -> Any:
        if type(value) is not int:
            raise ValueError(f"expected {SCHEMA_VERSION}, got {value!r:.80}")
        return value

    @field_validator("operations", mode="before")
    @classmethod
    def _parse_operations(cls, value: Any) -> tuple[Operation, ...]:
        if not isinstance(value, (list, tuple)) or not value:
            raise ValueError("expected a non-empty list of operations")
        kinds = known()
        parsed: list[Operation] = []
        for position, entry in enumerate(value):
            if isinstance(entry, Operation) and type(entry) in kinds.values():
                parsed.append(entry)
                continue
            if not isinstance(entry, Mapping) or "type" not in entry:
                raise ValueError(f"operation {position}: expected a mapping with a 'type', got {entry!r:.80}")
            kind = str(entry["type"])
            if kind not in kinds:
                raise ValueError(
                    f"operation {position}: unknown type {kind!r:.80}{nearest(kind, kinds)}; known: {', '.join(kinds)}"
                )
            try:
                parsed.append(kinds[kind].model_validate(dict(entry)))
            except ValidationError as error:
                raise ValueError(explain(error, kinds[kind], f"operations.{kind}.")) from error
        if len({type(operation) for operation in parsed}) != len(parsed):
            raise ValueError("each operation type may appear once")
        return tuple(parsed)

    @model_validator(mode="after")
    def _together(self) -> Recipe:
        for operation in self.operations:
            operation.beside([other for other in self.operations if other is not operation])
        return self

    @model_validator(mode="after")
    def _searches_its_own_fields(self) -> Recipe:
        if self.calibration is None:
            return self
        bare = self.model_copy(update={"calibration": None})
        # A value may clash with what the recipe has now and not with another searched value, or an override to come.
        plain = tuple(type(each).neutral() for each in self.operations)
        neutral = bare.model_copy(update={"operations": plain})
        entries = {operation.type: operation.model_dump() for operation in self.operations}
        found: dict[str, str] = {}
        for key, values in self.calibration.search.items():
            for value in values:
                try:
                    bare.with_values({key: value})
                except RecipeError as error:
                    try:
                        neutral.with_values({key: value})
                    except RecipeError:
                        raise ValueError(f"calibration.search: {error}") from error
            kind, place, _, _ = _change(f"{key}=0", entries)
            other = found.setdefault(".".join((known()[kind].alias, *place)), key)
            if other != key:
                raise ValueError(f"calibration.search: {other!r} and {key!r} are the same field; give one")
        search = dict(zip(found, self.calibration.search.values(), strict=True))
        object.__setattr__(self, "calibration", self.calibration.model_copy(update={"search": search}))
        return self

    def find(self, kind: type[_T]) -> _T | None:
        """The operation of this type, or None when the recipe has none."""
        return next((operation for operation in self.operations if isinstance(operation, kind)), None)

    @property
    def approximate(self) -> bool:
        """Whether masks may differ from the stock model's: some windows, keys or queries may be left out."""
        return any(operation.approximate for operation in self.operations)

    def without(self, kind: type[Operation]) -> Recipe:
        """Return a copy without the operation of this type.

        Raises:
            RecipeError: nothing else is in the recipe.
        """
        others = tuple(each for each in self.operations if not isinstance(each, kind))
        if not others:
            only = self.operations[0].type
            raise RecipeError(
                f"recipe {self.metadata.name!r} has only the operation {only}; without it there is no operation left"
            )
        return self.model_copy(update={"operations": others})

    def with_operation(self, operation: Operation) -> Recipe:
        """Return a copy with this operation instead of its own of the same type, at the end."""
        others = tuple(each for each in self.operations if type(each) is not type(operation))
        return self.model_copy(update={"operations": (*others, operation)})

    @classmethod
    def load(cls, name_or_path: str | Path | Recipe, overrides: Iterable[str] = ()) -> Recipe:
        """Load a built-in recipe by name, or a YAML file by path, then apply dotted overrides.

        Args:
            name_or_path: a name from `list_recipes()`, or a path ending in .yaml or .yml. A `Recipe` passes through.
            overrides: strings such as `"routing.object.score_gate=3"`; see `with_overrides`.

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
        data = self.model_dump(mode="json", by_alias=True)
        if not self.metadata.fits:
            del data["metadata"]["fits"]
        if self.calibration is None:
            del data["calibration"]
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
        entries = {entry["type"]: entry for entry in data["operations"]}
        changes: dict[tuple[str, Place], tuple[Place, Any]] = {}
        for override in [overrides] if isinstance(overrides, str) else overrides:
            try:
                kind, place, written, value = _change(str(override), entries)
            except ValueError as error:
                raise RecipeError(f"override {str(override)!r:.200}: {error}") from error
            changes[kind, place] = written, value
        # Put where they were written, so that what is wrong with them is told of that place.
        for (kind, place), (written, value) in changes.items():
            take(entries[kind], place)
            put(entries[kind], written, value)
        return self.from_dict(data, "override") if changes else self


def _change(override: str, entries: Mapping[str, dict[str, Any]]) -> tuple[str, Place, Place, Any]:
    """What an override says: type of the operation, place in it, the place as written, value.

    Args:
        entries: plain operations by type.

    Raises:
        ValueError: the operations have no such field, or the override or its value cannot be read.
    """
    key, _, raw = override.partition("=")
    alias, *parts = key.strip().split(".")
    kinds = known()
    present = {kinds[kind].alias: entry for kind, entry in entries.items()}
    paths = [f"{name}.{path}" for name, entry in present.items() for path in _paths(entry)]
    if not raw.strip() or not parts:
        raise ValueError(f"expected '<operation>.<field>=<value>'{_meant(paths, [alias, *parts][-1])}")
    entry = present.get(alias, entries.get(alias))
    if entry is None:
        meant = _meant(paths, key.strip()) or nearest(alias, present)
        raise ValueError(f"this recipe has no operation {alias!r}{meant}; it has: {', '.join(present)}")
    target: Any = entry
    place = translated(tuple(parts), places(kinds[entry["type"]].moved))
    for depth, part in enumerate(place):
        valid = [field for field in target if depth or field != "type"] if isinstance(target, dict) else []
        if part not in valid:
            meant = nearest_field(part, [*valid, *_paths(target)]) if valid else ""
            choice = ", ".join(valid) or f"none, {place[depth - 1]!r} is a value"
            raise ValueError(f"no field {part!r}{meant}; valid: {choice}")
        target = target[part]
    if isinstance(target, dict):
        fields = ", ".join(_paths(target, ".".join((alias, *place, ""))))
        raise ValueError(f"{parts[-1]!r} is a group; set one of its fields: {fields}")
    try:
        return entry["type"], place, tuple(parts), read_yaml(raw)
    except ValueError as error:
        raise ValueError(f"{raw!r:.80} is not a YAML value") from error


def _builtin() -> dict[str, Path]:
    for folder in (PACKAGE / "_recipes", PACKAGE.parent / "recipes"):
        if folder.is_dir():
            return {path.stem: path for path in sorted(folder.glob("*.yaml"))}
    raise RecipeError(f"the built-in recipes are missing from this installation (looked in {PACKAGE / '_recipes'})")


def list_recipes() -> dict[str, str]:
    """Return `{name: description}` of the built-in recipes, sorted by name."""
    return {name: Recipe.load(path).metadata.description for name, path in _builtin().items()}


def _meant(paths: Sequence[str], key: str) -> str:
    """Which of the dotted fields `key` may be the end of, or a misspelt end."""
    found = [path for path in paths if path.endswith(f".{key}")]
    if not found and "." not in key:
        close = difflib.get_close_matches(key, {path.split(".")[-1] for path in paths})
        found = [path for path in paths if path.split(".")[-1] in close]
    return f" (did you mean {' or '.join(map(repr, found))}?)" if found else ""


def _paths(group: Mapping[str, Any], prefix: str = "") -> list[str]:
    """Dotted names of the values in a group and in those within it; not of the type of an operation."""
    found = []
    for name, value in group.items():
        if isinstance(value, dict):
            found += _paths(value, f"{prefix}{name}.")
        elif prefix or name != "type":
            found.append(prefix + name)
    return found

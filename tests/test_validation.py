"""One line for whatever is wrong with data read from a file: where, what was expected, what was found."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

import pytest
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from surgery.errors import DatasetError
from surgery.validation import explain, read_as


class Inner(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True, allow_inf_nan=False)
    size: float
    kind: Literal["wide", "narrow"] = "wide"


class Outer(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True)
    schema_: Literal[1] = Field(1, alias="schema")
    inner: Inner
    rows: list[Inner] = []

    @model_validator(mode="after")
    def _not_many(self) -> Outer:
        if len(self.rows) > 20:
            raise ValueError(f"rows: expected at most 20, found {len(self.rows)}")
        return self


def told(data: Any, prefix: str = "") -> str:
    with pytest.raises(ValidationError) as caught:
        Outer.model_validate(data)
    return explain(caught.value, Outer, prefix)


GOOD = {"size": 1.0}


@pytest.mark.parametrize(
    ("data", "message"),
    [
        ({"innr": GOOD}, "inner: missing (did you mean 'innr'?); innr: unknown key (did you mean 'inner'?), or one of"),
        ({"inner": GOOD, "zzzz": 1}, "zzzz: unknown key, or one of a newer surgery; valid: schema, inner, rows"),
        ({"inner": {**GOOD, "kin": 1}}, "inner.kin: unknown key (did you mean 'kind'?)"),
        ({"inner": {"size": "1"}}, "inner.size: Input should be a valid number, got '1'"),
        ({"inner": GOOD, "rows": [GOOD, {"size": None}]}, "rows[1].size: Input should be a valid number, got None"),
        ({"inner": {**GOOD, "kind": "narow"}}, "got 'narow' (did you mean 'narrow'?)"),
        ({"inner": GOOD, "schema": 2}, "schema: Input should be 1, got 2"),
        ({"inner": GOOD, "rows": [GOOD] * 21}, "rows: expected at most 20, found 21"),
        (3, "expected an object, got 3"),
    ],
)
def test_a_problem_is_told_with_its_place_and_the_nearest_choice(data: Any, message: str) -> None:
    assert message in told(data)


def test_a_message_is_bounded_however_much_is_wrong() -> None:
    text = told({"inner": GOOD, "rows": [{"size": "x" * 10**6, "k" * 10**6: 10**5000}] * 1000})
    assert text.count("rows[") == 8 and text.endswith("and 1992 more") and len(text) < 5000


def test_a_prefix_says_where_the_data_lies() -> None:
    assert told({"inner": {"size": "1"}}, "list.first.").startswith("list.first.inner.size: ")
    assert told({"inner": GOOD, "rows": [GOOD] * 21}, "list.first.").startswith("list.first: rows: expected at most")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "cannot be read (No such file"),
        (b"{", "not JSON: "),
        (b"\xff", "not JSON: "),
        (b"[" * 100_000, "not JSON: "),
        (b'{"inner": {"size": NaN}}', "not JSON: NaN is not a JSON number"),
        (b'{"inner": {"size": 1e999}}', "inner.size: Input should be a finite number, got inf"),
        (b"[]", "expected an object, got []"),
    ],
)
def test_a_file_that_cannot_be_taken_is_named(tmp_path: Path, content: bytes | None, message: str) -> None:
    path = tmp_path / "data.json"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(DatasetError) as caught:
        read_as(path, Outer, DatasetError)
    assert str(caught.value).startswith(f"{path}: ") and message in str(caught.value)
    assert "\n" not in str(caught.value)


def test_what_fits_comes_as_it_stands_in_the_file(tmp_path: Path) -> None:
    (tmp_path / "data.json").write_text('{"schema": 1, "inner": {"size": 3}}')
    assert read_as(tmp_path / "data.json", Outer, DatasetError) == {"schema": 1, "inner": {"size": 3}}

"""The file of a benchmark matrix: one row per case, saved as soon as it is measured."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import date
from pathlib import Path
from typing import Any, Literal

import torch
from pydantic import BaseModel, Field

from surgery.bench.machine import machine, not_measured
from surgery.bench.settings import SCHEMA, BenchmarkError, Settings, digest
from surgery.bench.store import write_whole
from surgery.digests import code_digest
from surgery.recipe import Recipe
from surgery.validation import read_as

KIND = "speed"


class _Row(BaseModel):
    case: str
    code: str


class _Document(BaseModel):
    kind: Literal["speed"]
    schema_: Literal[1] = Field(alias="schema")
    machine: dict[str, Any]
    rows: list[_Row]


class Matrix:
    """A JSON document `{kind, schema, command, machine, date, not_measured, rows}` that grows by whole rows.

    Every row names its case, command, date and the digest of the code that was measured. A document is of one machine,
    thread count and set of versions.

    Args:
        path: of the document; read when it is there. device: of the measurement. command: as typed.

    Raises:
        BenchmarkError: the file is another thing, or was made on another machine or with other versions.
    """

    def __init__(self, path: Path, device: torch.device, command: str) -> None:
        self.path, self.command, self.device = path, command, device
        self.machine, self.code = machine(device), code_digest()
        self.rows: list[dict[str, Any]] = []
        if path.exists():
            held = read_matrix(path)
            if held["machine"] != self.machine:
                changed = sorted(key for key in self.machine if held["machine"].get(key) != self.machine[key])
                raise BenchmarkError(
                    f"{path}: its {', '.join(changed)} differ from here; give another --out, ratios of two machines or "
                    "versions do not belong in one file"
                )
            self.rows = held["rows"]

    def has(self, case: str) -> bool:
        """Whether the case was measured with the code as it is now."""
        return any(row["case"] == case and row["code"] == self.code for row in self.rows)

    def add(self, rows: Sequence[tuple[str, dict[str, Any]]]) -> None:
        """Take rows by case, in place of older ones of the same cases, and write the document."""
        fresh = [
            {"case": case, **row, "command": self.command, "date": date.today().isoformat(), "code": self.code}
            for case, row in rows
        ]
        cases = {row["case"] for row in fresh}
        self.rows = [row for row in self.rows if row["case"] not in cases] + fresh
        write_whole(
            self.path,
            {
                "kind": KIND,
                "schema": SCHEMA,
                "command": self.command,
                "machine": self.machine,
                "date": date.today().isoformat(),
                "not_measured": not_measured(self.device),
                "rows": self.rows,
            },
        )


def case_id(model: str, host: str, baseline: str, recipe: Recipe, share: float, settings: Settings) -> str:
    """16 hex digits that name a case, whatever the machine and the code."""
    return digest(model, host, baseline, recipe.to_dict(), share, settings.model_dump())


def read_matrix(path: Path) -> dict[str, Any]:
    """A document that `Matrix` wrote.

    Raises:
        BenchmarkError: not there, not JSON, of another kind or schema, or a key that is missing or of the wrong type.
    """
    return read_as(path, _Document, BenchmarkError)

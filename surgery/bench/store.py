"""Finished cases on disk: one file per digest of settings, each written whole or not at all, and the document."""

from __future__ import annotations

import json
from collections.abc import Sequence
from datetime import date
from pathlib import Path
from typing import Any

from pydantic import BaseModel

from surgery import files
from surgery.bench.settings import SCHEMA, BenchmarkError
from surgery.validation import read_as


class _Case(BaseModel):
    digest: str
    row: dict[str, Any]


class CaseStore:
    """A folder with `cases/<digest>.json`, one a case, and `bench.json`, the document of the last command.

    Raises:
        BenchmarkError: the folder cannot be made.
    """

    def __init__(self, folder: Path) -> None:
        self.document, self.cases = folder / "bench.json", folder / "cases"
        try:
            self.cases.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise BenchmarkError(f"{folder}: cannot be used as the results' folder ({error.strerror})") from error

    def get(self, key: str) -> dict[str, Any] | None:
        """The row measured under this digest, or None. Raises BenchmarkError when the file is not what `put` wrote."""
        path = self.cases / f"{key}.json"
        if not path.is_file():
            return None
        held = read_as(path, _Case, BenchmarkError)
        if held["digest"] != key:
            raise BenchmarkError(f"{path}: not the case {key}; delete it to measure the case again")
        return dict(held["row"])

    def put(self, key: str, row: dict[str, Any]) -> None:
        """Keep the row of a finished case."""
        write_whole(self.cases / f"{key}.json", {"digest": key, "row": row})

    def write_document(
        self, rows: Sequence[dict[str, Any]], cases: int, command: str, machine: dict[str, Any],
        not_measured: list[dict[str, str]],
    ) -> dict[str, Any]:  # fmt: skip
        """Write and return the document of the finished rows; `cases` is how many the command asked for."""
        made = {
            "kind": "bench",
            "schema": SCHEMA,
            "command": command,
            "machine": machine,
            "date": date.today().isoformat(),
            "cases": cases,
            "complete": len(rows) == cases,
            "not_measured": not_measured,
            "rows": list(rows),
        }
        write_whole(self.document, made)
        return made


def write_whole(path: Path, data: Any) -> None:
    """Write JSON so that a reader, or a killed writer, never leaves half a file under `path`."""
    files.write_whole(path, json.dumps(data, indent=1) + "\n")

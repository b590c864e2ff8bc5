"""Finished cases on disk: one file per digest of settings, each written whole or not at all, and the document."""

from __future__ import annotations

import json
from collections.abc import Sequence
from datetime import date
from pathlib import Path
from typing import Any

from surgery import files
from surgery.bench.settings import SCHEMA, BenchmarkError

KIND = "bench"


class Store:
    """A folder with `cases/<digest>.json`, one a case, and `bench.json`, the document of the last command.

    Raises:
        BenchmarkError: the folder cannot be made.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.cases = folder / "cases"
        try:
            self.cases.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise BenchmarkError(f"{folder}: cannot be used as the results' folder ({error.strerror})") from error

    @property
    def document(self) -> Path:
        """Where the document lies."""
        return self.folder / "bench.json"

    def get(self, key: str) -> dict[str, Any] | None:
        """The row measured under this digest, or None.

        Raises:
            BenchmarkError: the file is there and is not what `put` wrote.
        """
        path = self.cases / f"{key}.json"
        if not path.is_file():
            return None
        try:
            held = json.loads(path.read_text(encoding="utf-8"))
        except ValueError as error:
            raise BenchmarkError(f"{path}: not JSON ({error}); delete it to measure the case again") from error
        if not isinstance(held, dict) or held.get("digest") != key or not isinstance(held.get("row"), dict):
            raise BenchmarkError(f"{path}: not the case {key}; delete it to measure the case again")
        row: dict[str, Any] = held["row"]
        return row

    def put(self, key: str, row: dict[str, Any]) -> None:
        """Keep the row of a finished case."""
        write_whole(self.cases / f"{key}.json", {"digest": key, "row": row})

    def write_document(
        self, rows: Sequence[dict[str, Any]], cases: int, command: str, machine: dict[str, Any],
        not_measured: list[dict[str, str]],
    ) -> dict[str, Any]:  # fmt: skip
        """Write and return the document of the finished rows; `cases` is how many the command asked for."""
        made = {
            "kind": KIND,
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

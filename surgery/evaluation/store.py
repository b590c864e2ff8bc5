"""Results on disk that survive an interrupt: finished sequences are read back, half-done or foreign ones never.

A run's folder is named by a digest of its settings; a sequence's result also carries a digest of the data set's files.
Every file is written beside its place and moved there, so it is there whole or not at all.
"""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path
from typing import Any

from surgery.bench.settings import digest
from surgery.errors import DatasetError
from surgery.files import hold, write_whole


def write_text(path: Path, text: str) -> None:
    """Write a text file atomically, with its folder. Raises DatasetError when it cannot be written."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        write_whole(path, text)
    except OSError as error:
        raise _not_writable(path, error) from error


class RunStore:
    """One run's folder under `out`.

    Args:
        out: folder of all runs. settings: everything that can change a result; the key is a digest of it. tree: of the
            predictions; for "ytvos" the sequences lie in `Annotations`, as its server wants them.

    Raises:
        DatasetError: the folder cannot be written, is in use by another process, or holds a run of this key with other
            settings.
    """

    def __init__(self, out: Path, settings: dict[str, Any], tree: str = "labels") -> None:
        self.out, self.key = out, digest(settings)
        self._inside = "Annotations" if tree == "ytvos" else ""
        self.folder = out / "runs" / self.key
        self.traces = self.folder / "traces"
        busy = "another process is writing this run, expected none: wait for it, or choose another folder"
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            self._lock = (self.folder / "lock").open("wb")
        except OSError as error:
            raise _not_writable(self.folder, error) from error
        # Two runs in one folder would delete each other's work.
        hold(self._lock, DatasetError(f"{self.folder}: {busy}"))
        shutil.rmtree(self.folder / "partial", ignore_errors=True)
        for left in self.folder.glob("**/.*.part"):
            left.unlink(missing_ok=True)
        note = self.folder / "settings.json"
        if note.is_file() and _read_json(note) != json.loads(json.dumps(settings)):
            raise DatasetError(f"{note}: other settings than this run's, expected the same: move the folder away")
        write_text(note, json.dumps(settings, indent=2, sort_keys=True) + "\n")

    def finished(self, sequence: str, digest: str, arms: list[str], record: bool) -> dict[str, Any] | None:
        """The stored row of a sequence, or None: absent, unreadable, of other files, or with parts missing."""
        row = _read_json(self._result(sequence))
        if not isinstance(row, dict) or row.get("key") != self.key or row["row"]["digest"] != digest:
            return None
        traces = [self.traces / f"{sequence}.json"] if record else []
        parts = [*(self.predictions(arm) / sequence for arm in arms), *traces]
        return row if all(part.exists() for part in parts) else None

    def start(self, sequence: str, arms: list[str]) -> dict[str, Path]:
        """Empty folders for a sequence's predictions, per arm; what an interrupted run left there is removed."""
        self._result(sequence).unlink(missing_ok=True)
        places = {}
        for arm in arms:
            for place in (self._partial(arm, sequence), self.predictions(arm) / sequence):
                shutil.rmtree(place, ignore_errors=True)
            places[arm] = self._partial(arm, sequence)
            places[arm].mkdir(parents=True)
        return places

    def finish(self, sequence: str, arms: list[str], row: dict[str, Any], trace: dict[str, Any] | None) -> None:
        """Move the predictions to their place, then write the trace, then the result, whose presence says "done"."""
        for arm in arms:
            target = self.predictions(arm) / sequence
            target.parent.mkdir(parents=True, exist_ok=True)
            os.replace(self._partial(arm, sequence), target)
        if trace is not None:
            write_text(self.traces / f"{sequence}.json", json.dumps(trace, separators=(",", ":")) + "\n")
        write_text(self._result(sequence), json.dumps({"key": self.key, **row}, indent=1) + "\n")

    def predictions(self, arm: str) -> Path:
        """Where the masks of an arm lie, one folder per sequence."""
        return self.folder / "predictions" / arm / self._inside

    def close(self) -> None:
        """Let others write to the folder."""
        self._lock.close()

    def _partial(self, arm: str, sequence: str) -> Path:
        return self.folder / "partial" / arm / sequence

    def _result(self, sequence: str) -> Path:
        return self.folder / "sequences" / f"{sequence}.json"


def _not_writable(path: Path, error: OSError) -> DatasetError:
    return DatasetError(f"{path}: cannot be written ({error}), expected a writable folder for results")


def _read_json(path: Path) -> Any:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None

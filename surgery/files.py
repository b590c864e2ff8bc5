"""Files that are there whole or not at all, and places that one process writes to at a time."""

from __future__ import annotations

import fcntl
import os
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO

from surgery.errors import SurgeryError


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Yield a name beside `path` to write to; the file is moved to `path` when the block ends, and removed if it fails.

    Raises:
        OSError: the block wrote nothing there, or the file cannot be moved.
    """
    # The name is known before the file is there, so an interrupt at any point finds what to remove.
    part = path.with_name(f".{uuid.uuid4().hex[:12]}.part")
    try:
        yield part
        os.replace(part, path)
    finally:
        part.unlink(missing_ok=True)


def write_whole(path: Path, text: str) -> None:
    """Write a text file so that neither a killed process nor a lost machine leaves half of it. Raises OSError."""
    with replacing(path) as part, part.open("w", encoding="utf-8") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())


@contextmanager
def held(folder: Path, raises: type[SurgeryError]) -> Iterator[None]:
    """Make a folder, and hold it for this process while the block runs.

    Raises:
        raises: no permission, or another process holds it.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        opened = os.open(folder, os.O_RDONLY)
    except OSError as error:
        raise raises(f"{folder}: cannot be written ({error.strerror}), expected a folder to write to") from error
    busy = "another process is writing there, expected none: wait for it, or choose another folder"
    try:
        hold(opened, raises(f"{folder}: {busy}"))
        yield
    finally:
        os.close(opened)


def hold(file: int | IO[bytes], busy: SurgeryError) -> None:
    """Hold an open file or folder for this process until it is closed. Raises `busy` when another process holds it."""
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        raise busy from None

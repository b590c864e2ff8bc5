"""Videos and outputs at addresses such as `s3://bucket/a.mp4`: whatever fsspec, with its plugins, reads and writes."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from importlib import import_module
from pathlib import Path
from typing import Any

from surgery.errors import JobError, VideoError


def is_url(place: object) -> bool:
    """Whether this is an address and not a path."""
    return "://" in str(place)


def opened(url: str) -> tuple[Any, str]:
    """The file system of an address, and the path in it. Raises JobError where fsspec knows none such."""
    try:
        found: tuple[Any, str] = import_module("fsspec").core.url_to_fs(url)
    except (ImportError, ValueError) as error:
        raise JobError(f"{url}: {error}") from error
    return found


def matches(pattern: str) -> list[str]:
    """The addresses that a pattern stands for, sorted."""
    system, path = opened(pattern)
    return [system.unstrip_protocol(each) for each in sorted(system.glob(path))]


def stamp(url: str) -> str:
    """What tells whether a file, or a folder's files, have changed. Raises FileNotFoundError."""
    system, path = opened(url)
    return str(system.ukey(path) if system.isfile(path) else sorted(system.find(path, detail=True).items()))


@contextmanager
def fetched(video: str) -> Iterator[Path]:
    """A path to read a video at while the block runs: its own, or that of a copy. Raises VideoError: nothing there."""
    if not is_url(video):
        yield Path(video)
        return
    system, path = opened(video)
    with tempfile.TemporaryDirectory(prefix="surgery-") as folder:
        copy = Path(folder) / path.rstrip("/").rpartition("/")[2]
        try:
            # With a slash, what is in a folder goes there, and not the folder itself.
            system.get(path, str(copy)) if system.isfile(path) else system.get(f"{path}/", f"{copy}/", recursive=True)
        except FileNotFoundError as error:
            raise VideoError(f"{video}: no such file or folder") from error
        yield copy


def read(url: str) -> bytes | None:
    """What is in a file; None where there is none."""
    system, path = opened(url)
    try:
        return bytes(system.cat_file(path))
    except FileNotFoundError:
        return None


def write(url: str, data: bytes) -> None:
    """Write a file, and the folder it is in."""
    system, path = opened(url)
    system.makedirs(path.rpartition("/")[0], exist_ok=True)
    system.pipe_file(path, data)


def upload(folder: Path, url: str, last: str) -> None:
    """Copy what is in a folder over what may be at `url`. The file `last` is removed first and comes last: while it is
    there, all the others are those that belong to it.
    """
    system, path = opened(url)
    files = sorted((Path(place) / name).relative_to(folder) for place, _, names in os.walk(folder) for name in names)
    files.remove(Path(last))
    if system.exists(f"{path}/{last}"):
        system.rm_file(f"{path}/{last}")
    if system.exists(path):
        system.rm(path, recursive=True)
    for parent in {f"{path}/{file.parent.as_posix()}" for file in files}:
        system.makedirs(parent, exist_ok=True)
    for some in (files, [Path(last)]):
        system.put([str(folder / file) for file in some], [f"{path}/{file.as_posix()}" for file in some])

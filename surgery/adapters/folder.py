"""Adapter folders on disk: replaced in one step, so that a reader, or whatever is left after a kill, sees one version.

A folder is written beside its place and swapped in. Linux can exchange two folders in one system call; elsewhere, and
where the file system cannot (some network mounts), two renames are used, and only a kill between the two leaves the old
version under a hidden name. Temporary folders of killed saves are removed by the next save after an hour.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import os
import shutil
import tempfile
import time
from pathlib import Path

from surgery.adapters.config import CONFIG, FILES, read_json
from surgery.errors import AdapterError

_TEMPORARY = ".partial"
_STALE_SECONDS = 3600.0
_AT_FDCWD, _RENAME_EXCHANGE = -100, 2


def require_replaceable(folder: Path) -> None:
    """Raise AdapterError unless `folder` is absent, empty, or an adapter of ours and nothing else."""
    if os.path.lexists(folder) and not _replaceable(folder):
        raise AdapterError(f"{folder}: exists and is not an adapter folder of surgery; choose another path")


def write_folder(target: Path, files: dict[str, bytes]) -> None:
    """Put `files` at `target`, complete or not at all; two writers at once leave one of the two versions.

    Raises:
        AdapterError: `target` is not replaceable, or cannot be written. What was there is unchanged.
    """
    require_replaceable(target)
    fresh, place = None, target.absolute()
    try:
        place.parent.mkdir(parents=True, exist_ok=True)
        _sweep(place)
        fresh = Path(tempfile.mkdtemp(prefix=f".{place.name}.", suffix=_TEMPORARY, dir=place.parent))
        for name, content in files.items():
            with open(fresh / name, "wb") as file:
                file.write(content)
                file.flush()
                os.fsync(file.fileno())
        fresh.chmod(0o755)
        _swap(fresh, place)
    except (OSError, ValueError) as error:
        raise AdapterError(f"{target}: cannot be written: {error}") from error
    finally:
        if fresh is not None:
            shutil.rmtree(fresh, ignore_errors=True)


def _replaceable(folder: Path) -> bool:
    """Other libraries use the same file names, hence one look inside."""
    try:
        if folder.is_symlink() or not folder.is_dir():
            return False
        entries = {entry.name for entry in folder.iterdir()}
        if not entries:
            return True
        config = read_json(folder / CONFIG)
    except FileNotFoundError:
        return True  # swapped or removed by another save since lexists
    except (OSError, ValueError, AdapterError):
        return False
    ours = isinstance(config, dict) and config.get("library") == "surgery"
    return ours and entries <= set(FILES)


def _sweep(place: Path) -> None:
    for left in place.parent.glob(f".{place.name}.*{_TEMPORARY}"):
        with contextlib.suppress(OSError):
            if time.time() - left.stat().st_ctime > _STALE_SECONDS:
                shutil.rmtree(left, ignore_errors=True)


def _swap(fresh: Path, place: Path) -> None:
    """Afterwards `place` is the new folder, and `fresh` the old one or nothing."""
    try:
        os.rename(fresh, place)
    except OSError as error:
        if error.errno not in (errno.ENOTEMPTY, errno.EEXIST):
            raise
        if not _exchange(fresh, place):
            _rename_twice(fresh, place)


def _exchange(fresh: Path, place: Path) -> bool:
    """Exchange two folders in one system call; False where the system or the file system cannot."""
    library = ctypes.CDLL(None, use_errno=True)
    if not hasattr(library, "renameat2"):
        return False
    failed = library.renameat2(_AT_FDCWD, os.fsencode(fresh), _AT_FDCWD, os.fsencode(place), _RENAME_EXCHANGE)
    code = ctypes.get_errno()
    if failed and code not in (errno.EINVAL, errno.ENOSYS, errno.ENOTSUP):
        raise OSError(code, os.strerror(code), str(place))
    return not failed


def _rename_twice(fresh: Path, place: Path) -> None:
    old = fresh.with_name(fresh.name + ".old")
    try:
        os.rename(place, old)
        os.rename(fresh, place)
    except BaseException:
        if old.is_dir() and not place.exists():
            os.rename(old, place)
        raise
    shutil.rmtree(old, ignore_errors=True)

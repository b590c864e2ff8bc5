"""Files that are there whole or not at all."""

from __future__ import annotations

import os
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


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

"""Pictures of traces as data URIs: found by name, made small, never outside the folder that was given."""

from __future__ import annotations

import base64
import io
from collections.abc import Sequence
from pathlib import Path

from PIL import Image, UnidentifiedImageError

from surgery.report.read import ReportError, Result

WIDTH = 480
_SUFFIXES = (".jpg", ".jpeg", ".png")


def embedded(traces: Sequence[Result], folder: Path) -> dict[Path, list[str | None]]:
    """Per trace file, a JPEG data URI for each of its frames, None where the picture is not there.

    Raises:
        ReportError: no such folder, no trace to embed for, a trace none of whose pictures are there, a name with a path
            in it, or a file that is not a picture.
    """
    if not folder.is_dir():
        raise ReportError(f"{folder}: not a folder; --frames expects FRAMES/SEQUENCE/NAME.jpg or FRAMES/NAME.jpg")
    if not traces:
        raise ReportError(f"{folder}: frames were given, but no trace to show them in")
    made = {}
    for trace in traces:
        sequence = trace.data["sequence"]
        _plain(sequence, trace.path, "sequence")
        home = folder / sequence if (folder / sequence).is_dir() else folder
        uris = []
        for number, frame in enumerate(trace.data["frames"]):
            _plain(frame["name"], trace.path, f"frames[{number}].name")
            paths = (home / f"{frame['name']}{suffix}" for suffix in _SUFFIXES)
            found = next((path for path in paths if path.is_file()), None)
            uris.append(None if found is None else data_uri(found))
        if not any(uris):
            first = trace.data["frames"][0]["name"]
            raise ReportError(f"{home}: no picture of {trace.path.name}; expected {first}.jpg and so on")
        made[trace.path] = uris
    return made


def data_uri(path: Path) -> str:
    """A picture file, see `encoded`. Raises ReportError when it is not a picture."""
    try:
        with Image.open(path) as image:
            return encoded(image.convert("RGB"))
    except (UnidentifiedImageError, OSError) as error:
        raise ReportError(f"{path}: not a picture ({error})") from error


def encoded(image: Image.Image) -> str:
    """An RGB picture as a JPEG data URI of at most `WIDTH` pixels; `image` itself is made that small."""
    image.thumbnail((WIDTH, 4 * WIDTH))
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", quality=75, optimize=True)
    return f"data:image/jpeg;base64,{base64.b64encode(buffer.getvalue()).decode()}"


def _plain(name: str, path: Path, key: str) -> None:
    if not name or name in (".", "..") or any(sign in name for sign in "/\\\0"):
        raise ReportError(f"{path}: key '{key}': {name!r:.60} is not a plain file name")

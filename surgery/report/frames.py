"""Pictures of traces as data URIs: found by name, made small, never outside the folder that was given."""

from __future__ import annotations

import base64
import io
from collections.abc import Sequence
from pathlib import Path

from PIL import Image, UnidentifiedImageError

from surgery.report.read import ReportError, Result
from surgery.video.folder import KINDS

WIDTH = 480


def embedded(traces: Sequence[Result], folder: Path) -> dict[Path, list[str | None]]:
    """Per trace file, a JPEG data URI for each of its frames, None where the picture is not there.

    Raises:
        ReportError: no such folder, no trace to embed for, a trace none of whose pictures are there, a sequence
            with a path in its name, or a file that is not a picture.
    """
    if not folder.is_dir():
        raise ReportError(f"{folder}: not a folder; --frames expects FRAMES/SEQUENCE/NAME.jpg or FRAMES/NAME.jpg")
    if not traces:
        raise ReportError(f"{folder}: frames were given, but no trace to show them in")
    made = {}
    for trace in traces:
        sequence, names = trace.data["sequence"], [frame["name"] for frame in trace.data["frames"]]
        if not sequence or sequence in (".", "..") or any(sign in sequence for sign in "/\\\0"):
            raise ReportError(f"{trace.path}: key 'sequence': {sequence!r:.60} is not a plain file name")
        home = folder / sequence if (folder / sequence).is_dir() else folder
        # Looked up, so that no frame's name leads out of the folder.
        there = {path.stem: path for path in home.iterdir() if path.suffix.lower() in KINDS}
        uris = [data_uri(there[name]) if name in there else None for name in names]
        if not any(uris):
            raise ReportError(f"{home}: no picture of {trace.path.name}; expected {names[0]}.jpg and so on")
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

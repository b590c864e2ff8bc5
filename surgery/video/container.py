"""Is a video file all there? Compares the length its container declares with the length it has.

FFmpeg ends a file that was cut short as if it were complete, so a half-copied video would quietly give half a result.
MP4/MOV, Matroska/WebM and AVI state their own length; for other containers nothing can be said before decoding.
"""

from __future__ import annotations

import struct
from pathlib import Path
from typing import BinaryIO

_MP4_FIRST_BOXES = {b"ftyp", b"moov", b"mdat", b"free", b"skip", b"wide", b"pnot", b"styp", b"moof"}
_MP4_DATA_BOXES = {b"moov", b"mdat", b"moof"}
_EBML_HEADER = b"\x1a\x45\xdf\xa3"
_EBML_SEGMENT = b"\x18\x53\x80\x67"
# Some writers count the 8 bytes of the RIFF header in its length, which the format says not to.
_RIFF_HEADER = 8


def missing_bytes(path: Path) -> int:
    """Return how many bytes of the file at `path` its container declares but the file lacks; 0: none, or unknown.

    Raises:
        OSError: the file cannot be read.
    """
    length = path.stat().st_size
    with path.open("rb") as file:
        head = file.read(12)
        file.seek(0)
        if head[4:8] in _MP4_FIRST_BOXES:
            declared = _mp4_end(file, length)
        elif head[:4] == _EBML_HEADER:
            declared = _matroska_end(file)
        elif head[:4] == b"RIFF" and head[8:12] == b"AVI ":
            declared = _riff_end(head, length)
        else:
            declared = 0
    return max(0, declared - length)


def _riff_end(head: bytes, length: int) -> int:
    size = int(struct.unpack("<I", head[4:8])[0])
    # All ones: a recorder that never came back to fill in the length.
    return 0 if size == 0xFFFFFFFF or size <= length else size + _RIFF_HEADER


def _mp4_end(file: BinaryIO, length: int) -> int:
    position = 0
    while position + 8 <= length:
        file.seek(position)
        size, kind = struct.unpack(">I4s", file.read(8))
        if size == 1:
            large = file.read(8)
            size = struct.unpack(">Q", large)[0] if len(large) == 8 else 0
        if size < 8:
            # 0 means "to the end of the file"; anything else is padding after the last box.
            return length
        position += size
        if position > length and kind not in _MP4_DATA_BOXES:
            return length
    return position


def _matroska_end(file: BinaryIO) -> int:
    file.seek(len(_EBML_HEADER))
    header = _ebml_size(file)
    if header is None:
        return 0
    file.seek(header, 1)
    if file.read(4) != _EBML_SEGMENT:
        return 0
    segment = _ebml_size(file)
    # A live recording does not know its length and says so.
    return 0 if segment is None else file.tell() + segment


def _ebml_size(file: BinaryIO) -> int | None:
    first = file.read(1)
    if not first or first == b"\0":
        return None
    extra = 8 - first[0].bit_length()
    bits = 7 * (extra + 1)
    value = int.from_bytes(first + file.read(extra), "big") & ((1 << bits) - 1)
    return None if value == (1 << bits) - 1 else value

"""Frames from a video file, through PyAV."""

from __future__ import annotations

import os
import struct
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from surgery.errors import DamagedVideoWarning, VideoError
from surgery.missing import require
from surgery.video.source import Frame, Video

if TYPE_CHECKING:
    from av.container import InputContainer
    from av.video.stream import VideoStream

# FFmpeg opens texts and single pictures as if they were videos.
_NOT_VIDEOS = {"tty", "image2"}
_ATTACHED_PICTURE = 0x400
_BT709 = 1
_EXPECTED = "expected a video file (mp4, mov, avi, mkv, webm, ...)"
# Of other containers FFmpeg judges the length by what is there.
_DECLARING = {"mov,mp4,m4a,3gp,3g2,mj2", "matroska,webm", "avi"}
# Declared lengths are rounded, and of the longest stream. Seconds.
_SLACK = 0.5


class FileVideo(Video):
    """Frames of the first video stream of a file, decoded as they are asked for; other streams are ignored.

    Frames come as stored, one per coded frame (a variable frame rate is not resampled), turned upright by the file's
    display matrix (phones store a rotation of 90, 180 or 270 degrees, or a mirror, instead of turning the pixels).
    Non-square pixels are not stretched and HDR is not tone-mapped.

    Raises:
        VideoError: not a video, no frame, cut short (its data ends before its declared length), damaged.

    Warns:
        DamagedVideoWarning: after the last frame, when there were fewer than the container declares.
    """

    def __init__(self, path: Path) -> None:
        require("av")
        self.name = path.stem
        self._path = path
        with self._open() as (container, stream):
            rate = stream.average_rate or stream.guessed_rate
            self.fps = float(rate) if rate else None
            self.num_frames = stream.frames or None
            self._require_whole(container)
        first = next(self._frames(), None)
        if first is None:
            raise VideoError(f"{path}: the file holds no video frames, {_EXPECTED} with at least one frame")
        self.size = (first.shape[0], first.shape[1])

    def where(self, index: int) -> str:
        """The file, and the frame's index."""
        return f"{self._path}, frame {index}"

    def _frames(self) -> Iterator[Frame]:
        import av

        index = 0
        with self._open() as (container, stream):
            stream.thread_type = "AUTO"
            if stream.codec_context.name == "mjpeg":
                # Unlike other decoders it marks no damaged frame: it errs, or says nothing.
                stream.codec_context.options = {"err_detect": "explode"}
            expected = "expected a video that decodes without errors"
            try:
                for frame in container.decode(stream):
                    if frame.is_corrupt:
                        fix = "re-encode it if you want to keep the damaged frames"
                        raise VideoError(f"{self.where(index)}: the data is damaged, {expected}: {fix}")
                    # Before PyAV 17 the colours of HD videos come out wrong unless both sides are named.
                    sides: Any = {"src_colorspace": "ITU709", "dst_colorspace": "DEFAULT"}
                    rgb: Any = frame.to_ndarray(format="rgb24", **(sides if frame.colorspace == _BT709 else {}))
                    matrix: Any = frame.side_data.get("DISPLAYMATRIX")
                    yield rgb if matrix is None else upright(rgb, struct.unpack("<9i", bytes(matrix)))
                    index += 1
            except av.error.FFmpegError as error:
                raise VideoError(f"{self.where(index)}: cannot be decoded ({error.strerror}), {expected}") from error
        if self.num_frames is not None and index < self.num_frames:
            found = f"{self._path}: {index} frames were decoded of {self.num_frames} that the file declares"
            lost = f"frames {index}..{self.num_frames - 1} are missing at its end, or as many were lost on the way"
            warnings.warn(f"{found}: {lost}", DamagedVideoWarning, stacklevel=2)

    @contextmanager
    def _open(self) -> Iterator[tuple[InputContainer, VideoStream]]:
        import av

        try:
            # An absolute path cannot be mistaken for a protocol; tags in old encodings must not fail the video.
            container = av.open(os.path.abspath(self._path), metadata_errors="replace")
        except (av.error.FFmpegError, OSError) as error:
            raise VideoError(f"{self._path}: not a readable video ({error.strerror}), {_EXPECTED}") from error
        with container:
            if container.format.name in _NOT_VIDEOS or container.format.name.endswith("_pipe"):
                raise VideoError(f"{self._path}: a text or a single picture, not a video, {_EXPECTED}")
            for stream in container.streams.video:
                # An int in new PyAV, a flag in older ones, and missing in the oldest.
                disposition = getattr(stream, "disposition", 0)
                if not getattr(disposition, "value", disposition) & _ATTACHED_PICTURE:
                    break
            else:
                raise VideoError(f"{self._path}: no video stream, {_EXPECTED}")
            yield container, stream

    def _require_whole(self, container: InputContainer) -> None:
        """FFmpeg ends a file that was cut short as if it were complete: a half-copied one would give half a result."""
        import av

        if not container.duration or container.format.name not in _DECLARING:
            return
        declared, end, cut = container.duration / av.time_base, 0.0, False
        try:
            container.seek(container.duration - 1)
            for packet in container.demux():
                cut |= packet.is_corrupt
                if packet.pts is not None and packet.time_base is not None:
                    end = max(end, float((packet.pts + (packet.duration or 0)) * packet.time_base))
        except av.error.FFmpegError:
            cut = True
        if cut or end < declared - _SLACK:
            raise VideoError(
                f"{self._path}: the file is cut short, its data ends at {end:.1f} s of {declared:.1f} s, {_EXPECTED} "
                "that is complete: copy or download it again, or keep what is there with `ffmpeg -i IN -c copy OUT`"
            )


def upright(rgb: Any, matrix: tuple[int, ...]) -> Frame:
    """Turn a stored frame the way it is meant to be seen.

    Args:
        rgb: (height, width, 3) as stored.
        matrix: the display matrix of the file, 9 fixed-point integers (a, b, u, c, d, v, x, y, w): a stored point
            (x, y) is shown at (a*x + c*y, b*x + d*y). Only its mirror and its turn, to the nearest quarter, are used.

    Returns:
        The same pixels, contiguous; height and width are swapped by a quarter turn.
    """
    a, b, _, c, d = matrix[:5]
    if abs(b) > abs(a):
        rgb, a, d = rgb.transpose(1, 0, 2), c, b
    return np.ascontiguousarray(rgb[:: -1 if d < 0 else 1, :: -1 if a < 0 else 1])

"""Frames from a video file, through PyAV."""

from __future__ import annotations

import os
import struct
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from surgery.errors import DamagedVideoWarning, VideoError
from surgery.missing import require
from surgery.video.container import missing_bytes
from surgery.video.rgb import Frame

if TYPE_CHECKING:
    from av.container import InputContainer
    from av.video.frame import VideoFrame
    from av.video.stream import VideoStream

# FFmpeg opens texts and single pictures as if they were videos.
_NOT_VIDEOS = {"tty", "image2"}
_ATTACHED_PICTURE = 0x400
_BT709 = 1
_EXPECTED = "expected a video file (mp4, mov, avi, mkv, webm, ...)"


class FileReader:
    """Frames of the first video stream of a file, decoded as they are asked for; other streams are ignored.

    Frames come as stored, one per coded frame (a variable frame rate is not resampled), turned upright by the file's
    display matrix (phones store a rotation of 90, 180 or 270 degrees, or a mirror, instead of turning the pixels).
    Non-square pixels are not stretched and HDR is not tone-mapped.

    Raises:
        VideoError: not a video, no frame, cut short (the container declares more bytes than the file has), damaged.

    Warns:
        DamagedVideoWarning: after the last frame, when there were fewer than the container declares.
    """

    names: tuple[str, ...] | None = None

    def __init__(self, path: Path) -> None:
        require("av")
        self.name = path.stem
        self._path = path
        try:
            missing = missing_bytes(path)
        except OSError as error:
            raise VideoError(f"{path}: the file cannot be read ({error}), {_EXPECTED}") from error
        if missing:
            raise VideoError(
                f"{path}: the file is cut short, {missing} bytes are missing, {_EXPECTED} that is complete: copy or "
                "download it again, or keep what is there with `ffmpeg -i IN -c copy OUT`"
            )
        with self._open() as container:
            stream = self._stream(container)
            rate = stream.average_rate or stream.guessed_rate
            self.fps = float(rate) if rate else None
            self.num_frames = stream.frames or None
        for first in self.frames():
            self.size = (first.shape[0], first.shape[1])
            return
        raise VideoError(f"{path}: the file holds no video frames, {_EXPECTED} with at least one frame")

    def frames(self) -> Iterator[Frame]:
        """Start a pass over the frames; one that cannot be decoded is a `VideoError` naming the file and its index."""
        import av

        with self._open() as container:
            stream = self._stream(container)
            stream.thread_type = "AUTO"
            if stream.codec_context.name == "mjpeg":
                # Unlike other decoders it marks no damaged frame: it errs, or says nothing.
                stream.codec_context.options = {"err_detect": "explode"}
            decoded = container.decode(stream)
            index = 0
            while True:
                try:
                    frame = next(decoded)
                    if frame.is_corrupt:
                        raise VideoError(
                            f"{self._path}, frame {index}: the data is damaged, expected a video that decodes without "
                            "errors: re-encode it if you want to keep the damaged frames"
                        )
                    rgb = _to_rgb(frame)
                    matrix: Any = frame.side_data.get("DISPLAYMATRIX")
                except StopIteration:
                    break
                except av.error.FFmpegError as error:
                    raise VideoError(
                        f"{self._path}, frame {index}: cannot be decoded ({error.strerror}), expected a video that "
                        "decodes without errors"
                    ) from error
                if matrix is not None:
                    rgb = upright(rgb, struct.unpack("<9i", bytes(matrix)), f"{self._path}, frame {index}")
                yield rgb
                index += 1
        if self.num_frames is not None and index < self.num_frames:
            warnings.warn(
                f"{self._path}: {index} frames were decoded of {self.num_frames} that the file declares: frames "
                f"{index}..{self.num_frames - 1} are missing at its end, or as many were lost on the way",
                DamagedVideoWarning,
                stacklevel=2,
            )

    def _open(self) -> InputContainer:
        import av

        try:
            # An absolute path cannot be mistaken for a protocol; tags in old encodings must not fail the video.
            container = av.open(os.path.abspath(self._path), metadata_errors="replace")
        except (av.error.FFmpegError, OSError) as error:
            raise VideoError(f"{self._path}: not a readable video ({error.strerror}), {_EXPECTED}") from error
        if container.format.name in _NOT_VIDEOS or container.format.name.endswith("_pipe"):
            container.close()
            raise VideoError(f"{self._path}: a text or a single picture, not a video, {_EXPECTED}")
        return container

    def _stream(self, container: InputContainer) -> VideoStream:
        for stream in container.streams.video:
            # An int in new PyAV, a flag in older ones, and missing in the oldest.
            disposition = getattr(stream, "disposition", 0)
            if not getattr(disposition, "value", disposition) & _ATTACHED_PICTURE:
                return stream
        raise VideoError(f"{self._path}: no video stream, {_EXPECTED}")


def _to_rgb(frame: VideoFrame) -> Any:
    if frame.colorspace == _BT709:
        # Before PyAV 17 the colours of HD videos come out wrong unless both sides are named.
        return frame.to_ndarray(format="rgb24", src_colorspace="ITU709", dst_colorspace="DEFAULT")
    return frame.to_ndarray(format="rgb24")


def upright(rgb: Any, matrix: tuple[int, ...], where: str) -> Frame:
    """Turn a stored frame the way it is meant to be seen.

    Args:
        rgb: (height, width, 3) as stored.
        matrix: the display matrix of the file, 9 fixed-point integers (a, b, u, c, d, v, x, y, w): a stored point
            (x, y) is shown at (a*x + c*y, b*x + d*y). Only its turn and mirror are used.
        where: starts the message of an error.

    Returns:
        The same pixels, contiguous; height and width are swapped by a quarter turn.

    Raises:
        VideoError: an angle that is not a multiple of 90 degrees.
    """
    a, b, _, c, d = matrix[:5]
    diagonal, crossed = (abs(a), abs(d)), (abs(b), abs(c))
    if max(diagonal) == max(crossed) == 0:
        return np.ascontiguousarray(rgb)
    # Writers that compute the matrix in floating point leave dust where the zeros should be.
    if max(crossed) * 100 < min(diagonal):
        mirror_x, mirror_y = a < 0, d < 0
    elif max(diagonal) * 100 < min(crossed):
        rgb = rgb.transpose(1, 0, 2)
        mirror_x, mirror_y = c < 0, b < 0
    else:
        raise VideoError(f"{where}: the file asks to be shown at an odd angle, expected a multiple of 90 degrees")
    return np.ascontiguousarray(rgb[:: -1 if mirror_y else 1, :: -1 if mirror_x else 1])

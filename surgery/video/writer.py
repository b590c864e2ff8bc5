"""Write frames into an mp4 file, one at a time, so that no half-written file is ever left behind."""

from __future__ import annotations

import contextlib
import math
import os
import uuid
import warnings
from collections.abc import Iterable
from fractions import Fraction
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, cast

import numpy as np

from surgery.errors import VideoError
from surgery.missing import require
from surgery.video.rgb import Frame, require_rgb

if TYPE_CHECKING:
    from av.container import OutputContainer
    from av.video.stream import VideoStream

_CODECS = {
    "libx264": {"crf": "18", "preset": "fast"},
    # FFmpeg's scale of 118 per step; 3 looks like crf 18. The default is a bit rate from the time of dial-up.
    "mpeg4": {"flags": "+qscale", "global_quality": str(3 * 118)},
}
# The denominator of the broadcast rates, 30000/1001 and its kin.
_NTSC = 1001
_BT709 = 1
_TV_RANGE = 1


class VideoWriter:
    """Context manager that writes an mp4 file frame by frame.

        with VideoWriter("out.mp4", fps=24) as writer:
            for frame in frames:
                writer.write(frame)

    The file is written under a temporary name in the same folder and renamed when the block ends; an existing file is
    replaced only then. When the block fails nothing is left. Colours are tagged BT.709, so players show what was
    written. Odd heights and widths grow by one pixel (a copy of the last row or column), as yuv420p needs even ones.

    Args:
        path: the file to write; its suffix is `.mp4` and its folder exists.
        fps: frames per second, 0.01 to 1000.

    Attributes:
        codec: `"libx264"` (H.264), or `"mpeg4"`, with a warning, where FFmpeg was built without libx264.
        num_frames: how many frames were written so far.

    Raises:
        VideoError: another suffix, a missing folder, a frame rate out of range.
    """

    def __init__(self, path: str | os.PathLike[str], fps: float) -> None:
        self.path = Path(path).expanduser()
        if self.path.suffix.lower() != ".mp4":
            raise VideoError(f"{self.path}: cannot write {self.path.suffix or 'a file without suffix'}, expected .mp4")
        if self.path.is_dir():
            raise VideoError(f"{self.path}: a folder, expected the name of an .mp4 file to write")
        if not self.path.parent.is_dir():
            raise VideoError(f"{self.path}: the folder {self.path.parent} does not exist, expected one to write into")
        if not (math.isfinite(fps) and 0.01 <= fps <= 1000):
            raise VideoError(f"{self.path}: fps is {fps}, expected 0.01 to 1000 frames per second")
        require("av")
        self.codec = _pick_codec()
        self.num_frames = 0
        self._rate = Fraction(fps).limit_denominator(_NTSC)
        self._part = self.path.with_name(f".{self.path.stem}.{uuid.uuid4().hex[:8]}.part.mp4")
        self._size: tuple[int, int] | None = None
        self._sink: tuple[OutputContainer, VideoStream] | None = None
        self._active = False

    def __enter__(self) -> VideoWriter:
        self._active = True
        return self

    def write(self, rgb: Frame) -> None:
        """Append one frame.

        Args:
            rgb: (height, width, 3) uint8, of the size of the first one.

        Raises:
            VideoError: not a frame, another size than the first one, a failed write, or a writer that is not open.
        """
        where = f"{self.path}, frame {self.num_frames}"
        if not self._active:
            raise VideoError(f"{where}: the writer is not open, expected `with VideoWriter(...) as writer:` around it")
        require_rgb(rgb, where)
        height, width = rgb.shape[:2]
        if self._size is None:
            self._size = (height, width)
        if self._size != (height, width):
            raise VideoError(
                f"{where}: {height}x{width} pixels (height x width), "
                f"expected {self._size[0]}x{self._size[1]} as in frame 0"
            )
        if height % 2 or width % 2:
            rgb = np.pad(rgb, ((0, height % 2), (0, width % 2), (0, 0)), mode="edge")
        self._guarded(where, self._encode, np.ascontiguousarray(rgb))
        self.num_frames += 1

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if not self._active:
            return
        if kind is not None:
            self._abort()
        elif self.num_frames == 0:
            self._abort()
            raise VideoError(f"{self.path}: no frame was written, expected at least one")
        else:
            self._guarded(str(self.path), self._finish)
        self._active = False

    def _guarded(self, where: str, step: Any, *args: Any) -> None:
        import av

        try:
            step(*args)
        except (av.error.FFmpegError, OSError, ValueError) as error:
            self._abort()
            raise VideoError(f"{where}: cannot be written ({error}), expected room and permission to write") from error
        except BaseException:
            self._abort()
            raise

    def _encode(self, rgb: Frame) -> None:
        import av

        if self._sink is None:
            self._sink = self._open(*rgb.shape[:2])
        container, stream = self._sink
        frame = av.VideoFrame.from_ndarray(rgb, format="rgb24").reformat(format="yuv420p", dst_colorspace="ITU709")
        frame.pts, frame.time_base = self.num_frames, 1 / self._rate
        container.mux(stream.encode(frame))

    def _open(self, height: int, width: int) -> tuple[OutputContainer, VideoStream]:
        import av

        container = av.open(str(self._part.absolute()), "w", format="mp4", options={"movflags": "+faststart"})
        stream = cast("VideoStream", container.add_stream(self.codec, rate=self._rate))
        stream.height, stream.width = height, width
        stream.pix_fmt = "yuv420p"
        stream.options = dict(_CODECS[self.codec])
        context = stream.codec_context
        context.colorspace = context.color_primaries = context.color_trc = _BT709
        context.color_range = _TV_RANGE
        # Without this the file is opened some frames later, and a full disk noticed as late.
        container.start_encoding()
        return container, stream

    def _finish(self) -> None:
        if self._sink is not None:
            container, stream = self._sink
            container.mux(stream.encode())
            container.close()
            self._sink = None
            os.replace(self._part, self.path)

    def _abort(self) -> None:
        import av

        self._active = False
        if self._sink is not None:
            # The error that brought us here is the one to report; the file goes away in any case.
            with contextlib.suppress(av.error.FFmpegError, OSError):
                self._sink[0].close()
            self._sink = None
        self._part.unlink(missing_ok=True)


def write_video(path: str | os.PathLike[str], frames: Iterable[Frame], fps: float) -> None:
    """Write all `frames` into an mp4 file; see `VideoWriter` for the arguments and errors.

    Raises:
        VideoError: as `VideoWriter`, or no frame at all. Nothing is left at `path` then, or what was there before.
    """
    with VideoWriter(path, fps) as writer:
        for frame in frames:
            writer.write(frame)


def _pick_codec() -> str:
    import av

    for codec in _CODECS:
        try:
            av.codec.Codec(codec, "w")
        except ValueError:
            continue
        if codec != "libx264":
            warnings.warn(
                f"FFmpeg was built without libx264: writing {codec} video, which web browsers do not play", stacklevel=3
            )
        return codec
    raise VideoError(
        "FFmpeg has no encoder for mp4 video, expected libx264 or mpeg4: reinstall PyAV with `pip install av`"
    )

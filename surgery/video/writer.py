"""Write frames into an mp4 file, one at a time, so that no half-written file is ever left behind."""

from __future__ import annotations

import math
import os
from collections.abc import Iterable, Iterator
from contextlib import ExitStack, contextmanager
from fractions import Fraction
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from surgery.errors import VideoError
from surgery.files import replacing
from surgery.missing import require
from surgery.video.source import Frame, require_rgb, require_size

if TYPE_CHECKING:
    from av.container import OutputContainer
    from av.video.stream import VideoStream

# The denominator of the broadcast rates, 30000/1001 and its kin.
_NTSC = 1001
_BT709 = 1
_TV_RANGE = 1


class VideoWriter:
    """Context manager that writes an mp4 file (H.264) frame by frame.

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
        num_frames: how many frames were written so far.

    Raises:
        VideoError: another suffix, a missing folder, a frame rate out of range; later an FFmpeg without libx264.
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
        self.num_frames = 0
        self._rate = Fraction(fps).limit_denominator(_NTSC)
        self._container: OutputContainer | None = None
        self._stream: VideoStream | None = None
        self._size: tuple[int, int] | None = None

    def __enter__(self) -> VideoWriter:
        import av

        with _told(str(self.path)), ExitStack() as stack:
            part = stack.enter_context(replacing(self.path)).absolute()
            container = av.open(str(part), "w", format="mp4", options={"movflags": "+faststart"})
            self._container = stack.enter_context(container)
            self._stack = stack.pop_all()
        return self

    def __exit__(self, *failure: Any) -> None:
        container, self._container = self._container, None
        with _told(str(self.path)):
            if failure[0] is not None:
                self._stack.__exit__(*failure)
                return
            with self._stack:
                if self._stream is None or container is None:
                    raise VideoError(f"{self.path}: no frame was written, expected at least one")
                container.mux(self._stream.encode())

    def write(self, rgb: Frame) -> None:
        """Append one frame.

        Args:
            rgb: (height, width, 3) uint8, of the size of the first one.

        Raises:
            VideoError: not a frame, another size than the first one, a failed write, or a writer that is not open.
        """
        import av

        where = f"{self.path}, frame {self.num_frames}"
        if self._container is None:
            raise VideoError(f"{where}: the writer is not open, expected `with VideoWriter(...) as writer:` around it")
        height, width = require_rgb(rgb, where).shape[:2]
        self._size = self._size or (height, width)
        require_size((height, width), self._size, where, "frame 0")
        rgb = np.pad(rgb, ((0, height % 2), (0, width % 2), (0, 0)), mode="edge")
        with _told(where):
            self._stream = self._stream or self._begun(self._container, *rgb.shape[:2])
            frame = av.VideoFrame.from_ndarray(rgb, format="rgb24").reformat(format="yuv420p", dst_colorspace="ITU709")
            frame.pts, frame.time_base = self.num_frames, 1 / self._rate
            self._container.mux(self._stream.encode(frame))
        self.num_frames += 1

    def _begun(self, container: OutputContainer, height: int, width: int) -> VideoStream:
        options = {"crf": "18", "preset": "fast"}
        stream = container.add_stream("libx264", rate=self._rate, options=options, height=height, width=width)
        stream.pix_fmt = "yuv420p"
        context = stream.codec_context
        context.colorspace = context.color_primaries = context.color_trc = _BT709
        context.color_range = _TV_RANGE
        # Without this the file is opened some frames later, and a full disk noticed as late.
        container.start_encoding()
        return stream


@contextmanager
def _told(where: str) -> Iterator[None]:
    import av

    try:
        yield
    except (av.error.FFmpegError, OSError, ValueError) as error:
        raise VideoError(f"{where}: cannot be written ({error}), expected room and permission to write") from error


def write_video(path: str | os.PathLike[str], frames: Iterable[Frame], fps: float) -> None:
    """Write all `frames` into an mp4 file; see `VideoWriter` for the arguments and errors.

    Raises:
        VideoError: as `VideoWriter`, or no frame at all. Nothing is left at `path` then, or what was there before.
    """
    with VideoWriter(path, fps) as writer:
        for frame in frames:
            writer.write(frame)

"""Small real video files, made with PyAV so that no test depends on the library's own writer."""

from __future__ import annotations

import struct
from fractions import Fraction
from pathlib import Path

import av
import numpy as np

Frame = np.ndarray


def picture(index: int, height: int = 48, width: int = 64) -> Frame:
    """A frame whose four corners differ, and whose blue says which frame it is."""
    rgb = np.zeros((height, width, 3), np.uint8)
    rgb[: height // 2, : width // 2] = (250, 20, 0)
    rgb[: height // 2, width // 2 :] = (20, 250, 0)
    rgb[height // 2 :, : width // 2] = (250, 250, 0)
    rgb[..., 2] = index * 8 % 256
    return rgb


def make_video(
    path: Path,
    frames: int = 12,
    size: tuple[int, int] = (48, 64),
    codec: str = "libx264",
    rate: Fraction = Fraction(25),
    noise: bool = False,
    container_options: dict[str, str] | None = None,
) -> Path:
    rng = np.random.default_rng(0)
    with av.open(str(path), "w", options=container_options or {}) as container:
        stream = container.add_stream(codec, rate=rate)
        stream.height, stream.width = size
        stream.pix_fmt = "yuvj420p" if codec == "mjpeg" else "yuv420p"
        for index in range(frames):
            rgb = picture(index, *size)
            if noise:
                rgb = rng.integers(0, 256, rgb.shape, dtype=np.uint8)
            container.mux(stream.encode(av.VideoFrame.from_ndarray(rgb, format="rgb24")))
        container.mux(stream.encode())
    return path


def faststart(path: Path, **options: object) -> Path:
    """An mp4 whose index comes first, as on the web: cut short, it still opens."""
    return make_video(path, container_options={"movflags": "+faststart"}, **options)  # type: ignore[arg-type]


def cut(path: Path, part: float) -> Path:
    data = path.read_bytes()
    short = path.with_name(f"cut{path.suffix}")
    short.write_bytes(data[: int(len(data) * part)])
    return short


def with_display_matrix(path: Path, a: int, b: int, c: int, d: int) -> Path:
    """A copy of an mp4 that asks to be turned: the matrix in its track header, in units of 1/65536."""
    data = bytearray(path.read_bytes())
    start = data.find(b"tkhd") + 4 + 40
    one = 1 << 16
    data[start : start + 36] = struct.pack(">9i", a * one, b * one, 0, c * one, d * one, 0, 0, 0, 1 << 30)
    turned = path.with_name(f"turned{a}{b}{c}{d}.mp4")
    turned.write_bytes(data)
    return turned


def make_sound(path: Path) -> Path:
    with av.open(str(path), "w") as container:
        stream = container.add_stream("pcm_s16le", rate=8000, layout="mono")
        frame = av.AudioFrame.from_ndarray(np.zeros((1, 800), np.int16), format="s16", layout="mono")
        frame.rate = 8000
        container.mux(stream.encode(frame))
        container.mux(stream.encode())
    return path


def close_to(left: Frame, right: Frame, tolerance: float = 12) -> bool:
    """The same picture, up to what compression does to it."""
    if left.shape != right.shape:
        return False
    return float(np.abs(left.astype(int) - right.astype(int)).mean()) < tolerance

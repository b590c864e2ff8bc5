"""What a frame is in this library: a (height, width, 3) uint8 RGB array, and nothing else."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from surgery.errors import VideoError

Frame = npt.NDArray[np.uint8]

_EXPECTED = "expected a (height, width, 3) uint8 RGB numpy array"


def require_rgb(frame: Any, where: str) -> Frame:
    """Return `frame` unchanged if it is a frame, otherwise say what is wrong with it.

    Args:
        frame: anything; a good one is a (height, width, 3) uint8 array with height and width of at least 1.
        where: starts the message, e.g. `"clip.mp4, frame 12"`.

    Raises:
        VideoError: not a numpy array, not uint8, greyscale, RGBA, channels first, or without a pixel.
    """
    if not isinstance(frame, np.ndarray):
        hint = ": convert it with numpy.asarray(...)" if hasattr(frame, "__array__") else ""
        raise VideoError(f"{where}: got a {type(frame).__name__}, {_EXPECTED}{hint}")
    if frame.ndim == 2:
        raise VideoError(
            f"{where}: got a greyscale array of shape {frame.shape}, {_EXPECTED}: "
            "repeat the channel with numpy.stack([grey] * 3, axis=-1)"
        )
    if frame.ndim != 3 or frame.shape[2] != 3:
        raise VideoError(f"{where}: got an array of shape {frame.shape}, {_EXPECTED}{_shape_hint(frame.shape)}")
    if frame.dtype != np.uint8:
        raise VideoError(f"{where}: got values of type {frame.dtype}, {_EXPECTED} with values 0..255")
    if frame.shape[0] == 0 or frame.shape[1] == 0:
        raise VideoError(f"{where}: got an array of shape {frame.shape} without a pixel, {_EXPECTED}")
    return frame


def _shape_hint(shape: tuple[int, ...]) -> str:
    if len(shape) == 3 and shape[2] == 4:
        return ": drop the alpha channel with frame[..., :3]"
    if len(shape) == 3 and shape[2] == 1:
        return ": repeat the channel with numpy.repeat(frame, 3, axis=2)"
    if len(shape) == 3 and shape[0] == 3:
        return ": move the channels last with frame.transpose(1, 2, 0)"
    return ""

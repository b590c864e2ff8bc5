"""What a frame is in this library: a (height, width, 3) uint8 RGB array, and nothing else."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from surgery.errors import VideoError

Frame = npt.NDArray[np.uint8]


def require_rgb(frame: Any, where: str) -> Frame:
    """Return `frame` unchanged if it is a frame, otherwise say what is wrong with it.

    Args:
        frame: anything; a good one is a (height, width, 3) uint8 array with height and width of at least 1.
        where: starts the message, e.g. `"clip.mp4, frame 12"`.

    Raises:
        VideoError: not a numpy array, not uint8, greyscale, RGBA, channels first, or without a pixel.
    """
    found, fix = f"a {type(frame).__name__}", ""
    if isinstance(frame, np.ndarray):
        if frame.ndim == 3 and frame.shape[2] == 3 and frame.dtype == np.uint8 and frame.size:
            return frame
        found = f"{frame.dtype} values of shape {frame.shape}"
        match frame.shape:
            case (_, _) | (_, _, 1):
                fix = ": repeat the channel with numpy.repeat(grey.reshape(height, width, 1), 3, axis=2)"
            case (_, _, 4):
                fix = ": drop the alpha channel with frame[..., :3]"
            case (3, _, columns) if columns != 3:
                fix = ": move the channels last with frame.transpose(1, 2, 0)"
    elif hasattr(frame, "__array__"):
        fix = ": convert it with numpy.asarray(...)"
    raise VideoError(f"{where}: got {found}, expected a (height, width, 3) uint8 RGB numpy array{fix}")

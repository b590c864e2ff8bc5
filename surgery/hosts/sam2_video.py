"""Feed stock `sam2` frames from memory: its `init_state` can only load a whole folder or file."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any


@contextmanager
def frames_instead_of_files(frames: Any, size: tuple[int, int]) -> Iterator[None]:
    """Inside, `init_state(anything)` uses `frames`, a tensor or sequence of [3, S, S].

    size: (height, width) of the video in pixels.
    """
    import sam2.sam2_video_predictor as module

    original = module.load_video_frames
    module.load_video_frames = lambda **_: (frames, *size)
    try:
        yield
    finally:
        module.load_video_frames = original

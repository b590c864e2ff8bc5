"""Frames from memory: a 4-D array, a sequence, or any iterator (a camera loop, a generator) of RGB arrays."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator, Sized
from typing import Any

import numpy as np

from surgery.errors import VideoError
from surgery.video.source import Video, require_rgb


class ArrayVideo(Video):
    """Frames of an iterable, passed on one at a time and never stored.

    An iterable that makes a new iterator each time (a list, an array, a class with `__iter__`) can be read again and
    again; a one-shot iterator (a generator, a camera) once.

    Raises:
        VideoError: not iterable, an array that is not (frames, height, width, 3), no frame, or a first frame that is
            not RGB.
    """

    name = "frames"

    def __init__(self, source: Iterable[Any]) -> None:
        if not isinstance(source, Iterable) or (isinstance(source, np.ndarray) and source.ndim != 4):
            got = f"one array of shape {source.shape}" if isinstance(source, np.ndarray) else type(source).__name__
            raise VideoError(
                f"got {got} as the video, expected a folder, a video file, a 4-D (frames, height, width, 3) uint8 RGB "
                "array or an iterable of (height, width, 3) arrays"
            )
        iterator = iter(source)
        self._source = None if iterator is source else source
        self.num_frames = len(source) if isinstance(source, Sized) else None
        first = next(iterator, None)
        if first is None:
            raise VideoError("the video holds no frames, expected at least one (height, width, 3) uint8 RGB array")
        height, width, _ = require_rgb(first, self.where(0)).shape
        self.size = (height, width)
        # The iterator serves the first pass: a camera that drains on iteration must not lose its first frame.
        self._begun: Iterator[Any] | None = itertools.chain([first], iterator)

    def _frames(self) -> Iterator[Any]:
        begun, self._begun = self._begun, None
        if begun is not None:
            return begun
        if self._source is None:
            raise VideoError(
                "these frames come from a one-shot iterator that was already read: expected a single pass; "
                "pass a list, an array, a folder or a video file to read them again"
            )
        return iter(self._source)

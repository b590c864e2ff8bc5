"""Frames from memory: a 4-D array, a sequence, or any iterator (a camera loop, a generator) of RGB arrays."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator, Sized
from typing import Any

import numpy as np

from surgery.errors import VideoError
from surgery.video.rgb import Frame, require_rgb


class ArrayReader:
    """Frames of an iterable, passed on one at a time and never stored.

    An iterable that makes a new iterator each time (a list, an array, a class with `__iter__`) can be read again and
    again; a one-shot iterator (a generator, a camera) once.

    Raises:
        VideoError: not iterable, an array that is not (frames, height, width, 3), no frame, or a first frame that is
            not RGB.
    """

    fps: float | None = None
    names: tuple[str, ...] | None = None

    def __init__(self, source: Iterable[Any]) -> None:
        self.name = "frames"
        if isinstance(source, np.ndarray) and source.ndim != 4:
            raise VideoError(
                f"got one array of shape {source.shape}, expected a 4-D (frames, height, width, 3) uint8 RGB array "
                "or an iterable of (height, width, 3) arrays"
            )
        try:
            iterator = iter(source)
        except TypeError:
            raise VideoError(
                f"got a {type(source).__name__} as the video, expected a folder, a video file, a 4-D uint8 array or an "
                "iterable of (height, width, 3) uint8 RGB arrays"
            ) from None
        self._source: Iterable[Any] | None = None if iterator is source else source
        self.num_frames = len(source) if isinstance(source, Sized) else None
        # The peeked iterator serves the first pass: a camera that drains on iteration must not lose its first frame.
        for first in iterator:
            self._peeked: tuple[Frame, Iterator[Any]] | None = (require_rgb(first, "frame 0"), iterator)
            self.size = (int(first.shape[0]), int(first.shape[1]))
            return
        raise VideoError("the video holds no frames, expected at least one (height, width, 3) uint8 RGB array")

    def frames(self) -> Iterator[Frame]:
        """Start a pass over the frames.

        Raises:
            VideoError: a second pass over a one-shot iterator.
        """
        if self._peeked is not None:
            first, rest = self._peeked
            self._peeked = None
            return self._checked(itertools.chain([first], rest))
        if self._source is None:
            raise VideoError(
                "these frames come from a one-shot iterator that was already read: expected a single pass; "
                "pass a list, an array, a folder or a video file to read them again"
            )
        return self._checked(iter(self._source))

    @staticmethod
    def _checked(frames: Iterator[Any]) -> Iterator[Frame]:
        for index, frame in enumerate(frames):
            yield require_rgb(frame, f"frame {index}")

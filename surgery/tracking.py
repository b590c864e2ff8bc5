"""Track prompted objects through a video with any host, one frame in memory at a time.

This is what the command line runs. Library users keep calling their host directly.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass
from functools import partial
from itertools import islice, pairwise
from typing import Any

import numpy as np
import numpy.typing as npt
from torch import Tensor

from surgery.bench.clock import Clock
from surgery.core.driver import Driver, resized
from surgery.core.host import HostView
from surgery.core.session import FrameRecord
from surgery.engine import current_surgery
from surgery.errors import VideoError
from surgery.hosts import view_of
from surgery.video import BoxPrompt, MaskPrompt, Prompt, Video, check, draw_windows, labels_from_logits
from surgery.video.masks import Labels
from surgery.video.source import Frame

_ENDLESS = 10**9


@dataclass
class TrackedFrame:
    """One frame's result. logits: fp32 [H, W] at video size per object id (> 0 is foreground). seconds: model time,
    synchronised; prompts on the frame count, reading and resizing it do not. record: how the frame was encoded, None
    for stock models and frames that were not tracked.
    """

    index: int
    frame: Frame
    logits: dict[int, npt.NDArray[np.float32]]
    seconds: float
    record: FrameRecord | None

    @property
    def labels(self) -> Labels:
        """uint8 [H, W], 0 for nothing, made anew; see `labels_from_logits`."""
        return labels_from_logits(self.logits)


def track(model: Any, video: Video, prompts: Sequence[Prompt], after: int = -1) -> Iterator[TrackedFrame]:
    """Track `prompts` forward through `video`, starting at the first prompted frame.

    Prompts on later frames add objects or correct them when that frame is reached.

    Args:
        after: only frames after this one are yielded; those up to it are run where they are prompted and left out
            elsewhere, so nothing is remembered of the others. With `surgery.video.continued` this goes on with a
            video from masks.

    Raises:
        PromptError: the prompts do not fit the video or each other.
        VideoError: a frame cannot be read, or the video ends before a prompted frame.
        UnsupportedModelError: not a SAM 2 video model.
    """
    check(prompts, video.size, video.num_frames)
    return _tracked(model, video, prompts, after)


def windows_drawn(frame: Frame, record: FrameRecord) -> Frame:
    """The frame with the windows that were not computed darkened; grids are padded at the bottom and right."""
    rows, columns = record.grid
    size = (frame.shape[0] * record.cover / rows, frame.shape[1] * record.cover / columns)
    return draw_windows(frame, record.grid, size, set(record.windows))


def prompt(driver: Driver, prompts: Iterable[Prompt]) -> None:
    """Give a session its prompts."""
    for each in prompts:
        if isinstance(each, MaskPrompt):
            driver.add_mask(each.frame, each.obj_id, each.mask)
        elif isinstance(each, BoxPrompt):
            driver.add_box(each.frame, each.obj_id, (each.x0, each.y0, each.x1, each.y1))
        else:
            driver.add_points(each.frame, each.obj_id, each.points, each.labels)


def maps_by_id(ids: Iterable[int], logits: Tensor, size: tuple[int, int]) -> dict[int, npt.NDArray[np.float32]]:
    """Mask logits of a step, [n, 1, h, w], as fp32 arrays [height, width] of the video's size by object id."""
    arrays = resized(logits, size)[:, 0].float().cpu().numpy()
    return {int(obj_id): array for obj_id, array in zip(ids, arrays, strict=True)}


def _tracked(model: Any, video: Video, prompts: Sequence[Prompt], after: int) -> Iterator[TrackedFrame]:
    view, clock = view_of(model), Clock(next(model.parameters()).device)
    prompted = {each.frame for each in prompts}
    frames = LazyFrames(video, view)
    driver = view.drive(frames, video.size)
    marks = sorted({*prompted, after + 1} if after >= min(prompted) else prompted)
    for start, stop in pairwise([*marks, _ENDLESS]):
        if frames.ahead(start) is None:
            break
        _, spent = clock.timed(partial(prompt, driver, [each for each in prompts if each.frame == start]))
        last = stop - 1 if start > after else start
        with closing(driver.steps(start, last)) as steps:
            for index in range(start, last + 1):
                frame = frames.ahead(index)
                if frame is None:
                    break
                (ids, logits), stepping = clock.timed(steps.__next__)
                if index > after:
                    found = maps_by_id(ids, logits, video.size)
                    yield TrackedFrame(index, frame, found, (spent + stepping) / 1000, _record(model, index))
                spent = 0.0
    # Whether a video declares so many frames, or any number, depends on it.
    missed = min((frame for frame in prompted if frame >= frames.reached), default=None)
    if missed is not None:
        raise VideoError(f"{video.name}: ended after {frames.reached} frames, before the prompt on frame {missed}")


def _record(model: Any, frame: int) -> FrameRecord | None:
    surgery = current_surgery(model)
    last = surgery.stats.last if surgery is not None and surgery.stats is not None else None
    return last if last is not None and last.frame == frame else None


class LazyFrames:
    """`frames[i]` -> normalised [3, S, S]; holds one frame, reads on, and starts over when asked for an earlier one.

    Only reading to the end tells how long a file is. A host wants a length to know where a pass ends, which `ahead`
    tells us, and to scale the age of object pointers, where all lengths beyond the reach of its memory are alike.
    """

    def __init__(self, video: Video, view: HostView) -> None:
        self.video, self.side, self.horizon = video, view.image_size(), view.memory_horizon() + 1
        self._like, self._pixels_of = next(view.model.parameters()), view.driver.pixels
        self._reader: Iterator[Frame] | None = None
        self._at = -1
        self._frame: Frame | None = None
        self._pixels: Tensor | None = None

    def __len__(self) -> int:
        if self.video.fps is None and self.video.num_frames is not None:
            return self.video.num_frames
        try:
            count = sum(1 for _ in islice(self.video, self.horizon))
        except VideoError:
            # The frames before the broken one can be tracked; it is told of when its turn comes.
            return _ENDLESS
        return count if count < self.horizon else _ENDLESS

    @property
    def reached(self) -> int:
        """How many frames were read in this pass."""
        return self._at + 1

    def ahead(self, index: int) -> Frame | None:
        """Read frame `index` and make it ready, or None if the video ends before it."""
        if index < self._at or self._reader is None:
            self._reader, self._at = iter(self.video), -1
        while self._at < index:
            self._frame, self._pixels = next(self._reader, None), None
            if self._frame is None:
                return None
            self._at += 1
        if self._pixels is None and self._frame is not None:
            self._pixels = self._pixels_of(self._frame, self.side).to(self._like.device, self._like.dtype)
        return self._frame

    def __getitem__(self, index: int) -> Tensor:
        if self.ahead(int(index)) is None or self._pixels is None:
            raise VideoError(f"{self.video.name}: ended at frame {self._at}, frame {index} was expected")
        return self._pixels

"""A model that tracks video after video."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from itertools import islice

import numpy as np

from surgery.api import status
from surgery.errors import VideoError
from surgery.files import write_whole
from surgery.jobs.alone import Setup, Worker, nothing
from surgery.jobs.folder import NOTE, VideoRow, published
from surgery.jobs.manifest import Task
from surgery.jobs.remote import fetched
from surgery.tracking import TrackedFrame, track
from surgery.tracking_everything import EverythingFrame, track_everything
from surgery.video import Video, VideoWriter, draw_ids, draw_masks, open_video, write_label_png

Asked = tuple[Task, str]
"""A video and its key, of `key_of`."""


class Tracker(Worker[Asked, VideoRow]):
    """Tracks videos and publishes their folders.

    Args:
        folder: the job's. max_frames: tracked at most of a video. overlay: write overlay.mp4.
    """

    def __init__(self, setup: Setup, folder: str, max_frames: int | None, overlay: bool) -> None:
        super().__init__(setup)
        self._folder, self._max_frames, self._overlay = folder, max_frames, overlay

    def run(self, asked: Asked, step: Callable[[], None] = nothing) -> VideoRow:
        """Track one; nothing is left in the folder if that fails.

        Raises:
            SurgeryError: the video or its prompts; and whatever the model raises.
        """
        started = time.perf_counter()
        task, key = asked
        seen: set[int] = set()
        lost: Counter[int] = Counter()
        frames, seconds = 0, 0.0
        with fetched(task.video) as path, published(self._folder, task.name) as part:
            video, masks = open_video(path), part / "masks"
            masks.mkdir()
            overlay = VideoWriter(part / "overlay.mp4", video.fps or 24.0) if self._overlay else nullcontext()
            with overlay as writer:
                for found in islice(self._tracked(task, video), self._max_frames):
                    labels = found.labels
                    write_label_png(masks / f"{video.name_of(found.index)}.png", labels)
                    there = {int(label) for label in np.unique(labels) if label}
                    seen |= there
                    lost.update(seen - there)
                    if writer is not None:
                        writer.write(draw_ids(draw_masks(found.frame, labels), labels))
                    frames, seconds = frames + 1, seconds + found.seconds
                    step()
                if not frames:
                    raise VideoError(f"{video.name}: no frame was tracked")
            state = status(self.model)
            row = VideoRow(
                key=key, name=task.name, video=task.video, size=video.size, frames=frames, objects=len(seen),
                lost=dict(lost), windows_kept=state.windows_kept, keys_kept=state.keys_kept,
                dense_frames=state.dense_frames, seconds=time.perf_counter() - started, model_seconds=seconds,
            )  # fmt: skip
            write_whole(part / NOTE, row.model_dump_json(indent=2) + "\n")
        return row

    def _tracked(self, task: Task, video: Video) -> Iterator[TrackedFrame | EverythingFrame]:
        if task.prompts is None:
            return track_everything(self.model, video)
        return track(self.model, video, task.prompts.read(video))

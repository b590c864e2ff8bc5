"""One model that tracks video after video: in this process, or as the actor of a cluster."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import torch

from surgery import loading
from surgery.api import sparsify, status
from surgery.digests import code_digest, weights_digest
from surgery.errors import VideoError
from surgery.files import write_whole
from surgery.hosts import view_of
from surgery.jobs.folder import NOTE, VideoRow, published
from surgery.jobs.manifest import Task
from surgery.operations import CompileParts
from surgery.recipe import Recipe
from surgery.tracking import track
from surgery.tracking_everything import track_everything
from surgery.video import Video, VideoWriter, draw_ids, draw_masks, labels_from_logits, open_video, write_label_png
from surgery.video.masks import Labels
from surgery.video.rgb import Frame
from surgery.warm import warm_up


@dataclass(frozen=True)
class Setup:
    """What every worker of a job does. model, host, device: as of `load_model`. recipe: None for the stock model.

    max_frames: tracked at most of a video. overlay: write overlay.mp4.
    """

    model: str
    recipe: Recipe | None
    adapter: str | None = None
    host: str | None = None
    device: str | None = None
    max_frames: int | None = None
    overlay: bool = False


class Worker:
    """Loads the model once. `load` comes before `track`; making one costs nothing."""

    def __init__(self, setup: Setup) -> None:
        self.setup = setup
        self._model: Any = None

    def load(self, threads: int | None = None) -> dict[str, Any]:
        """Load the model, operate on it and compile what its recipe compiles.

        Args:
            threads: of PyTorch's operators; None leaves them as they are.

        Returns:
            Digests of the weights and of our code, the host and the kind of device: alike in all workers of a job.
        """
        if threads is not None:
            torch.set_num_threads(threads)
        setup = self.setup
        model = loading.load_model(setup.model, setup.host, setup.device)
        if setup.recipe is not None:
            sparsify(model, setup.recipe, adapter=setup.adapter)
            if setup.recipe.find(CompileParts) is not None:
                warm_up(model)
        self._model = model
        return {
            "weights": weights_digest(model.state_dict()),
            "code": code_digest(),
            "host": view_of(model).name,
            "device": next(model.parameters()).device.type,
            "torch": torch.__version__,
        }

    def track(self, task: Task, key: str, folder: str, step: Callable[[], None] = lambda: None) -> VideoRow:
        """Track a video and publish its folder.

        Args:
            key: of `key_of`. folder: the job's. step: called after every frame.

        Raises:
            SurgeryError: the video or its prompts; whatever the model raises. Nothing is left in the folder then.
        """
        started = time.perf_counter()
        video = open_video(task.video)
        seen: set[int] = set()
        lost: Counter[int] = Counter()
        frames, seconds = 0, 0.0
        with published(Path(folder), task.name) as part:
            masks = part / "masks"
            masks.mkdir()
            with ExitStack() as stack:
                writer: VideoWriter | None = None
                if self.setup.overlay:
                    writer = stack.enter_context(VideoWriter(part / "overlay.mp4", video.fps or 24.0))
                for index, frame, labels, spent in islice(self._labels(task, video), self.setup.max_frames):
                    write_label_png(masks / f"{video.name_of(index)}.png", labels)
                    there = {int(label) for label in np.unique(labels) if label}
                    seen |= there
                    lost.update(seen - there)
                    if writer is not None:
                        writer.write(draw_ids(draw_masks(frame, labels), labels))
                    frames, seconds = frames + 1, seconds + spent
                    step()
                if not frames:
                    raise VideoError(f"{video.name}: no frame was tracked")
            state = status(self._model)
            row = VideoRow(
                key=key, name=task.name, video=str(task.video), size=video.size, frames=frames, objects=len(seen),
                lost=dict(lost), windows_kept=state.windows_kept, keys_kept=state.keys_kept,
                dense_frames=state.dense_frames, seconds=time.perf_counter() - started, model_seconds=seconds,
            )  # fmt: skip
            write_whole(part / NOTE, row.model_dump_json(indent=2) + "\n")
        return row

    def _labels(self, task: Task, video: Video) -> Iterator[tuple[int, Frame, Labels, float]]:
        if task.prompts is None:
            for found in track_everything(self._model, video):
                yield found.index, found.frame, found.labels, found.seconds
            return
        for result in track(self._model, video, task.prompts.read(video)):
            yield result.index, result.frame, labels_from_logits(result.logits), result.seconds

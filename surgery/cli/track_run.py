"""One run of `surgery track`: what is left is tracked and written as it comes, and summary.json says what was done."""

from __future__ import annotations

import hashlib
import statistics
import time
from contextlib import ExitStack
from itertools import islice
from typing import Any

import numpy as np
import torch

from surgery import __version__
from surgery.api import status
from surgery.cli.run_folder import RunFolder
from surgery.cli.stops import held
from surgery.errors import VideoError
from surgery.hosts import view_of
from surgery.progress import Bars
from surgery.tracking import TrackedFrame, track, windows_drawn
from surgery.video import Video, VideoWriter, write_label_png
from surgery.video.masks import Labels
from surgery.video.overlay import draw_ids, draw_masks, with_legend
from surgery.video.prompts import BoxPrompt, MaskPrompt, Prompt, continued
from surgery.video.source import Frame


class TrackRun:
    """Tracks what is left of a video.

    Args:
        prompts: as given. started: `time.perf_counter()` of the command. asked: what the summary says of the command.

    Attributes:
        summary: as last written, or as found where nothing was left to track.

    Raises:
        VideoError: the run to go on with was started with another command.
    """

    def __init__(
        self, place: RunFolder, model: Any, video: Video, prompts: list[Prompt], started: float, asked: dict[str, str]
    ) -> None:
        self.place, self.model, self.video, self.started = place, model, video, started
        self.summary: dict[str, Any] = {}
        self.rows: list[dict[str, Any]] = []
        self.ids = sorted({prompt.obj_id for prompt in prompts})
        state = status(model)
        self.head = {
            "surgery": __version__,
            **asked,
            "host": view_of(model).name,
            "device": str(next(model.parameters()).device),
            "torch": torch.__version__,
            "size": list(video.size),
            "recipe": state.recipe.to_dict() if state.recipe is not None else None,
            "adapter": state.adapter,
            "prompts": [_described(prompt, video.name_of(prompt.frame)) for prompt in prompts],
        }
        place.check_same(self.head)
        self.prompts = continued(prompts, place.after, place.read) if place.resumed else prompts
        self.run = {
            "after": video.name_of(place.after) if place.resumed else None,
            "masks_as_prompts": [
                {"frame": video.name_of(prompt.frame), "object": prompt.obj_id}
                for prompt in self.prompts
                if prompt not in prompts
            ],
        }

    def track(self, bars: Bars, max_frames: int | None, fps: float | None, show_windows: bool) -> None:
        """Track, write, and say what was written if that is cut short.

        Args:
            fps: of the overlay; None for none.

        Raises:
            VideoError: a frame that cannot be read, or none was tracked.
        """
        place = self.place
        # What a file declares may be less than it holds; only the caller's limit cuts it short.
        limit = None if max_frames is None else max(place.first + max_frames - place.after - 1, 0)
        declared = None if self.video.num_frames is None else max(self.video.num_frames - place.after - 1, 0)
        left = min((count for count in (limit, declared) if count is not None), default=None)
        if place.resumed and left != 0:
            bars.say(
                f"going on after frame {self.run['after']} from its masks and the first prompts; "
                "what the model remembered of other frames is lost"
            )
        results = iter(()) if left == 0 else track(self.model, self.video, self.prompts, place.after)
        cause: BaseException | None = None
        with ExitStack() as stack:
            writer: VideoWriter | None = None
            try:
                with bars.stage(f"tracking {self.video.name}", left) as step:
                    for result in islice(results, limit):
                        if not self.rows:
                            place.begin(fps is not None)
                            self._summarise(complete=False)
                            if fps is not None:
                                writer = stack.enter_context(VideoWriter(place.overlay, fps))
                                self._redraw(bars, writer, show_windows)
                        with held():
                            self._write(result, writer, show_windows)
                        step()
            except BaseException as error:
                if not self.rows:
                    bars.say("no new mask was written")
                    raise
                # What is there is finished first; then the error goes on its way.
                cause = error
            if writer is not None:
                with bars.stage("finishing overlay.mp4"):
                    stack.close()
        if self.rows:
            self._summarise(cause is None, None if cause is None else str(cause) or type(cause).__name__)
        elif place.before is None:
            raise VideoError(f"{self.video.name}: no frame was tracked")
        else:
            bars.say("nothing left to track")
            self.summary = place.before
        if cause is not None:
            bars.say(self.written())
            bars.say("the same command goes on with --resume, and starts over with --overwrite")
            raise cause

    def written(self) -> str:
        """What lies where."""
        files = [path.name for path in (self.place.overlay, self.place.note) if path.exists()]
        return f"{self.summary['frames']} masks in {self.place.masks}, beside {' and '.join(files)}"

    def _write(self, result: TrackedFrame, writer: VideoWriter | None, show_windows: bool) -> None:
        labels, record = result.labels, result.record
        write_label_png(self.place.mask(result.index), labels)
        self.rows.append(
            {
                "frame": result.index,
                "name": self.video.name_of(result.index),
                "ms": round(1000 * result.seconds, 3),
                "windows": None if record is None else len(record.windows),
                "dense": None if record is None else record.dense,
                "area": {str(obj_id): int(np.count_nonzero(labels == obj_id)) for obj_id in result.logits},
            }
        )
        if writer is not None:
            frame = windows_drawn(result.frame, record) if show_windows and record is not None else result.frame
            self._draw(writer, frame, labels, show_windows)

    def _redraw(self, bars: Bars, writer: VideoWriter, show_windows: bool) -> None:
        """The overlay of a run that goes on starts with what was tracked before; its windows are not known any more."""
        first, stop = self.place.first, self.place.after + 1
        if not self.place.resumed:
            return
        with bars.stage("drawing what was tracked before", stop - first) as step:
            for index, frame in islice(enumerate(self.video), first, stop):
                self._draw(writer, frame, self.place.read(index), show_windows)
                step()

    def _draw(self, writer: VideoWriter, frame: Frame, labels: Labels, show_windows: bool) -> None:
        note = "objects; outlined: out of sight" + "; dark: windows not computed" * show_windows
        shown = {obj_id for obj_id in self.ids if (labels == obj_id).any()}
        writer.write(with_legend(draw_ids(draw_masks(frame, labels), labels), self.ids, shown, note))

    def _summarise(self, complete: bool, stopped: str | None = None) -> None:
        """Write summary.json.

        `seconds` and `frames_per_second` are end to end, over all runs; `ms_per_frame` is the model alone;
        `windows_kept`, `keys_kept` and `dense_frames` are of the last run. `per_frame` has all frames that a run has
        told of; one that was killed could not.
        """
        place, state = self.place, status(self.model)
        before = (place.before or {}) if place.resumed else {}
        run = {**self.run, "frames": len(self.rows), "seconds": time.perf_counter() - self.started, "stopped": stopped}
        runs = [*before.get("runs", []), run]
        rows = [row for row in before.get("per_frame", []) if row["frame"] <= place.after] + self.rows
        times = [row["ms"] for row in rows]
        seconds = sum(run["seconds"] for run in runs)
        self.summary = {
            **self.head,
            "complete": complete,
            "frames": place.after + 1 - place.first + len(self.rows),
            "seconds": seconds,
            "frames_per_second": sum(run["frames"] for run in runs) / seconds,
            "ms_per_frame": {"median": statistics.median(times), "mean": statistics.fmean(times), "max": max(times)}
            if times
            else None,
            "windows_kept": state.windows_kept,
            "keys_kept": state.keys_kept,
            "dense_frames": state.dense_frames,
            "runs": runs,
            "per_frame": rows,
        }
        place.write_summary(self.summary)


def _described(prompt: Prompt, frame: str) -> dict[str, Any]:
    target = {"frame": frame, "object": prompt.obj_id}
    if isinstance(prompt, MaskPrompt):
        return {**target, "mask": f"sha256:{hashlib.sha256(np.packbits(prompt.mask).tobytes()).hexdigest()}"}
    if isinstance(prompt, BoxPrompt):
        return {**target, "box": [prompt.x0, prompt.y0, prompt.x1, prompt.y1]}
    return {**target, "points": [[*point, label] for point, label in zip(prompt.points, prompt.labels, strict=True)]}

"""`surgery.jobs.track`: many videos, in one process or on a Ray cluster, of which none is lost."""

from __future__ import annotations

import os
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from functools import partial
from heapq import nlargest
from pathlib import Path
from typing import Any

from pydantic import BaseModel

from surgery import __version__
from surgery.adapters import open_adapter
from surgery.api import DEFAULT_RECIPE
from surgery.errors import JobError
from surgery.jobs.alone import Alone, Outcome, Setup, told
from surgery.jobs.folder import JobFolder, VideoRow, key_of
from surgery.jobs.manifest import Line, Prompts, Source, Task, gather, located
from surgery.jobs.pool import Pool, PoolSettings
from surgery.jobs.worker import Asked, Tracker
from surgery.operations import SegmentEverything
from surgery.progress import Bars, progress_bar
from surgery.recipe import Recipe

_WORST = 10
Engine = Alone[Asked, VideoRow] | Pool[Asked, VideoRow]


class Failure(BaseModel):
    """A video that was not tracked. tries: how often it was begun."""

    name: str
    video: str
    error: str
    tries: int


class Slow(BaseModel):
    """One of the slowest videos. seconds: end to end."""

    name: str
    frames: int
    seconds: float


class Lost(BaseModel):
    """A video whose objects were out of sight. frames: on how many, summed over its objects."""

    name: str
    objects: int
    frames: int


class JobSummary(BaseModel):
    """What a job did, as summary.json has it.

    Attributes:
        workers: models that tracked at once. complete: the job came to its end; failures may be among the videos.
            stopped: what ended it else. videos: "asked", "done" in this run, "skipped" as done before, "failed".
            frames, seconds, frames_per_second: of this run, loading left out; per_worker: of one of its models.
            frames_there: of all videos that are done, before this run as well; of these too: dense_frames, computed
            whole, by the reason; slowest, most_lost: up to ten videos each.
    """

    surgery: str = __version__
    model: str
    recipe: dict[str, Any] | None
    adapter: str | None
    host: str | None = None
    device: str | None = None
    workers: int
    complete: bool = False
    stopped: str | None = None
    videos: dict[str, int]
    frames: int = 0
    seconds: float = 0.0
    frames_per_second: float = 0.0
    per_worker: float = 0.0
    frames_there: int = 0
    dense_frames: Counter[str] = Counter()
    slowest: list[Slow] = []
    most_lost: list[Lost] = []
    failed: list[Failure] = []

    def note(self, row: VideoRow) -> None:
        """A video is done, in this run or before."""
        self.frames_there += row.frames
        self.dense_frames.update(row.dense_frames or {})
        # The greatest few, so that what a job remembers does not grow with its videos.
        slow = Slow(name=row.name, frames=row.frames, seconds=row.seconds)
        self.slowest = nlargest(_WORST, [*self.slowest, slow], key=lambda one: one.seconds)
        lost = [Lost(name=row.name, objects=len(row.lost), frames=sum(row.lost.values()))] if row.lost else []
        self.most_lost = nlargest(_WORST, [*self.most_lost, *lost], key=lambda one: one.frames)


def track(
    manifest: Source | Sequence[Source], *, model: str, out: str | os.PathLike[str],
    recipe: str | Path | Recipe | None = None, adapter: str | Path | None = None, prompts: Prompts | None = None,
    host: str | None = None, device: str | None = None, resume: bool = False, overwrite: bool = False,
    max_frames: int | None = None, overlay: bool = False, ray: str | None = None, actors: int | None = None,
    threads: int | None = None, tries: int = 3, progress: bool = True,
) -> JobSummary:  # fmt: skip
    """Track many videos. Every one that is done has OUT/NAME/masks/*.png and OUT/NAME/video.json.

    A video's folder appears whole or not at all. A video that fails is listed and stops nothing.

    Args:
        manifest: a `.jsonl` manifest, a folder of videos, a pattern, a video, a `Line`, or several of these. Videos and
            patterns may be addresses that fsspec reads.
        model: by name, see `surgery.loading.load_model`. host, device: likewise.
        out: the job's folder, or an address that fsspec writes to.
        recipe: name, path or `Recipe`; "none" is the stock model; default the adapter's, else "balanced".
        prompts: of the videos that have none of their own. Without any, a recipe with segment_everything finds all.
        resume: leave out videos that are done with the same input, prompts, model, recipe and settings.
        overwrite: track all again in a folder that holds a job.
        max_frames: tracked at most of a video. overlay: write OUT/NAME/overlay.mp4.
        ray: None tracks in this process; "local" on this machine's GPUs or cores, an address on a Ray cluster, whose
            machines have `out`, the videos and the model at the same paths. actors, threads, tries: see
            `surgery.jobs.pool.PoolSettings`; with `ray` only.
        progress: show how far it is, on stderr.

    Returns:
        The summary, which is also OUT/summary.json.

    Raises:
        ManifestError: all that is wrong with the videos asked for, before anything runs.
        JobError: the folder or the cluster cannot be used.
        MissingLibraryError: `ray` without Ray.
        SurgeryError: the model, recipe or adapter, as of `load_model` and `sparsify`.
    """
    sources = [manifest] if isinstance(manifest, (str, os.PathLike, Line)) else list(manifest)
    if recipe == "none" and adapter is not None:
        raise JobError("recipe 'none' is the stock model, expected no adapter with it")
    default = open_adapter(adapter).recipe if adapter is not None and recipe is None else DEFAULT_RECIPE
    chosen = None if recipe == "none" else Recipe.load(default if recipe is None else recipe)
    setup = Setup(model, chosen, None if adapter is None else str(adapter), host, device)
    place = JobFolder(located(out), resume, overwrite)
    with progress_bar(progress) as bars, place.held:
        finds_all = chosen is not None and chosen.find(SegmentEverything) is not None
        tasks = gather(sources, prompts, finds_all, lambda done, total: bars("looking at videos", done, total))
        place.begin()
        pool = None if ray is None else PoolSettings(ray, actors, threads, tries)
        return _Run(place, setup, tasks, bars, pool, max_frames, overlay).track()


class _Run:
    def __init__(
        self, place: JobFolder, setup: Setup, tasks: list[Task], bars: Bars, pool: PoolSettings | None,
        max_frames: int | None, overlay: bool,
    ) -> None:  # fmt: skip
        self.place, self.tasks, self.bars, self.max_frames, self.overlay = place, tasks, bars, max_frames, overlay
        how = place.place, max_frames, overlay
        self.engine: Engine = (
            Alone(Tracker(setup, *how), partial(self._show, 1)) if pool is None else Pool(pool, Tracker, setup, *how)
        )
        self.summary = JobSummary(
            model=setup.model, recipe=setup.recipe.to_dict() if setup.recipe is not None else None,
            adapter=setup.adapter, workers=self.engine.size,
            videos={"asked": len(tasks), "done": 0, "skipped": 0, "failed": 0},
        )  # fmt: skip
        self.left = sum(map(self._frames, tasks))
        self.started = time.perf_counter()
        self.shown = 0

    def track(self) -> JobSummary:
        try:
            with self.engine:
                self.summary.workers = self.engine.size
                self._write()
                with self.bars.stage(f"loading {self.summary.model}"):
                    made_by = self.engine.load()
                self.summary.host, self.summary.device = made_by["host"], made_by["device"]
                self.started = time.perf_counter()
                how = {"recipe": self.summary.recipe, "max_frames": self.max_frames, "overlay": self.overlay}
                for outcome in self.engine.outcomes(self._todo({**made_by, **how})):
                    self._count(outcome)
            self.summary.complete = True
        except BaseException as error:
            self.summary.stopped = told(error)
            raise
        finally:
            self.place.clear()
            self._write()
        return self.summary

    def _todo(self, made_by: dict[str, Any]) -> Iterator[Asked]:
        for task in self.tasks:
            try:
                key = key_of(task, made_by)
            except OSError as error:
                self._count(Outcome((task, ""), error, 0))
                continue
            row = self.place.done(task, key)
            if row is None:
                yield task, key
                continue
            self.summary.videos["skipped"] += 1
            self.summary.note(row)
            self.left -= self._frames(task)

    def _count(self, outcome: Outcome[Asked, VideoRow]) -> None:
        (task, _), row, summary = outcome.asked, outcome.result, self.summary
        if isinstance(row, Exception):
            summary.videos["failed"] += 1
            summary.failed.append(Failure(name=task.name, video=task.video, error=told(row), tries=outcome.tries))
            self.bars.say(f"{task.name}: not tracked: {told(row)}")
        else:
            summary.videos["done"] += 1
            summary.frames += row.frames
            summary.note(row)
        self._show()

    def _frames(self, task: Task) -> int:
        return min(task.frames, self.max_frames or task.frames)

    def _show(self, frames: int = 0) -> None:
        """frames: tracked since the last call, as far as they are not in the summary."""
        self.shown = max(self.shown + frames, self.summary.frames)
        videos, spent = self.summary.videos, max(time.perf_counter() - self.started, 1e-9)
        speed = self.shown / spent
        ended = videos["done"] + videos["skipped"] + videos["failed"]
        each = f", {speed / self.engine.size:.1f} a worker" if self.engine.size > 1 else ""
        text = f"{ended}/{videos['asked']} videos, {videos['failed']} failed, {speed:.1f} frames/s{each}"
        self.bars("tracking", self.shown, max(self.left, self.shown), text)

    def _write(self) -> None:
        summary = self.summary
        summary.seconds = time.perf_counter() - self.started
        summary.frames_per_second = summary.frames / summary.seconds
        summary.per_worker = summary.frames_per_second / summary.workers
        self.place.write(summary)

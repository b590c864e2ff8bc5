"""What a job writes: a folder for every video that is done, there whole or not at all, and a summary."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, ValidationError

from surgery.errors import JobError
from surgery.files import hold, write_whole
from surgery.jobs.manifest import Task
from surgery.validation import read_as
from surgery.video.prompt_text import mask_path

NOTE = "video.json"
SUMMARY = "summary.json"


class VideoRow(BaseModel):
    """What was done with one video, as its video.json has it.

    Attributes:
        key: digest of all that its masks follow from. frames: tracked. lost: of objects that were out of sight, on how
            many frames. dense_frames: computed whole, by the reason; None for stock models. seconds: end to end.
            model_seconds: of these, of the model.
    """

    model_config = ConfigDict(frozen=True)
    key: str
    name: str
    video: str
    size: tuple[int, int]
    frames: int
    objects: int
    lost: dict[int, int]
    windows_kept: float | None
    keys_kept: float | None
    dense_frames: dict[str, int] | None
    seconds: float
    model_seconds: float


class _PastJob(BaseModel):
    """What marks summary.json as that of a job."""

    videos: dict[str, int]


class JobFolder:
    """The folder of one job, held for this process. Nothing is written before `begin`.

    Args:
        resume: videos that are done under the same key stay. overwrite: all are tracked again.

    Raises:
        JobError: not empty and neither is asked for, something else than a job in it, or no permission.
    """

    def __init__(self, path: Path, resume: bool, overwrite: bool) -> None:
        self.path, self.resume = path, resume
        self._lock: int | None = None
        if path.is_dir() and any(path.iterdir()):
            if not (resume or overwrite):
                raise JobError(
                    f"{path}: not empty; --resume goes on with the job in it, --overwrite tracks all videos again, or "
                    "choose a new folder"
                )
            try:
                read_as(path / SUMMARY, _PastJob, JobError)
            except JobError as error:
                raise JobError(f"{path}: holds no job of many videos; choose a new folder ({error})") from error

    def begin(self) -> None:
        """Make the folder and hold it for this process."""
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            self._lock = os.open(self.path, os.O_RDONLY)
        except OSError as error:
            raise JobError(
                f"{self.path}: cannot be written ({error.strerror}), expected a folder to write to"
            ) from error
        hold(self._lock, JobError(f"{self.path}: another job is writing there, expected none: wait for it"))
        self.clear()

    def end(self) -> None:
        """Let others write here."""
        if self._lock is not None:
            os.close(self._lock)
            self._lock = None

    def clear(self) -> None:
        """Remove what processes that were killed left behind. Nobody else may be writing."""
        for left in self.path.glob(".*.part"):
            shutil.rmtree(left, ignore_errors=True) if left.is_dir() else left.unlink(missing_ok=True)

    def done(self, task: Task, key: str) -> bool:
        """Whether this run need not track a video."""
        if not self.resume:
            return False
        try:
            return VideoRow.model_validate_json((self.path / task.name / NOTE).read_bytes()).key == key
        except (OSError, ValidationError):
            return False

    def write_summary(self, summary: BaseModel) -> None:
        """Write summary.json."""
        try:
            write_whole(self.path / SUMMARY, summary.model_dump_json(indent=2) + "\n")
        except OSError as error:
            raise JobError(
                f"{self.path / SUMMARY}: cannot be written ({error}), expected room and permission"
            ) from error


@contextmanager
def published(folder: Path, name: str) -> Iterator[Path]:
    """Yield a new folder to write to; it becomes `folder/name` when the block ends, and is removed if it fails.

    Whatever ends the process or the machine, `folder/name` is what it was before, gone, or whole.
    """
    part = folder / f".{name}.{uuid.uuid4().hex[:12]}.part"
    old = part.with_suffix(".old.part")
    final = folder / name
    try:
        part.mkdir()
        yield part
        for place, _, files in os.walk(part):
            for path in (place, *(os.path.join(place, file) for file in files)):
                _sync(path)
        if final.exists():
            os.rename(final, old)
        os.rename(part, final)
        _sync(folder)
    finally:
        shutil.rmtree(part, ignore_errors=True)
        shutil.rmtree(old, ignore_errors=True)


def key_of(task: Task, made_by: dict[str, Any]) -> str:
    """`"sha256:..."` over what the masks of a video follow from: its files (names, sizes, times of change), its
    prompts with the bytes of masks, and what tracks it.

    Args:
        made_by: of the model, the recipe and the settings.

    Raises:
        OSError: a file is not there any more.
    """
    video = task.video
    files = sorted(each for each in video.iterdir() if each.is_file()) if video.is_dir() else [video]
    stats = [(each.name, each.stat()) for each in files]
    masks = [mask_path(text) for text in task.prompts.masks] if task.prompts is not None else []
    told = {
        **made_by,
        "video": [str(video), *([name, stat.st_size, stat.st_mtime_ns] for name, stat in stats)],
        "prompts": None if task.prompts is None else task.prompts.model_dump(),
        "masks": [hashlib.sha256(Path(mask).read_bytes()).hexdigest() for mask in masks],
    }
    return f"sha256:{hashlib.sha256(json.dumps(told, sort_keys=True).encode()).hexdigest()}"


def _sync(path: str | Path) -> None:
    opened = os.open(path, os.O_RDONLY)
    try:
        os.fsync(opened)
    finally:
        os.close(opened)

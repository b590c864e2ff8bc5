"""What a job writes: a folder for every video that is done, there whole or not at all, and a summary."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import tempfile
import uuid
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, ValidationError

from surgery.errors import JobError
from surgery.files import held, write_whole
from surgery.jobs.manifest import Task
from surgery.jobs.remote import is_url, matches, read, stamp, upload, write
from surgery.report.job import write_job
from surgery.video.prompt_text import mask_path

NOTE = "video.json"
SUMMARY, REPORT = "summary.json", "report.html"


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
    """The folder of one job. Nothing is written before `begin`.

    Args:
        place: path or address. resume: videos that are done under the same key stay. overwrite: all are tracked again.

    Attributes:
        held: closed to let others write here, who may not from `begin` on where the folder is on a disk.

    Raises:
        JobError: not empty and neither is asked for, something else than a job in it, or no permission.
    """

    def __init__(self, place: str, resume: bool, overwrite: bool) -> None:
        self.place, self.resume = place, resume
        self._path = None if is_url(place) else Path(place)
        self.held = ExitStack()
        path = self._path
        if matches(f"{place}/*") if path is None else path.is_dir() and any(path.iterdir()):
            if not (resume or overwrite):
                raise JobError(
                    f"{place}: not empty; --resume goes on with the job in it, --overwrite tracks all videos again, or "
                    "choose a new folder"
                )
            try:
                _PastJob.model_validate_json(self._read(SUMMARY))
            except ValidationError as error:
                raise JobError(f"{place}: holds no job of many videos; choose a new folder") from error

    def begin(self) -> None:
        """Make the folder and hold it for this process."""
        if self._path is not None:
            self.held.enter_context(held(self._path, JobError))
            self.clear()

    def clear(self) -> None:
        """Remove what processes that were killed left behind. Nobody else may be writing."""
        for left in self._path.glob(".*.part") if self._path is not None else ():
            shutil.rmtree(left, ignore_errors=True) if left.is_dir() else left.unlink(missing_ok=True)

    def done(self, task: Task, key: str) -> VideoRow | None:
        """What an earlier run says of a video that this one need not track."""
        if self.resume:
            with suppress(ValidationError):
                row = VideoRow.model_validate_json(self._read(f"{task.name}/{NOTE}"))
                return row if row.key == key else None
        return None

    def write(self, summary: BaseModel) -> None:
        """Write report.html and summary.json."""
        try:
            with tempfile.TemporaryDirectory() as folder:
                path = self._path or Path(folder)
                write_job(path / REPORT, summary.model_dump(mode="json"))
                write_whole(path / SUMMARY, summary.model_dump_json(indent=2) + "\n")
                for name in (REPORT, SUMMARY) if self._path is None else ():
                    write(f"{self.place}/{name}", (path / name).read_bytes())
        except OSError as error:
            raise JobError(f"{self.place}: cannot be written ({error}), expected room and permission") from error

    def _read(self, name: str) -> bytes:
        """Nothing of a file that is not there."""
        if self._path is None:
            return read(f"{self.place}/{name}") or b""
        try:
            return (self._path / name).read_bytes()
        except OSError:
            return b""


@contextmanager
def published(place: str, name: str) -> Iterator[Path]:
    """Yield a new folder to write to; it becomes `place/name` when the block ends, and is removed if it fails.

    Whatever ends the process or the machine, `place/name` is what it was before, gone, or whole; at an address a folder
    without video.json counts as gone.
    """
    if is_url(place):
        with tempfile.TemporaryDirectory(prefix="surgery-") as copy:
            yield Path(copy)
            upload(Path(copy), f"{place}/{name}", last=NOTE)
        return
    folder = Path(place)
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
    masks = [mask_path(text) for text in task.prompts.masks] if task.prompts is not None else []
    told = {
        **made_by,
        "video": [task.video, stamp(task.video) if is_url(task.video) else _stats(Path(task.video))],
        "prompts": None if task.prompts is None else task.prompts.model_dump(),
        "masks": [hashlib.sha256(Path(mask).read_bytes()).hexdigest() for mask in masks],
    }
    return f"sha256:{hashlib.sha256(json.dumps(told, sort_keys=True).encode()).hexdigest()}"


def _stats(video: Path) -> list[tuple[str, int, int]]:
    files = sorted(each for each in video.iterdir() if each.is_file()) if video.is_dir() else [video]
    return [(each.name, each.stat().st_size, each.stat().st_mtime_ns) for each in files]


def _sync(path: str | Path) -> None:
    opened = os.open(path, os.O_RDONLY)
    try:
        os.fsync(opened)
    finally:
        os.close(opened)

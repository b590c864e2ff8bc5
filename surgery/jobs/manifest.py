"""Which videos a job tracks, and what in them: every fault of a list is found before anything runs."""

from __future__ import annotations

import glob
import os
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from surgery.errors import JobError, ManifestError, PromptError, VideoError, about
from surgery.jobs.remote import is_url, matches, opened
from surgery.validation import explain
from surgery.video import Prompt, Video, check, merge_points, open_video, parse_box, parse_mask, parse_point
from surgery.video.folder import KINDS

SUFFIXES = {".avi", ".m4v", ".mkv", ".mov", ".mp4", ".mpeg", ".mpg", ".webm"}
"""What is a video among the files of a folder; a file that is named itself may be called anything."""
_READERS = 8
"""Threads that look at videos: libraries that read them leave Python to the others."""


class Prompts(BaseModel):
    """What to follow in a video, written as on the command line."""

    model_config = ConfigDict(extra="forbid", frozen=True)
    boxes: tuple[str, ...] = Field((), description="x0,y0,x1,y1[@frame][#id]")
    points: tuple[str, ...] = Field((), description="x,y[,label][@frame][#id]")
    masks: tuple[str, ...] = Field((), description="PNG[@frame]; one object per value")

    def __bool__(self) -> bool:
        return bool(self.boxes or self.points or self.masks)

    def read(self, video: Video) -> list[Prompt]:
        """The prompts, checked against the video. Raises PromptError."""
        prompts: list[Prompt] = [prompt for text in self.masks for prompt in parse_mask(text, video.names)]
        prompts += [parse_box(text, video.names) for text in self.boxes]
        prompts += merge_points(parse_point(text, video.names) for text in self.points)
        check(prompts, video.size, video.num_frames)
        return prompts


class Line(BaseModel):
    """One line of a manifest. Paths are relative to the manifest's folder; addresses are taken as they are."""

    model_config = ConfigDict(extra="forbid", frozen=True)
    video: str = Field(min_length=1, description="video file or folder of pictures")
    prompts: Prompts | Literal["everything"] | None = Field(None, description="what to follow; default: the job's")
    name: str | None = Field(None, description="of the folder its masks are written to; default: the video's")


@dataclass(frozen=True)
class Task:
    """One video to track.

    Attributes:
        video: a path from the root, or an address. prompts: None tracks everything. where: the line, as errors call
            it. frames: how many, as far as its file tells; 0 where it does not, or was not opened.
    """

    name: str
    video: str
    prompts: Prompts | None
    where: str
    frames: int = 0


Source = str | os.PathLike[str] | Line


def are_many(source: str | os.PathLike[str]) -> bool:
    """Whether this is a manifest, a pattern, an address or a folder of videos, and not one video."""
    if is_url(source) or Path(source).suffix == ".jsonl":
        return True
    return [line.video for _, line in _lines([source], [])] != [str(source)]


def gather(
    sources: Sequence[Source], prompts: Prompts | None, everything: bool, step: Callable[[int, int], None]
) -> list[Task]:
    """The videos of manifests (`.jsonl`), folders, patterns, paths and lines, longest first.

    A video that is there and cannot be read is no fault of the list: it is found out when it is tracked.

    Args:
        prompts: of videos that have none of their own. everything: the recipe can find everything by itself; then
            videos without prompts are asked for that.
        step: called with (done, total) while the videos are looked at.

    Raises:
        ManifestError: all that is wrong, a line each: a file that is missing, a line that is not JSON or does not
            fit, two videos of one name, prompts outside of the frame.
    """
    problems: list[str] = []
    tasks: list[Task] = []
    for where, line in _lines(sources, problems):
        found = line.prompts if line.prompts is not None else prompts
        name = line.name if line.name is not None else _name(line.video)
        if not name or name != Path(name).name or name.startswith(".") or name in ("summary.json", "report.html"):
            problems.append(
                f"{where}: the name {name!r}, expected one that a folder can have and that has no dot first"
            )
        elif not is_url(line.video) and not os.path.exists(line.video):
            problems.append(f"{where}: no such file or folder: {line.video}")
        elif not found and not everything:
            problems.append(f"{where}: no prompt, expected boxes, points or masks, or a recipe with segment_everything")
        elif found == "everything" and not everything:
            problems.append(f"{where}: the prompt is everything, and the recipe has no segment_everything")
        else:
            asked = found if isinstance(found, Prompts) and found else None
            tasks.append(Task(name, located(line.video), asked, where))
    first: dict[str, Task] = {}
    for task in tasks:
        other = first.setdefault(task.name, task)
        if other is not task:
            problems.append(f"{task.where}: the name {task.name!r} is also that of {other.where}, expected one each")
    seen: list[Task] = []
    with ThreadPoolExecutor(_READERS) as readers:
        for done, result in enumerate(readers.map(_looked_at, tasks), start=1):
            problems.append(result) if isinstance(result, str) else seen.append(result)
            step(done, len(tasks))
    if problems:
        raise ManifestError("\n".join([f"{len(problems)} of the videos asked for cannot be tracked:", *problems]))
    if not seen:
        raise ManifestError("no video to track, expected at least one")
    return sorted(seen, key=lambda task: -task.frames)


def _looked_at(task: Task) -> Task | str:
    """The task with its length, or what is wrong with it. What lies elsewhere is not fetched for that."""
    try:
        if is_url(task.video):
            system, path = opened(task.video)
            return task if system.exists(path) else f"{task.where}: no such file or folder: {task.video}"
        video = open_video(task.video)
        if task.prompts is not None:
            task.prompts.read(video)
        return replace(task, frames=video.num_frames or 0)
    except (PromptError, JobError) as error:
        return f"{task.where}: {about(task.name, error)}"
    except (VideoError, OSError):
        return task


def _lines(sources: Sequence[Source], problems: list[str]) -> Iterator[tuple[str, Line]]:
    for number, source in enumerate(sources, start=1):
        if isinstance(source, Line):
            yield f"line {number}", source
            continue
        path = Path(source)
        if path.suffix == ".jsonl":
            yield from _manifest(path, problems)
        elif path.is_dir() and not _is_frames(path):
            found = _videos_in(path)
            yield from ((str(each), Line(video=str(each))) for each in found)
            if not found:
                problems.append(f"{path}: no videos and no pictures in this folder")
        elif not path.exists() and glob.has_magic(text := str(source)):
            names = matches(text) if is_url(text) else sorted(glob.glob(text, recursive=True))
            yield from ((each, Line(video=each)) for each in names)
            if not names:
                problems.append(f"{text}: nothing is called so")
        else:
            yield str(source), Line(video=str(source))


def _manifest(path: Path, problems: list[str]) -> Iterator[tuple[str, Line]]:
    try:
        with path.open(encoding="utf-8") as file:
            for number, text in enumerate(file, start=1):
                where = f"{path}:{number}"
                if not text.strip():
                    continue
                try:
                    line = Line.model_validate_json(text)
                except ValidationError as error:
                    problems.append(f"{where}: {explain(error, Line)}")
                    continue
                yield where, _placed(line, path.parent)
    except (OSError, UnicodeDecodeError) as error:
        problems.append(f"{path}: cannot be read ({error})")


def _placed(line: Line, folder: Path) -> Line:
    prompts = line.prompts
    if isinstance(prompts, Prompts):
        prompts = prompts.model_copy(update={"masks": tuple(str(folder / text) for text in prompts.masks)})
    video = line.video if is_url(line.video) else str(folder / line.video)
    return line.model_copy(update={"video": video, "prompts": prompts})


def _is_frames(folder: Path) -> bool:
    with os.scandir(folder) as entries:
        return any(Path(entry.name).suffix.lower() in KINDS and entry.is_file() for entry in entries)


def _videos_in(folder: Path) -> list[Path]:
    """Its video files, and its folders of pictures."""
    return sorted(
        each
        for each in folder.iterdir()
        if not each.name.startswith(".") and (_is_frames(each) if each.is_dir() else each.suffix.lower() in SUFFIXES)
    )


def located(place: str | os.PathLike[str]) -> str:
    """An address as it is, and a path from the root."""
    return str(place) if is_url(place) else os.path.abspath(place)


def _name(video: str) -> str:
    path = Path(os.path.abspath(video))
    is_folder = path.suffix.lower() not in SUFFIXES if is_url(video) else path.is_dir()
    return path.name if is_folder else path.stem

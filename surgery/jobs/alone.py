"""The videos of a job in this process, one after the other."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from surgery.jobs.folder import VideoRow
from surgery.jobs.manifest import Task
from surgery.jobs.worker import Setup, Worker


@dataclass(frozen=True)
class Outcome:
    """What became of a video: `row`, or the error. tries: how often it was begun."""

    task: Task
    row: VideoRow | None
    error: str | None = None
    tries: int = 1


Asked = tuple[Task, str]
"""A video and its key."""


def told(error: BaseException) -> str:
    """An error as a list of failures has it."""
    return str(error) or type(error).__name__


class Alone:
    """One worker, here. What goes wrong with a video, whatever it is, is its outcome, and the next one comes."""

    size = 1

    def __init__(self, setup: Setup, folder: Path, step: Callable[[], None]) -> None:
        self._worker, self._folder, self._step = Worker(setup), folder, step

    def __enter__(self) -> Alone:
        return self

    def __exit__(self, *_: object) -> None:
        self._worker = Worker(self._worker.setup)

    def load(self) -> dict[str, Any]:
        """See `Worker.load`."""
        return self._worker.load()

    def outcomes(self, asked: Iterator[Asked]) -> Iterator[Outcome]:
        """Track them in turn."""
        for task, key in asked:
            try:
                yield Outcome(task, self._worker.track(task, key, str(self._folder), self._step))
            except Exception as error:
                yield Outcome(task, None, told(error))

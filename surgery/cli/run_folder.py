"""The folder that `surgery track` writes: masks, an overlay and a summary, and whether a run can go on in it."""

from __future__ import annotations

import json
import os
import shutil
import uuid
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from pydantic import BaseModel

from surgery.errors import VideoError
from surgery.files import held, write_whole
from surgery.validation import read_as
from surgery.video.masks import Labels, read_label_png
from surgery.video.source import Video

# A run goes on only with what it was started with; a video may not change its size in between, either.
_SETTINGS = ("video", "size", "model", "host", "recipe", "adapter", "prompts")


class _PastFrame(BaseModel):
    frame: int
    ms: float


class _PastRun(BaseModel):
    frames: int
    seconds: float


class _PastSummary(BaseModel):
    """What resuming reads of summary.json. The first versions wrote no runs."""

    per_frame: list[_PastFrame]
    runs: list[_PastRun] = []


class RunFolder:
    """One run in `path`. Nothing is written, and nothing removed, before `begin`.

    Args:
        video: what is tracked. first: its first prompted frame. resume, overwrite: what to do with a run that is there.

    Attributes:
        after: the frame up to which all masks are there, when resuming; else the one before the first.
        before: the summary of the run to go on with, or None.
        held: closed to let others write here, who may not from `begin` on.

    Raises:
        VideoError: not empty and neither `resume` nor `overwrite`, something else than a run of ours in it, or no
            permission to write.
    """

    def __init__(self, path: Path, video: Video, first: int, resume: bool, overwrite: bool) -> None:
        self.path, self.video, self.first, self.overwrite = path, video, first, overwrite
        self.masks, self.overlay, self.note = path / "masks", path / "overlay.mp4", path / "summary.json"
        self.before: dict[str, Any] | None = None
        self.after = first - 1
        self.held = ExitStack()
        if not path.is_dir() or not any(path.iterdir()):
            return
        if not (resume or overwrite):
            raise VideoError(
                f"{path}: not empty; --resume goes on with the run in it, --overwrite starts it over, or choose a new "
                "folder"
            )
        try:
            found = read_as(self.note, _PastSummary, VideoError)
        except VideoError as error:
            raise VideoError(f"{path}: holds no run of `surgery track`; choose a new folder ({error})") from error
        if resume:
            self.before = found
            count = None if video.names is None else len(video.names)
            while self.after + 1 != count and self.mask(self.after + 1).is_file():
                self.after += 1

    @property
    def resumed(self) -> bool:
        """Whether masks are there to go on from."""
        return self.after >= self.first

    def check_same(self, head: dict[str, Any]) -> None:
        """Raise `VideoError` if the run to go on with was started with another video, model, recipe or prompts."""
        if self.before is None:
            return
        now = json.loads(json.dumps(head))
        for name in _SETTINGS:
            if self.before.get(name) != now[name]:
                shown = [one if isinstance(one, str) else json.dumps(one) for one in (self.before.get(name), now[name])]
                values = f" ({shown[0]}, now {shown[1]})" if sum(map(len, shown)) < 100 else ""
                raise VideoError(
                    f"{self.path}: the run in it differs in its {name}{values}, expected the same command to resume "
                    "it; --overwrite starts it over"
                )

    def begin(self, overlay: bool) -> None:
        """Make the folders, hold them for this process, and remove what will not be true any more.

        Args:
            overlay: whether this run writes one; an old one is removed if not.
        """
        self.held.enter_context(held(self.path, VideoError))
        if self.overwrite and self.masks.exists():
            # In one step: half a set of old masks must never look like one to go on with.
            os.rename(self.masks, self.path / f".{uuid.uuid4().hex[:12]}.part")
        for left in (*self.path.glob(".*.part*"), *self.masks.glob(".*.part")):
            shutil.rmtree(left) if left.is_dir() else left.unlink()
        if self.overwrite or not overlay:
            self.overlay.unlink(missing_ok=True)
        self.masks.mkdir(exist_ok=True)
        kept = {self.mask(index) for index in range(self.first, self.after + 1)}
        for stray in set(self.masks.glob("*.png")) - kept:
            stray.unlink()

    def mask(self, index: int) -> Path:
        """Where the mask of a frame lies: named as the frame is."""
        return self.masks / f"{self.video.name_of(index)}.png"

    def read(self, index: int) -> Labels:
        """The mask of a frame, (height, width) uint8."""
        return read_label_png(self.mask(index))

    def write_summary(self, summary: dict[str, Any]) -> None:
        """Write summary.json."""
        try:
            write_whole(self.note, json.dumps(summary, indent=2) + "\n")
        except OSError as error:
            raise VideoError(f"{self.note}: cannot be written ({error}), expected a writable folder") from error

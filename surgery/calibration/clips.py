"""The clips a calibration runs on: where they come from, what is tracked in them, and which are of no use."""

from __future__ import annotations

import zlib
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from itertools import islice, takewhile
from pathlib import Path

import numpy as np

from surgery.errors import CalibrationError, PromptError, VideoError, about
from surgery.progress import Step
from surgery.video import MaskPrompt, Prompt, Video, check, first_frames, open_video, read_label_png
from surgery.video.folder import KINDS, natural_sort
from surgery.video.masks import Labels

LAYOUTS = (
    "a video file; a folder of .jpg or .png frames; a folder with frames/ and masks/ (one label PNG per frame); a "
    "folder with JPEGImages/NAME/ and Annotations/NAME/, as DAVIS; or a folder of such clips"
)
"""What `gather_clips` takes, in words."""
MIN_FRAMES = 3
"""A clip needs a prompted frame, one that is routed by it, and one whose memory was read before."""


class PackedLabels:
    """Label maps of a clip, compressed: a few kilobytes a frame, whatever the size of the video."""

    def __init__(self, labels: Iterable[Labels]) -> None:
        self._packed: list[bytes] = []
        for each in labels:
            self._shape = each.shape
            self._packed.append(zlib.compress(each.tobytes(), 1))

    def __len__(self) -> int:
        return len(self._packed)

    def __getitem__(self, index: int) -> Labels:
        return np.frombuffer(zlib.decompress(self._packed[index]), dtype=np.uint8).reshape(self._shape)


@dataclass(eq=False)
class CalibrationClip:
    """One clip.

    name: shown in reports. video: its frames. prompts: what to track; none to look for objects on the first frame.
    truth: uint8 [H, W] label maps of every frame, 0 for background and the prompts' object ids, or None.
    """

    name: str
    video: Video
    prompts: tuple[Prompt, ...] = ()
    truth: Sequence[Labels] | PackedLabels | None = None

    @property
    def start(self) -> int:
        """The first prompted frame."""
        return min((prompt.frame for prompt in self.prompts), default=0)

    @property
    def tracked(self) -> int:
        """Frames that are tracked: from the first prompt on."""
        return (self.video.num_frames or 0) - self.start


@dataclass(frozen=True)
class SkippedClip:
    """A clip that was of no use, and why."""

    name: str
    reason: str

    def __str__(self) -> str:
        return about(self.name, self.reason)


ClipSource = str | Path | Video | CalibrationClip


def gather_clips(
    sources: Iterable[ClipSource], max_frames: int | None = None, step: Step = lambda stage, done, total: None
) -> tuple[list[CalibrationClip], list[SkippedClip]]:
    """Open clips and read each once from end to end, so that a broken one is known before the model runs.

    Args:
        sources: video files, folders of frames, folders that hold `frames/` and `masks/` (one label PNG per frame: the
            first is the prompt, all are ground truth), open videos, or `CalibrationClip`s. A folder whose children are
            clips, or one in the DAVIS layout (`JPEGImages/`, `Annotations/`), stands for all of them.
        max_frames: use only so many frames of each, at least 3.
        step: called with ("reading clips", done, total).

    Returns:
        The usable clips in the order given, and the others with the reason.

    Raises:
        CalibrationError: two clips of one name, no source, or a `max_frames` that is too small.
    """
    if max_frames is not None and max_frames < MIN_FRAMES:
        raise CalibrationError(f"{max_frames} frames of each clip, expected at least {MIN_FRAMES}")
    usable: list[CalibrationClip] = []
    skipped: list[SkippedClip] = []
    given = [sources] if isinstance(sources, (str, Path, Video, CalibrationClip)) else sources
    found = [each for one in given for each in _found(one)]
    for number, (name, opened) in enumerate(found):
        step("reading clips", number, len(found))
        try:
            clip = _checked(opened(), max_frames)
        except (VideoError, PromptError) as error:
            skipped.append(SkippedClip(name, str(error)))
            continue
        if any(clip.name == other.name for other in usable):
            raise CalibrationError(f"two clips are called {clip.name!r}; expected different names, as reports use them")
        usable.append(clip)
    if not usable and not skipped:
        raise CalibrationError(f"no clip given, expected at least two. What works: {LAYOUTS}")
    step("reading clips", len(found), len(found))
    return usable, skipped


def _found(source: ClipSource, inside: bool = False) -> list[tuple[str, Callable[[], CalibrationClip]]]:
    """Name and opener of a clip, or of every clip in a folder of clips."""
    if isinstance(source, CalibrationClip):
        return [(source.name, lambda: source)]
    if isinstance(source, Video):
        return [(source.name, lambda: CalibrationClip(source.name, source))]
    path = Path(source).expanduser()
    if (path / "frames").is_dir():
        return [(path.name, lambda: _annotated(path.name, path / "frames", path / "masks"))]
    if path.is_dir() and not inside:
        if (pictures := path / "JPEGImages").is_dir():
            pictures = pictures / "480p" if (pictures / "480p").is_dir() else pictures
            masks = path / "Annotations" / pictures.relative_to(path / "JPEGImages")
            return [
                (each.name, lambda each=each: _annotated(each.name, each, masks / each.name))  # type: ignore[misc]
                for each in sorted(pictures.iterdir()) if each.is_dir()
            ]  # fmt: skip
        entries = sorted(entry for entry in path.iterdir() if not entry.name.startswith("."))
        if entries and not any(entry.is_file() and entry.suffix.lower() in KINDS for entry in entries):
            return [each for entry in entries for each in _found(entry, inside=True)]
    return [(path.name, lambda: CalibrationClip(path.stem if path.is_file() else path.name, open_video(path)))]


def _annotated(name: str, frames: Path, masks: Path) -> CalibrationClip:
    video = open_video(frames)
    if not masks.is_dir():
        return CalibrationClip(name, video)
    files = natural_sort(masks.glob("*.png"))
    if not files:
        raise VideoError(f"{masks}: no PNG there, expected one label map per frame")
    called = {file.stem: file for file in files}
    files = [called[name] for name in takewhile(called.__contains__, video.names or ())]
    if not files:
        raise VideoError(f"{masks}: no mask called {video.name_of(0)}.png, as the first frame is")
    truth = PackedLabels(read_label_png(file) for file in files)
    first = truth[0]
    prompts = tuple(MaskPrompt(first == label, int(label)) for label in np.unique(first) if label)
    if not prompts:
        raise PromptError(f"{files[0]}: the first mask is empty, expected at least one object")
    return CalibrationClip(name, video, prompts, truth)


def _checked(clip: CalibrationClip, max_frames: int | None) -> CalibrationClip:
    video = clip.video
    count = sum(1 for _ in islice(video, max_frames))
    if count < MIN_FRAMES:
        raise VideoError(f"{clip.name}: {count} frame{'s' * (count != 1)}, expected at least {MIN_FRAMES}")
    if clip.prompts:
        check(clip.prompts, video.size, count)
        late = [prompt.frame for prompt in clip.prompts if prompt.frame >= count - 1]
        if late:
            raise PromptError(
                f"{clip.name}: a prompt on frame {late[0]}, expected frames after it to track ({count} used)"
            )
    if clip.truth is not None:
        if len(clip.truth) < count:
            raise VideoError(f"{clip.name}: {len(clip.truth)} masks for {count} frames, expected one per frame")
        if clip.truth[0].shape != video.size:
            raise VideoError(f"{clip.name}: masks of {clip.truth[0].shape}, frames of {video.size}; expected the same")
    return CalibrationClip(clip.name, first_frames(video, count), clip.prompts, clip.truth)

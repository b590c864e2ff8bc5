"""Synthetic video-object-segmentation clips with exact masks: the data the demo model is trained and scored on."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from surgery.demo.scene import LEVELS, MAX_OBJECTS, Script, write_script
from surgery.errors import SurgeryError, nearest

Difficulty = Literal["easy", "medium", "hard"]

MIN_AREA = 150
"""Visible pixels every labelled object has on frame 0 of a 256-pixel clip; scales with the area of the frame."""

HELD_OUT = 1 << 30
"""Seeds from here on are never trained on; clip i of an evaluation is `make_clip(HELD_OUT + i, ...)`."""

_ATTEMPTS = 24
_TRIAL_SIZE = 128


class ClipError(SurgeryError):
    """A clip was asked for with a value outside its valid range."""


@dataclass(frozen=True)
class Clip:
    """One clip and its truth.

    Attributes:
        name: `"<difficulty>-<seed>"`, unique per (difficulty, seed).
        frames: uint8 [T, H, W, 3], RGB.
        labels: uint8 [T, H, W]; 0 is background, k is object k, exactly where it is visible.
        visible: bool [T, n]; object k has at least one visible pixel on the frame in column k - 1.
    """

    name: str
    frames: NDArray[np.uint8]
    labels: NDArray[np.uint8]
    visible: NDArray[np.bool_]

    @property
    def objects(self) -> range:
        """The labels of its objects."""
        return range(1, self.visible.shape[1] + 1)


def make_clip(
    seed: int,
    frames: int = 24,
    size: int = 256,
    difficulty: Difficulty = "medium",
    cuts: int = 0,
    objects: int | None = None,
) -> Clip:
    """Return the clip of a seed; the same arguments give the same bytes on every platform.

    A seed shows the same scene at every `size`. At a scene cut the background, the unlabelled things and all positions
    are drawn anew; each tracked object is gone for the whole new scene or reappears elsewhere, with equal chance.

    Args:
        seed: non-negative.
        frames: 1 to 1000.
        size: side of the square frames in pixels, 32 to 1024, a multiple of 16.
        difficulty: `"easy"`, `"medium"` or `"hard"`; `surgery.demo.scene.LEVELS` is the table of what that means.
        cuts: scene cuts, 0 to frames - 1, spread over the clip.
        objects: labelled objects, 1 to 6; None draws a number that fits the difficulty.

    Raises:
        ClipError: a value is outside its range.
    """
    _check(seed, frames, size, difficulty, cuts, objects)
    for attempt in range(_ATTEMPTS):
        script = write_script(seed, attempt, frames, difficulty, cuts, objects, calm=attempt >= _ATTEMPTS // 2)
        # Judged at one size, with a margin for the others, or a seed might show another scene at another size.
        first = np.zeros((_TRIAL_SIZE, _TRIAL_SIZE), dtype=np.uint8)
        script.shots[0].perform(0, np.zeros_like(first, dtype=np.uint32), first)
        areas = np.bincount(first.ravel(), minlength=script.objects + 1)[1:]
        if areas.min() * (256 // _TRIAL_SIZE) ** 2 >= MIN_AREA * 5 // 4:
            break
    images, labels = _render(script, size)
    visible = np.stack([(labels == label).any((1, 2)) for label in range(1, script.objects + 1)], axis=1)
    return Clip(f"{difficulty}-{seed:05d}", images, labels, visible)


def held_out(seed: int, count: int, frames: int = 24, **how: Any) -> Iterator[Clip]:
    """Held-out clips `seed` to `seed + count - 1`, never trained on; other arguments as of `make_clip`."""
    return (make_clip(HELD_OUT + seed + number, frames, **how) for number in range(count))


def write_davis(clips: Iterable[Clip], folder: str | Path) -> list[Path]:
    """Write clips in the DAVIS layout and return the JPEG folder of each.

    `JPEGImages/480p/<name>/%05d.jpg` (quality 95) and `Annotations/480p/<name>/%05d.png` (palette PNG, value = object),
    with `ImageSets/2017/val.txt` naming the clips.
    """
    from PIL import Image

    from surgery.video.masks import write_label_png

    root = Path(folder)
    written = []
    for clip in clips:
        images = root / "JPEGImages" / "480p" / clip.name
        masks = root / "Annotations" / "480p" / clip.name
        images.mkdir(parents=True, exist_ok=True)
        masks.mkdir(parents=True, exist_ok=True)
        for index, (image, label) in enumerate(zip(clip.frames, clip.labels, strict=True)):
            Image.fromarray(image).save(images / f"{index:05d}.jpg", quality=95)
            write_label_png(masks / f"{index:05d}.png", label)
        written.append(images)
    listing = root / "ImageSets" / "2017"
    listing.mkdir(parents=True, exist_ok=True)
    (listing / "val.txt").write_text("".join(f"{path.name}\n" for path in written), encoding="utf-8")
    return written


def _render(script: Script, size: int) -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
    """Return frames uint8 [T, S, S, 3] and labels uint8 [T, S, S] of a script."""
    canvas = np.zeros((script.frames, size, size), dtype=np.uint32)
    labels = np.zeros((script.frames, size, size), dtype=np.uint8)
    for shot in script.shots:
        ground = shot.ground(size)
        for index in range(shot.start, shot.stop):
            top, left = shot.camera(index, size)
            canvas[index] = ground[top : top + size, left : left + size]
            shot.perform(index, canvas[index], labels[index])
    return script.film(canvas.view(np.uint8).reshape(*canvas.shape, 4)[..., :3]), labels


def _check(seed: Any, frames: Any, size: Any, difficulty: Any, cuts: Any, objects: Any) -> None:
    if difficulty not in LEVELS:
        hint = nearest(str(difficulty), LEVELS)
        raise ClipError(f"difficulty {difficulty!r} is not one of {', '.join(LEVELS)}{hint}")
    for name, value, low, high in (
        ("seed", seed, 0, 1 << 62),
        ("frames", frames, 1, 1000),
        ("size", size, 32, 1024),
        ("cuts", cuts, 0, frames - 1),
        ("objects", 1 if objects is None else objects, 1, MAX_OBJECTS),
    ):
        if not low <= value <= high:
            raise ClipError(f"{name} {value} is not in {low} to {high}")
    if size % 16:
        raise ClipError(f"size {size} is not a multiple of 16")

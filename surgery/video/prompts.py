"""What to follow in a video: boxes, points and masks, and whether they fit the video."""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np

from surgery.errors import PromptError, nearest
from surgery.video.masks import Labels, Mask, deepest_pixel, read_with_mode, require_id

PROMPTS = ("mask", "box", "point")
"""What `prompt_for` makes."""


@dataclass(frozen=True)
class BoxPrompt:
    """A box around an object: corners in pixels, x to the right in 0..width and y down in 0..height.

    Raises:
        PromptError: a coordinate that is not finite, an id outside 1..255, a negative frame.
    """

    kind: ClassVar[str] = "box"
    x0: float
    y0: float
    x1: float
    y1: float
    obj_id: int = 1
    frame: int = 0

    def __post_init__(self) -> None:
        _require_target(self.obj_id, self.frame)
        _require_finite((self.x0, self.y0, self.x1, self.y1), "box")

    def require_inside(self, size: tuple[int, int]) -> None:
        """Raise `PromptError` unless it is a box in a frame of `size` (height, width)."""
        height, width = size
        name = f"box {self.x0:g},{self.y0:g},{self.x1:g},{self.y1:g} of object {self.obj_id}"
        if self.x0 >= self.x1 or self.y0 >= self.y1:
            x0, x1 = sorted((self.x0, self.x1))
            y0, y1 = sorted((self.y0, self.y1))
            turned = f": did you mean {x0:g},{y0:g},{x1:g},{y1:g}?" if x0 < x1 and y0 < y1 else ""
            raise PromptError(f"{name} has no area, expected x0 < x1 and y0 < y1{turned}")
        if min(self.x0, self.y0) >= 0 and max(self.x1, self.y1) <= 1:
            raise _pixels_wanted(name, (self.x0, self.y0, self.x1, self.y1), size)
        x0, x1 = (min(max(x, 0), width) for x in (self.x0, self.x1))
        y0, y1 = (min(max(y, 0), height) for y in (self.y0, self.y1))
        if (x0, y0, x1, y1) != (self.x0, self.y0, self.x1, self.y1):
            inside = f"; the part inside is {x0:g},{y0:g},{x1:g},{y1:g}" if x0 < x1 and y0 < y1 else ""
            raise PromptError(f"{name} leaves the frame, expected x in 0..{width} and y in 0..{height}{inside}")


@dataclass(frozen=True)
class PointPrompt:
    """Clicks on one object in one frame: (x, y) in pixels, 0 <= x < width and 0 <= y < height.

    `labels` has one entry per point: 1 on the object, 0 off it.

    Raises:
        PromptError: no point, another number of labels than points, a label that is not 0 or 1, a coordinate that is
            not finite, an id outside 1..255, a negative frame.
    """

    kind: ClassVar[str] = "points"
    points: tuple[tuple[float, float], ...]
    labels: tuple[int, ...]
    obj_id: int = 1
    frame: int = 0

    def __post_init__(self) -> None:
        _require_target(self.obj_id, self.frame)
        if not self.points or len(self.points) != len(self.labels):
            raise PromptError(f"{len(self.points)} points and {len(self.labels)} labels, expected one label per point")
        for point, label in zip(self.points, self.labels, strict=True):
            if len(point) != 2:
                raise PromptError(f"point {point}, expected (x, y)")
            _require_finite(point, "point")
            if label not in (0, 1):
                raise PromptError(f"point label {label!r}, expected 1 (on the object) or 0 (off the object)")

    def require_inside(self, size: tuple[int, int]) -> None:
        """Raise `PromptError` unless all points are pixels of a frame of `size` (height, width)."""
        height, width = size
        flat = [value for point in self.points for value in point]
        # 0 and 1 alone may be pixels of the corner.
        if all(0 <= value <= 1 for value in flat) and any(0 < value < 1 for value in flat):
            x, y = self.points[0]
            raise _pixels_wanted(f"point {x:g},{y:g} of object {self.obj_id}", (x, y), size)
        for x, y in self.points:
            if not (0 <= x < width and 0 <= y < height):
                near = f"the nearest is {min(max(x, 0), width - 1):g},{min(max(y, 0), height - 1):g}"
                valid = f"expected x in 0..{width - 1} and y in 0..{height - 1}; {near}"
                raise PromptError(f"point {x:g},{y:g} of object {self.obj_id} is outside the frame, {valid}")


@dataclass(frozen=True, eq=False)
class MaskPrompt:
    """The pixels of one object in one frame: (height, width) bool, of the size of the video.

    Raises:
        PromptError: not a 2-D bool array, without a pixel, an id outside 1..255, a negative frame.
    """

    kind: ClassVar[str] = "mask"
    mask: Mask
    obj_id: int = 1
    frame: int = 0

    def __post_init__(self) -> None:
        _require_target(self.obj_id, self.frame)
        kind, shape = (getattr(self.mask, name, None) for name in ("dtype", "shape"))
        if kind != np.bool_ or len(shape or ()) != 2:
            got = f"a {type(self.mask).__name__} of {kind} and shape {shape}"
            raise PromptError(f"mask of object {self.obj_id}: got {got}, expected a (height, width) bool numpy array")
        if not self.mask.any():
            raise PromptError(f"mask of object {self.obj_id} in frame {self.frame} is empty, expected at least a pixel")

    def require_inside(self, size: tuple[int, int]) -> None:
        """Raise `PromptError` unless it is of `size` (height, width)."""
        if self.mask.shape != tuple(size):
            found = f"{self.mask.shape[0]}x{self.mask.shape[1]} pixels (height x width)"
            wanted = f"{size[0]}x{size[1]}, the size of the video"
            raise PromptError(f"the mask of object {self.obj_id} has {found}, expected {wanted}")


Prompt = BoxPrompt | PointPrompt | MaskPrompt


def prompt_for(kind: str, mask: Mask, obj_id: int) -> Prompt:
    """A first-frame prompt of `kind` made from an object's exact mask. Raises PromptError for an unknown kind."""
    if kind == "mask":
        return MaskPrompt(mask, obj_id)
    rows, columns = np.nonzero(mask)
    if kind == "box":
        return BoxPrompt(columns.min(), rows.min(), columns.max() + 1, rows.max() + 1, obj_id)
    if kind != "point":
        raise PromptError(f"prompt {kind!r}: expected one of {', '.join(PROMPTS)}{nearest(kind, PROMPTS)}")
    row, column = deepest_pixel(mask)
    return PointPrompt(((float(column), float(row)),), (1,), obj_id)


def merge_points(prompts: Iterable[PointPrompt]) -> list[PointPrompt]:
    """Join the points of the same object and frame into one prompt each, in the order they were first named."""
    merged: dict[tuple[int, int], PointPrompt] = {}
    for one in prompts:
        seen = merged.get((one.frame, one.obj_id))
        points, labels = (seen.points, seen.labels) if seen else ((), ())
        merged[one.frame, one.obj_id] = PointPrompt(points + one.points, labels + one.labels, one.obj_id, one.frame)
    return list(merged.values())


def load_mask_prompts(path: str | os.PathLike[str], frame: int = 0) -> list[MaskPrompt]:
    """Read a label PNG: one prompt per object id in it, or one prompt with id 1 for a black (0) and white (255) mask.

    Args:
        path: an 8-bit palette or greyscale PNG (see `read_label_png`).
        frame: index of the frame the masks belong to.

    Returns:
        The prompts in the order of their ids.

    Raises:
        PromptError: a file that is no label PNG, no object in it, or a greyscale picture with 255 and other values: it
            may be a soft mask or a label map, and we do not guess.
    """
    labels, mode = read_with_mode(path)
    ids = [int(value) for value in np.unique(labels) if value]
    if not ids:
        raise PromptError(f"{path}: the mask is empty, expected at least one pixel that is not 0")
    if mode == "L" and 255 in ids:
        if ids != [255]:
            raise PromptError(
                f"{path}: a greyscale mask with 255 and {len(ids) - 1} other values above 0; expected either 0 and 255 "
                "(one object) or object ids below 255: threshold a soft mask, or save labels as a palette PNG"
            )
        return [MaskPrompt(labels > 0, 1, frame)]
    return [MaskPrompt(labels == obj_id, obj_id, frame) for obj_id in ids]


def continued(prompts: Sequence[Prompt], last: int, written: Callable[[int], Labels]) -> list[Prompt]:
    """The prompts that go on with a video tracked up to frame `last`, from the masks that were written.

    Every object keeps its first prompts. Where it was prompted again, and on `last`, it gets its mask of that frame
    instead, if it has one there. What the model remembered of all other frames is lost.

    Args:
        prompts: what the video was tracked with. last: last frame with a mask, not before the first prompt.
        written: labels (height, width) of a frame up to `last`, uint8.

    Raises:
        PromptError: the labels of `last` hold an object that was not prompted by then.
    """
    # The earliest of each is put in last, and stays.
    first = {prompt.obj_id: prompt.frame for prompt in sorted(prompts, key=lambda prompt: -prompt.frame)}
    unknown = {int(label) for label in np.unique(written(last))} - {0, *(one for one in first if first[one] <= last)}
    if unknown:
        raise PromptError(f"the masks of frame {last} hold object {min(unknown)}, which was not prompted by then")
    targets = {(prompt.frame, prompt.obj_id) for prompt in prompts if prompt.frame <= last}
    targets |= {(last, obj_id) for obj_id in first}
    masks: dict[tuple[int, int], MaskPrompt] = {}
    for frame, obj_id in sorted(target for target in targets if target[0] > first[target[1]]):
        mask = written(frame) == obj_id
        if mask.any():
            masks[frame, obj_id] = MaskPrompt(mask, obj_id, frame)
    return [prompt for prompt in prompts if (prompt.frame, prompt.obj_id) not in masks] + list(masks.values())


def check(prompts: Sequence[Prompt], size: tuple[int, int], num_frames: int | None = None) -> None:
    """Raise unless the prompts fit a video of `size` (height, width) with `num_frames` frames (None: not known).

    Raises:
        PromptError: no prompt; a frame out of range; a box that is inverted, without area or not inside the frame; a
            point outside the frame; a box or points in 0..1, shares of the frame and not pixels; a mask of another
            size; for one object in one frame, two boxes, two masks, points that were not merged, or a mask together
            with a box or points; an object with nothing but points off it.
    """
    if not prompts:
        raise PromptError("no prompt, expected at least one box, point or mask that says what to follow")
    kinds: dict[tuple[int, int], list[str]] = {}
    for prompt in prompts:
        if num_frames is not None and prompt.frame >= num_frames:
            raise PromptError(f"frame {prompt.frame} of a prompt, expected 0..{num_frames - 1}: the video ends there")
        prompt.require_inside(size)
        kinds.setdefault((prompt.obj_id, prompt.frame), []).append(prompt.kind)
    for (obj_id, frame), found in kinds.items():
        where = f"object {obj_id} in frame {frame}"
        other = next((kind for kind in found if kind != "mask"), None)
        if other is not None and "mask" in found:
            raise PromptError(f"{where} has a mask and {other}, expected one or the other: the model keeps the last")
        kind = max(found, key=found.count)
        if found.count(kind) > 1:
            fix = "join them with merge_points" if kind == "points" else "keep one"
            raise PromptError(f"{where} has {found.count(kind)} prompts of the kind {kind!r}, expected one: {fix}")
    shown = {prompt.obj_id for prompt in prompts if not isinstance(prompt, PointPrompt) or 1 in prompt.labels}
    hidden = {prompt.obj_id for prompt in prompts} - shown
    if hidden:
        wanted = "a box, a mask or a point with label 1 that says where it is"
        raise PromptError(f"object {min(hidden)} has only points off the object (label 0), expected {wanted}")


def _pixels_wanted(name: str, values: Sequence[float], size: tuple[int, int]) -> PromptError:
    """What is wrong with x, y, ... that are shares of the frame."""
    height, width = size
    scaled = ",".join(f"{value * side:g}" for value, side in zip(values, (width, height) * 2, strict=False))
    would = f"of {width}x{height} (width x height) that would be {scaled}"
    return PromptError(f"{name} lies in 0..1, as shares of the frame do; expected pixels: {would}")


def _require_target(obj_id: Any, frame: Any) -> None:
    require_id(obj_id)
    if not isinstance(frame, (int, np.integer)) or isinstance(frame, bool) or frame < 0:
        raise PromptError(f"frame {frame!r} of a prompt, expected an integer from 0")


def _require_finite(values: Iterable[Any], kind: str) -> None:
    for value in values:
        if not isinstance(value, (int, float, np.integer, np.floating)) or not math.isfinite(value):
            raise PromptError(f"{kind} coordinate {value!r}, expected a finite number of pixels")

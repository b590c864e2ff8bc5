"""What to follow in a video: boxes, points and masks, and whether they fit the video."""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from surgery.errors import PromptError
from surgery.video.masks import Labels, Mask, read_with_mode, require_id


@dataclass(frozen=True)
class BoxPrompt:
    """A box around an object: corners in pixels, x to the right in 0..width and y down in 0..height.

    Raises:
        PromptError: a coordinate that is not finite, an id outside 1..255, a negative frame.
    """

    x0: float
    y0: float
    x1: float
    y1: float
    obj_id: int = 1
    frame: int = 0

    def __post_init__(self) -> None:
        _require_target(self.obj_id, self.frame)
        _require_finite((self.x0, self.y0, self.x1, self.y1), "box")


@dataclass(frozen=True)
class PointPrompt:
    """Clicks on one object in one frame: (x, y) in pixels, 0 <= x < width and 0 <= y < height.

    `labels` has one entry per point: 1 on the object, 0 off it.

    Raises:
        PromptError: no point, another number of labels than points, a label that is not 0 or 1, a coordinate that is
            not finite, an id outside 1..255, a negative frame.
    """

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


@dataclass(frozen=True, eq=False)
class MaskPrompt:
    """The pixels of one object in one frame: (height, width) bool, of the size of the video.

    Raises:
        PromptError: not a 2-D bool array, without a pixel, an id outside 1..255, a negative frame.
    """

    mask: Mask
    obj_id: int = 1
    frame: int = 0

    def __post_init__(self) -> None:
        _require_target(self.obj_id, self.frame)
        kind, shape = (getattr(self.mask, name, None) for name in ("dtype", "shape"))
        if kind != np.bool_ or len(shape or ()) != 2:
            raise PromptError(
                f"mask of object {self.obj_id}: got a {type(self.mask).__name__} of {kind} and shape {shape}, expected "
                "a (height, width) bool numpy array"
            )
        if not self.mask.any():
            raise PromptError(
                f"mask of object {self.obj_id} in frame {self.frame} is empty, expected at least one pixel"
            )


Prompt = BoxPrompt | PointPrompt | MaskPrompt


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
    first: dict[int, int] = {}
    for prompt in prompts:
        first[prompt.obj_id] = min(prompt.frame, first.get(prompt.obj_id, prompt.frame))
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
        if isinstance(prompt, BoxPrompt):
            kind = "box"
            _check_box(prompt, size)
        elif isinstance(prompt, PointPrompt):
            kind = "points"
            _check_points(prompt, size)
        else:
            kind = "mask"
            _check_mask(prompt, size)
        kinds.setdefault((prompt.obj_id, prompt.frame), []).append(kind)
    for (obj_id, frame), found in kinds.items():
        where, *others = f"object {obj_id} in frame {frame}", *(kind for kind in found if kind != "mask")
        if others and len(others) < len(found):
            raise PromptError(
                f"{where} has a mask and {others[0]}, expected one or the other: the model keeps only the last"
            )
        if len(set(found)) < len(found):
            kind = max(found, key=found.count)
            fix = "join them with merge_points" if kind == "points" else "keep one"
            raise PromptError(f"{where} has {found.count(kind)} prompts of the kind {kind!r}, expected one: {fix}")
    shown = {prompt.obj_id for prompt in prompts if not isinstance(prompt, PointPrompt) or 1 in prompt.labels}
    hidden = {prompt.obj_id for prompt in prompts} - shown
    if hidden:
        raise PromptError(
            f"object {min(hidden)} has only points off the object (label 0), expected a box, a mask or a point with "
            "label 1 that says where it is"
        )


def _check_box(box: BoxPrompt, size: tuple[int, int]) -> None:
    height, width = size
    name = f"box {box.x0:g},{box.y0:g},{box.x1:g},{box.y1:g} of object {box.obj_id}"
    if box.x0 >= box.x1 or box.y0 >= box.y1:
        x0, x1 = sorted((box.x0, box.x1))
        y0, y1 = sorted((box.y0, box.y1))
        turned = f": did you mean {x0:g},{y0:g},{x1:g},{y1:g}?" if x0 < x1 and y0 < y1 else ""
        raise PromptError(f"{name} has no area, expected x0 < x1 and y0 < y1{turned}")
    if min(box.x0, box.y0) >= 0 and max(box.x1, box.y1) <= 1:
        scaled = f"{box.x0 * width:g},{box.y0 * height:g},{box.x1 * width:g},{box.y1 * height:g}"
        raise PromptError(
            f"{name} lies in 0..1, as shares of the frame do; expected pixels: of {width}x{height} (width x height) "
            f"that would be {scaled}"
        )
    if box.x0 < 0 or box.y0 < 0 or box.x1 > width or box.y1 > height:
        x0, x1 = (min(max(x, 0), width) for x in (box.x0, box.x1))
        y0, y1 = (min(max(y, 0), height) for y in (box.y0, box.y1))
        inside = f"; the part inside is {x0:g},{y0:g},{x1:g},{y1:g}" if x0 < x1 and y0 < y1 else ""
        raise PromptError(f"{name} leaves the frame, expected x in 0..{width} and y in 0..{height}{inside}")


def _check_points(prompt: PointPrompt, size: tuple[int, int]) -> None:
    height, width = size
    flat = [value for point in prompt.points for value in point]
    # 0 and 1 alone may be pixels of the corner.
    if all(0 <= value <= 1 for value in flat) and any(0 < value < 1 for value in flat):
        x, y = prompt.points[0]
        raise PromptError(
            f"point {x:g},{y:g} of object {prompt.obj_id} lies in 0..1, as shares of the frame do; expected pixels: of "
            f"{width}x{height} (width x height) that would be {x * width:g},{y * height:g}"
        )
    for x, y in prompt.points:
        if not (0 <= x < width and 0 <= y < height):
            near = f"{min(max(x, 0), width - 1):g},{min(max(y, 0), height - 1):g}"
            raise PromptError(
                f"point {x:g},{y:g} of object {prompt.obj_id} is outside the frame, "
                f"expected x in 0..{width - 1} and y in 0..{height - 1}; the nearest is {near}"
            )


def _check_mask(prompt: MaskPrompt, size: tuple[int, int]) -> None:
    if prompt.mask.shape != tuple(size):
        raise PromptError(
            f"the mask of object {prompt.obj_id} has {prompt.mask.shape[0]}x{prompt.mask.shape[1]} pixels "
            f"(height x width), expected {size[0]}x{size[1]}, the size of the video"
        )


def _require_target(obj_id: Any, frame: Any) -> None:
    require_id(obj_id)
    if not isinstance(frame, (int, np.integer)) or isinstance(frame, bool) or frame < 0:
        raise PromptError(f"frame {frame!r} of a prompt, expected an integer from 0")


def _require_finite(values: Iterable[Any], kind: str) -> None:
    for value in values:
        if not isinstance(value, (int, float, np.integer, np.floating)) or not math.isfinite(value):
            raise PromptError(f"{kind} coordinate {value!r}, expected a finite number of pixels")

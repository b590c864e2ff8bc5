"""Pictures for people: masks over a frame, the windows a model computed, what is what."""

from __future__ import annotations

from collections.abc import Sequence, Set
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageDraw, ImageFont

from surgery.errors import VideoError
from surgery.video.masks import Labels, davis_palette
from surgery.video.source import Frame, require_rgb

_PALETTE = np.array(davis_palette(), np.uint8).reshape(256, 3)
# The palette starts with dark colours, on which a line of the same colour drowns; a lighter one does not.
_CONTOURS = (_PALETTE // 2 + 128).astype(np.uint8)
# One pixel of line for so many rows stays visible, and thin, from thumbnails to 4K.
_CONTOUR_ROWS, _BORDER_ROWS = 240, 480
_SKIPPED_BRIGHTNESS = 110  # of 256
_BORDER = np.array([255, 200, 60], np.uint8)
# Text is readable from a 24th of the frame's height, and from ten pixels on small frames.
_TEXT_ROWS, _MIN_TEXT = 24, 10
_BAR_COLOUR = (24, 24, 28)
_TEXT_COLOUR = (240, 240, 240)


def draw_masks(frame: Frame, labels: Labels) -> Frame:
    """Tint each object in its DAVIS colour and draw its contour: a light line inside the edge, a dark one outside.

    Args:
        frame: (height, width, 3) uint8 RGB; not changed.
        labels: (height, width) uint8, 0 is the background.

    Returns:
        (height, width, 3) uint8 RGB.

    Raises:
        VideoError: not a frame, labels of another size or type.
    """
    _require_alike(frame, labels)
    out = frame.copy()
    inside = labels > 0
    out[inside] = out[inside] // 2 + _PALETTE[labels[inside]] // 2
    edge = _edge(labels, _line_width(frame, _CONTOUR_ROWS))
    light, dark = edge & inside, edge & ~inside
    out[light] = _CONTOURS[labels[light]]
    out[dark] >>= 1
    return out


def draw_windows(frame: Frame, grid: tuple[int, int], window_px: tuple[float, float], kept: Set[int]) -> Frame:
    """Show which windows a model computed: the others are darkened, and the computed ones get a thin border.

    Args:
        frame: (height, width, 3) uint8 RGB; not changed.
        grid: (rows, columns) of windows; window `i` is at row `i // columns`, column `i % columns`.
        window_px: (height, width) of a window in pixels of this frame, fractions allowed. The last row and column may
            reach beyond the frame, as padded windows do.
        kept: indices of the computed windows, 0..rows*columns - 1.

    Returns:
        (height, width, 3) uint8 RGB.

    Raises:
        VideoError: not a frame, or an index out of range.
    """
    require_rgb(frame, "the frame to draw on")
    wrong = kept - set(range(grid[0] * grid[1]))
    if wrong:
        raise VideoError(f"window {min(wrong)}, expected 0..{grid[0] * grid[1] - 1} in a grid of {grid[0]}x{grid[1]}")
    line = _line_width(frame, _BORDER_ROWS)
    out = ((frame.astype(np.uint16) * _SKIPPED_BRIGHTNESS) >> 8).astype(np.uint8)
    corners = np.array([divmod(index, grid[1]) for index in sorted(kept)]).reshape(-1, 2)
    starts, ends = (np.rint((corners + step) * window_px).astype(int) for step in (0, 1))
    # A border is shared by two windows and straddles both, so borders come first: they must not depend on the order.
    for (top, left), (bottom, right) in zip(starts, ends, strict=True):
        out[max(0, top - line) : bottom + line, max(0, left - line) : right + line] = _BORDER
    for (top, left), (bottom, right) in zip(starts, np.minimum(ends, frame.shape[:2]), strict=True):
        inside = slice(top + line, bottom - line), slice(left + line, right - line)
        out[inside] = frame[inside]
    return out


def draw_ids(frame: Frame, labels: Labels) -> Frame:
    """Write every object's id into a tag of its colour on top of the object, or inside where there is no room above.

    Args:
        frame: (height, width, 3) uint8 RGB; not changed.
        labels: (height, width) uint8, 0 is the background.

    Returns:
        (height, width, 3) uint8 RGB.

    Raises:
        VideoError: not a frame, labels of another size or type.
    """
    _require_alike(frame, labels)
    canvas = Image.fromarray(frame)
    draw, font = ImageDraw.Draw(canvas), _font(frame)
    high, wide = frame.shape[:2]
    for obj_id in np.flatnonzero(np.bincount(labels.reshape(-1), minlength=256)[1:]) + 1:
        inside = labels == obj_id
        top = int(inside.any(axis=1).argmax())
        # Above the topmost pixels, so that the tag of a long or scattered object touches it.
        middle = float(np.flatnonzero(inside[top]).mean())
        width, height = round(font.getlength(str(obj_id))) + font.size // 2, round(font.size * 1.2)
        left = min(max(round(middle - width / 2), 0), max(wide - width, 0))
        above = top - height if top >= height else min(top, max(high - height, 0))
        _tag(draw, font, (left, above, left + width, above + height), int(obj_id))
    return np.array(canvas)


def with_legend(frame: Frame, obj_ids: Sequence[int], shown: Set[int], note: str = "") -> Frame:
    """Put a strip under the frame that names every object in its colour; those not in sight are only outlined.

    Args:
        frame: (height, width, 3) uint8 RGB.
        obj_ids: ids 1..255, in the order of the strip. The strip's height depends on them and the frame's size alone,
            so frames of one video stay alike. shown: those in sight on this frame. note: text behind the ids; what
            lies between "; " stays on one line, cut off at the edge.

    Returns:
        (height + strip, width, 3) uint8 RGB.

    Raises:
        VideoError: not a frame.
    """
    require_rgb(frame, "the frame to draw on")
    font, width = _font(frame), frame.shape[1]
    gap, line = font.size // 2, round(font.size * 1.2)
    items: list[int | str] = [*obj_ids, *note.split("; ")]
    places, left, top = [], gap, gap
    for item in items:
        wide = round(font.getlength(str(item))) + gap
        if left + wide > width - gap and left > gap:
            left, top = gap, top + line + gap
        places.append((left, top, left + wide, top + line))
        left += wide + gap
    canvas = Image.new("RGB", (width, top + line + gap), _BAR_COLOUR)
    draw = ImageDraw.Draw(canvas)
    for item, place in zip(items, places, strict=True):
        if isinstance(item, str):
            draw.text((place[0], (place[1] + place[3]) / 2), item, _TEXT_COLOUR, font, anchor="lm")
        else:
            _tag(draw, font, place, item, filled=item in shown)
    return np.concatenate([frame, np.array(canvas)])


def _require_alike(frame: Frame, labels: Labels) -> None:
    require_rgb(frame, "the frame to draw on")
    if labels.dtype != np.uint8 or labels.shape != frame.shape[:2]:
        wanted = f"uint8 of shape {frame.shape[:2]}, one label per pixel of the frame"
        raise VideoError(f"labels {labels.dtype} of shape {labels.shape}, expected {wanted}")


def _font(frame: Frame) -> Any:
    return ImageFont.load_default(size=max(_MIN_TEXT, round(min(frame.shape[:2]) / _TEXT_ROWS)))


def _tag(
    draw: ImageDraw.ImageDraw, font: Any, place: tuple[int, int, int, int], obj_id: int, filled: bool = True
) -> None:
    """An id in its object's colour, which is light: dark text on it is readable."""
    colour: Any = tuple(_CONTOURS[obj_id].tolist())
    draw.rectangle(place, fill=colour if filled else None, outline=colour)
    middle = ((place[0] + place[2]) / 2, (place[1] + place[3]) / 2)
    draw.text(middle, str(obj_id), _BAR_COLOUR if filled else colour, font, anchor="mm")


def _line_width(frame: Frame, rows_per_pixel: int) -> int:
    return max(1, round(min(frame.shape[:2]) / rows_per_pixel))


def _edge(labels: Labels, width: int) -> npt.NDArray[np.bool_]:
    """Pixels within `width` of a pixel of another label; the border of the frame is no edge."""
    low, high = labels.copy(), labels.copy()
    for values, keep in ((low, np.minimum), (high, np.maximum)):
        for lines in (values, values.T):
            for _ in range(width):
                keep(lines[1:], lines[:-1], out=lines[1:])
                keep(lines[:-1], lines[1:], out=lines[:-1])
    return low != high

"""Pictures for people: masks over a frame, the windows a model computed, two results side by side."""

from __future__ import annotations

import math
from collections.abc import Sequence, Set
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageDraw, ImageFont

from surgery.errors import VideoError
from surgery.video.masks import Labels, davis_palette
from surgery.video.rgb import Frame, require_rgb

_PALETTE = np.array(davis_palette(), np.uint8).reshape(256, 3)
# The palette starts with dark colours, on which a line of the same colour drowns; a lighter one does not.
_CONTOURS = (_PALETTE // 2 + 128).astype(np.uint8)
# One pixel of line for so many rows stays visible, and thin, from thumbnails to 4K.
_CONTOUR_ROWS, _BORDER_ROWS = 240, 480
_SKIPPED_BRIGHTNESS = 110  # of 256
_BORDER = np.array([255, 200, 60], np.uint8)
_GAP = 4
# Text is readable from a 24th of the frame's height, and from ten pixels on small frames.
_TEXT_ROWS, _MIN_TEXT = 24, 10
_BAR_COLOUR = (24, 24, 28)
_TEXT_COLOUR = (240, 240, 240)


def draw_masks(frame: Frame, labels: Labels, alpha: float = 0.5) -> Frame:
    """Tint each object in its DAVIS colour and draw its contour: a light line inside the edge, a dark one outside.

    Args:
        frame: (height, width, 3) uint8 RGB; not changed.
        labels: (height, width) uint8, 0 is the background.
        alpha: strength of the tint, 0 (contour only) to 1 (flat colour).

    Returns:
        (height, width, 3) uint8 RGB.

    Raises:
        VideoError: not a frame, labels of another size or type, alpha out of range.
    """
    _require_alike(frame, labels)
    if not 0 <= alpha <= 1:
        raise VideoError(f"alpha is {alpha}, expected 0 (contour only) to 1 (flat colour)")
    out = frame.copy()
    weight = round(alpha * 256)
    inside = labels > 0
    colours = _PALETTE[labels[inside]].astype(np.uint16)
    # The cast comes before the product: numpy 1 would keep it in 8 bits.
    out[inside] = (out[inside].astype(np.uint16) * (256 - weight) + colours * weight) >> 8
    edge = _edge(labels, _line_width(frame, _CONTOUR_ROWS))
    light, dark = edge & inside, edge & ~inside
    out[light] = _CONTOURS[labels[light]]
    out[dark] >>= 1
    return out


def draw_windows(frame: Frame, grid_shape: tuple[int, int], window_px: tuple[float, float], kept: Set[int]) -> Frame:
    """Show which windows a model computed: the others are darkened, and the computed ones get a thin border.

    Args:
        frame: (height, width, 3) uint8 RGB; not changed.
        grid_shape: (rows, columns) of windows; window `i` is at row `i // columns`, column `i % columns`.
        window_px: (height, width) of a window in pixels of this frame, fractions allowed. The last row and column may
            reach beyond the frame, as padded windows do.
        kept: indices of the computed windows, 0..rows*columns - 1.

    Returns:
        (height, width, 3) uint8 RGB.

    Raises:
        VideoError: not a frame, an empty grid, windows without area, a grid that does not cover the frame, an index
            out of range.
    """
    require_rgb(frame, "the frame to draw on")
    (rows, columns), (window_h, window_w) = grid_shape, window_px
    _require_grid(frame, rows, columns, window_h, window_w)
    wrong = [index for index in kept if not 0 <= index < rows * columns]
    if wrong:
        raise VideoError(f"window {min(wrong)}, expected 0..{rows * columns - 1} in a grid of {rows}x{columns}")
    line = _line_width(frame, _BORDER_ROWS)
    out = ((frame.astype(np.uint16) * _SKIPPED_BRIGHTNESS) >> 8).astype(np.uint8)
    # A border is shared by two windows and straddles both, so borders come first: they must not depend on the order.
    boxes = [_pixels(index, columns, window_h, window_w) for index in sorted(kept)]
    for top, left, bottom, right in boxes:
        out[max(0, top - line) : bottom + line, max(0, left - line) : right + line] = _BORDER
    height, width = frame.shape[:2]
    for top, left, bottom, right in boxes:
        inside = slice(top + line, min(bottom, height) - line), slice(left + line, min(right, width) - line)
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
    font = _font(frame)
    width = frame.shape[1]
    gap, line = font.size // 2, round(font.size * 1.2)
    places, left, top = [], gap, gap
    for obj_id in obj_ids:
        wide = round(font.getlength(str(obj_id))) + font.size // 2
        if left + wide > width - gap and left > gap:
            left, top = gap, top + line + gap
        places.append((left, top, left + wide, top + line))
        left += wide + gap
    left += gap
    notes = []
    for part in note.split("; "):
        wide = round(font.getlength(part))
        if left + wide > width - gap and left > gap:
            left, top = gap, top + line + gap
        notes.append((left, top + line / 2, part))
        left += wide + 2 * gap
    canvas = Image.new("RGB", (width, top + line + gap), _BAR_COLOUR)
    draw = ImageDraw.Draw(canvas)
    for x, y, part in notes:
        draw.text((x, y), _fit(part, font, width - x), _TEXT_COLOUR, font, anchor="lm")
    for obj_id, place in zip(obj_ids, places, strict=True):
        if obj_id in shown:
            _tag(draw, font, place, obj_id)
        else:
            draw.rectangle(place, outline=_colour(obj_id))
            draw.text(_centre(place), str(obj_id), _colour(obj_id), font, anchor="mm")
    return np.concatenate([frame, np.array(canvas)])


def side_by_side(left: Frame, right: Frame, labels: tuple[str, str] = ("stock", "sparse")) -> Frame:
    """Put two frames next to each other under a bar with a caption for each.

    Args:
        left: (height, width, 3) uint8 RGB.
        right: the same shape.
        labels: the captions; one that is too long is cut off with an ellipsis.

    Returns:
        (height + bar, 2 * width + 4, 3) uint8 RGB; the bar is a twelfth of the height, 18 pixels or more.

    Raises:
        VideoError: not frames, or of different sizes.
    """
    require_rgb(left, "the left frame")
    require_rgb(right, "the right frame")
    if left.shape != right.shape:
        raise VideoError(
            f"the right frame has {right.shape[0]}x{right.shape[1]} pixels (height x width), "
            f"expected {left.shape[0]}x{left.shape[1]} as the left one"
        )
    height, width = left.shape[:2]
    bar = max(18, height // 12)
    canvas = Image.new("RGB", (2 * width + _GAP, height + bar), _BAR_COLOUR)
    draw = ImageDraw.Draw(canvas)
    font = ImageFont.load_default(size=round(bar * 0.6))
    for start, text in ((0, labels[0]), (width + _GAP, labels[1])):
        draw.text((start + width / 2, bar / 2), _fit(text, font, width), _TEXT_COLOUR, font, anchor="mm")
    out = np.array(canvas)
    out[bar:, :width] = left
    out[bar:, width + _GAP :] = right
    return out


def _require_alike(frame: Frame, labels: Labels) -> None:
    require_rgb(frame, "the frame to draw on")
    if not isinstance(labels, np.ndarray) or labels.dtype != np.uint8 or labels.shape != frame.shape[:2]:
        raise VideoError(
            f"labels {_describe(labels)}, expected uint8 of shape {frame.shape[:2]}, one label per pixel of the frame"
        )


def _font(frame: Frame) -> Any:
    return ImageFont.load_default(size=max(_MIN_TEXT, round(min(frame.shape[:2]) / _TEXT_ROWS)))


def _tag(draw: ImageDraw.ImageDraw, font: Any, place: tuple[int, int, int, int], obj_id: int) -> None:
    draw.rectangle(place, fill=_colour(obj_id))
    draw.text(_centre(place), str(obj_id), _BAR_COLOUR, font, anchor="mm")


def _centre(place: tuple[int, int, int, int]) -> tuple[float, float]:
    return (place[0] + place[2]) / 2, (place[1] + place[3]) / 2


def _colour(obj_id: int) -> tuple[int, int, int]:
    """The colour of an object's contour: light, so that dark text on it is readable."""
    red, green, blue = _CONTOURS[obj_id].tolist()
    return red, green, blue


def _line_width(frame: Frame, rows_per_pixel: int) -> int:
    return max(1, round(min(frame.shape[:2]) / rows_per_pixel))


def _edge(labels: Labels, width: int) -> npt.NDArray[np.bool_]:
    """Pixels within `width` of a pixel of another label; the border of the frame is no edge."""
    low, high = labels, labels
    for step in range(width):
        low, high = _spread(low, np.minimum, step % 2 == 1), _spread(high, np.maximum, step % 2 == 1)
    return low != high


def _spread(values: Labels, keep: np.ufunc, diagonal: bool) -> Labels:
    """The least or greatest of each pixel and its neighbours; taking turns with diagonals keeps corners round."""
    out = values.copy()
    keep(out[1:], values[:-1], out=out[1:])
    keep(out[:-1], values[1:], out=out[:-1])
    across = out.copy() if diagonal else values
    keep(out[:, 1:], across[:, :-1], out=out[:, 1:])
    keep(out[:, :-1], across[:, 1:], out=out[:, :-1])
    return out


def _pixels(index: int, columns: int, window_h: float, window_w: float) -> tuple[int, int, int, int]:
    row, column = divmod(index, columns)
    return (
        round(row * window_h),
        round(column * window_w),
        round((row + 1) * window_h),
        round((column + 1) * window_w),
    )


def _require_grid(frame: Frame, rows: int, columns: int, window_h: float, window_w: float) -> None:
    if rows < 1 or columns < 1:
        raise VideoError(f"a grid of {rows}x{columns} windows, expected at least 1x1")
    if not (math.isfinite(window_h) and math.isfinite(window_w) and window_h > 0 and window_w > 0):
        raise VideoError(f"windows of {window_h}x{window_w} pixels (height x width), expected numbers above 0")
    height, width = frame.shape[:2]
    # Half a pixel of slack: window sizes come from divisions.
    if rows * window_h < height - 0.5 or columns * window_w < width - 0.5:
        raise VideoError(
            f"a grid of {rows}x{columns} windows of {window_h:g}x{window_w:g} pixels covers "
            f"{rows * window_h:g}x{columns * window_w:g} (height x width), "
            f"expected at least the frame, {height}x{width}"
        )


def _fit(text: str, font: Any, width: int) -> str:
    room = width - 4
    if font.getlength(text) <= room:
        return text
    while text and font.getlength(text + "…") > room:
        text = text[:-1]
    return text + "…" if text else ""


def _describe(value: Any) -> str:
    return (
        f"{value.dtype} of shape {value.shape}" if isinstance(value, np.ndarray) else f"of type {type(value).__name__}"
    )

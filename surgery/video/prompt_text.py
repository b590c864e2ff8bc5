"""Prompts as people type them on a command line: `10,20,110,220@0#1`.

After "@" comes a frame: the one of exactly this name where the video's frames have names, else the one at this index,
from 0. A name that holds "@" or "#" cannot be typed; its index can.
"""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from contextlib import suppress
from typing import Any

from surgery.errors import PromptError, nearest
from surgery.video.prompts import BoxPrompt, MaskPrompt, PointPrompt, load_mask_prompts

BOX_FORM = "x0,y0,x1,y1[@frame][#id]"
POINT_FORM = "x,y[,label][@frame][#id]"


def parse_box(text: str, names: Sequence[str] | None = None) -> BoxPrompt:
    """Read `x0,y0,x1,y1[@frame][#id]`: corners in pixels, frame (default the first), object id 1..255 (default 1).

    Whether the box lies inside the video is for `check` to say.

    Args:
        names: what the video's frames are called, if they have names (`Video.names`).

    Raises:
        PromptError: anything else.
    """
    numbers, frame, obj_id = _split(text, "box", BOX_FORM, names)
    if len(numbers) != 4:
        raise PromptError(f"box {text!r} has {len(numbers)} numbers, expected 4: {BOX_FORM}")
    x0, y0, x1, y1 = numbers
    return BoxPrompt(x0, y0, x1, y1, obj_id, frame)


def parse_point(text: str, names: Sequence[str] | None = None) -> PointPrompt:
    """Read `x,y[,label][@frame][#id]`: pixels, label 1 on the object (default) or 0 off it, frame and id as for boxes.

    Several points on one object in one frame belong together: join them with `merge_points`.

    Raises:
        PromptError: anything else.
    """
    numbers, frame, obj_id = _split(text, "point", POINT_FORM, names)
    if len(numbers) not in (2, 3):
        raise PromptError(f"point {text!r} has {len(numbers)} numbers, expected 2 or 3: {POINT_FORM}")
    x, y, label = (*numbers, 1)[:3]
    return PointPrompt(((x, y),), (int(label) if label in (0, 1) else label,), obj_id, frame)


def parse_mask(text: str, names: Sequence[str] | None = None) -> list[MaskPrompt]:
    """Read `path[@frame]` and the label PNG it names; see `load_mask_prompts`. The path may hold an "@" of its own.

    Raises:
        PromptError: no such file, no such frame, or not a label PNG with an object.
    """
    path = mask_path(text)
    if not os.path.isfile(path):
        raise PromptError(f"no mask file at {text!r}, expected a label PNG and, if need be, its frame: PNG[@FRAME]")
    target = text[len(path) + 1 :]
    return load_mask_prompts(path, _frame(target, names, f"mask {text!r}", "PNG[@FRAME]") if path != text else 0)


def mask_path(text: str) -> str:
    """The path in what `parse_mask` reads."""
    path, sign, _ = text.rpartition("@")
    return path if sign and os.path.isfile(path) else text


def _split(text: str, kind: str, form: str, names: Sequence[str] | None) -> tuple[list[Any], int, int]:
    head, *tail = re.split(r"([@#])", text)
    target = dict(zip(tail[::2], map(str.strip, tail[1::2]), strict=True))
    if 2 * len(target) < len(tail):
        raise PromptError(f"{kind} {text!r} names the frame or the id twice, expected each once: {form}")
    try:
        numbers, obj_id = [float(item) for item in head.split(",")], int(target.get("#", 1))
    except ValueError as error:
        raise PromptError(f"{kind} {text!r}: {error!s:.200}, expected numbers: {form}") from error
    return numbers, _frame(target["@"], names, f"{kind} {text!r}", form) if "@" in target else 0, obj_id


def _frame(value: str, names: Sequence[str] | None, where: str, form: str) -> int:
    if names is not None and value in names:
        return names.index(value)
    with suppress(ValueError):
        index = int(value)
        if index >= 0 and (names is None or index < len(names)):
            return index
    known = "an integer"
    if names is not None:
        known = f"a frame's name ({names[0]} to {names[-1]}) or its index, 0..{len(names) - 1}{nearest(value, names)}"
    raise PromptError(f"{where} has frame {value!r} after '@', expected {known}: {form}")

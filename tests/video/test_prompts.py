from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from PIL import Image

from surgery.errors import PromptError
from surgery.video import (
    BoxPrompt,
    MaskPrompt,
    PointPrompt,
    Prompt,
    check,
    load_mask_prompts,
    merge_points,
    parse_box,
    parse_mask,
    parse_point,
    write_label_png,
)

SIZE = (48, 64)


def wrong(value: object) -> Any:
    """A value of a type the call does not take, past the type checker."""
    return value


def test_boxes() -> None:
    assert parse_box("1,2,30,40") == BoxPrompt(1, 2, 30, 40, obj_id=1, frame=0)
    assert parse_box(" 1.5, 2. ,+30,.5 @7 #3 ") == BoxPrompt(1.5, 2, 30, 0.5, obj_id=3, frame=7)
    assert parse_box("-1,2,30,40#3@7") == BoxPrompt(-1, 2, 30, 40, obj_id=3, frame=7)


def test_points() -> None:
    assert parse_point("1,2") == PointPrompt(((1, 2),), (1,), obj_id=1, frame=0)
    assert parse_point("1,2,0@5#2") == PointPrompt(((1, 2),), (0,), obj_id=2, frame=5)
    assert parse_point("1.25,2#255") == PointPrompt(((1.25, 2),), (1,), obj_id=255, frame=0)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "box '': could not convert string to float"),
        ("1,2,3", "has 3 numbers, expected 4"),
        ("1,2,3,four", "could not convert string to float: 'four', expected numbers: x0"),
        ("1,2,3,", "string to float: ''"),
        ("1,2,3,nan", "box coordinate nan, expected a finite number"),
        ("1,2,3," + "9" * 400, "box coordinate inf"),
        ("1,2,3,4@", "has frame '' after '@', expected an integer"),
        ("1,2,3,4@-1", "has frame '-1' after '@'"),
        ("1,2,3,4@1@2", "names the frame or the id twice"),
        ("1,2,3,4#1#2", "names the frame or the id twice"),
        ("1,2,3,4#0", r"object id 0, expected an integer 1\.\.255"),
        ("1,2,3,4#256", r"object id 256, expected an integer 1\.\.255"),
        ("1,2,3,4#" + "1" * 5000, "integer string conversion"),
    ],
)
def test_bad_boxes(text: str, message: str) -> None:
    with pytest.raises(PromptError, match=message):
        parse_box(text)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("1", r"point '1' has 1 numbers, expected 2 or 3: x,y\[,label\]"),
        ("1,2,3,4", "has 4 numbers, expected 2 or 3"),
        ("1,2,2", r"point label 2\.0, expected 1 \(on the object\) or 0"),
        ("1,y", "string to float: 'y', expected numbers: x,y"),
    ],
)
def test_bad_points(text: str, message: str) -> None:
    with pytest.raises(PromptError, match=message):
        parse_point(text)


almost = st.text(st.sampled_from("0123456789.,@#+- eEinfa"), max_size=30)


@given(st.text(max_size=40) | almost | st.from_regex(r"[0-9.]{1,12}(,-?[0-9.]{1,12}){1,3}(@[0-9]+)?(#[0-9]+)?"))
@example("1,2,3,4#5\x1f")
def test_any_text_parses_or_is_a_prompt_error(text: str) -> None:
    parsers: tuple[Callable[[str], BoxPrompt | PointPrompt], ...] = (parse_box, parse_point)
    for parse in parsers:
        try:
            prompt = parse(text)
        except PromptError:
            continue
        assert 1 <= prompt.obj_id <= 255
        assert prompt.frame >= 0
        values = prompt.points[0] if isinstance(prompt, PointPrompt) else (prompt.x0, prompt.y1)
        assert all(math.isfinite(value) for value in values)


coordinate = st.integers(-99999, 99999) | st.floats(-99999, 99999).map(lambda value: round(value, 3))


NAMES = ("00001", "00002", "00003", "shot-7")


@pytest.mark.parametrize(
    ("typed", "index"), [("00001", 0), ("00003", 2), ("shot-7", 3), ("3", 3), ("0", 0), ("002", 2)]
)
def test_a_frame_is_meant_by_its_exact_name_first_and_else_by_its_index(typed: str, index: int) -> None:
    assert parse_box(f"1,2,3,4@{typed}#5", NAMES) == BoxPrompt(1, 2, 3, 4, 5, index)
    assert parse_box(f"1,2,3,4#5@{typed}", NAMES).frame == parse_point(f"1,2@{typed}", NAMES).frame == index


@pytest.mark.parametrize(("typed", "near"), [("4", ""), ("shot7", " (did you mean 'shot-7'?)")])
def test_a_frame_that_is_not_there_is_told_from_those_that_are(typed: str, near: str) -> None:
    with pytest.raises(PromptError) as caught:
        parse_point(f"1,2@{typed}", NAMES)
    assert f"frame {typed!r} after '@', expected a frame's name (00001 to shot-7) or its index, 0..3{near}:" in str(
        caught.value
    )


def test_a_mask_and_its_frame(tmp_path: Path) -> None:
    path = tmp_path / "a@2x.png"
    write_label_png(path, np.eye(4, dtype=np.uint8) * 7)
    assert [(one.obj_id, one.frame) for one in parse_mask(str(path))] == [(7, 0)]
    assert parse_mask(f"{path}@3")[0].frame == 3
    assert parse_mask(f"{path}@00003", NAMES)[0].frame == 2
    with pytest.raises(PromptError, match=r"mask '.*@²' has frame '²' after '@', expected an integer"):
        parse_mask(f"{path}@²")
    for text in ("nowhere.png@3", "x" * 300, "nul\0"):
        with pytest.raises(PromptError, match="no mask file at"):
            parse_mask(text)


@given(coordinate, coordinate, st.sampled_from([0, 1]), st.integers(0, 10**8), st.integers(1, 255))
def test_what_is_written_out_is_read_back(x: float, y: float, label: int, frame: int, obj_id: int) -> None:
    text = f"{x:.3f},{y:.3f},{label}@{frame}#{obj_id}"
    assert parse_point(text) == PointPrompt(((x, y),), (label,), obj_id, frame)
    assert parse_box(f"{x:.3f},{y:.3f},{y:.3f},{x:.3f}#{obj_id}@{frame}") == BoxPrompt(x, y, y, x, obj_id, frame)


def test_points_of_one_object_and_frame_are_merged() -> None:
    texts = ["1,2#2", "3,4,0#2", "5,6@1#2", "7,8#1", "9,9#2"]
    assert merge_points(parse_point(text) for text in texts) == [
        PointPrompt(((1, 2), (3, 4), (9, 9)), (1, 0, 1), 2, 0),
        PointPrompt(((5, 6),), (1,), 2, 1),
        PointPrompt(((7, 8),), (1,), 1, 0),
    ]
    assert merge_points([]) == []


def test_a_label_png_gives_a_mask_per_object(tmp_path: Path) -> None:
    labels = np.zeros(SIZE, np.uint8)
    labels[:4, :4], labels[10:, 10:] = 9, 2
    write_label_png(tmp_path / "a.png", labels)
    prompts = load_mask_prompts(tmp_path / "a.png", frame=3)
    assert [(prompt.obj_id, prompt.frame) for prompt in prompts] == [(2, 3), (9, 3)]
    np.testing.assert_array_equal(prompts[1].mask, labels == 9)
    check(prompts, SIZE, 4)


@pytest.mark.parametrize("mode", ["L", "1"])
def test_a_black_and_white_mask_is_object_1(tmp_path: Path, mode: str) -> None:
    mask = np.zeros(SIZE, bool)
    mask[5:9] = True
    Image.fromarray(mask.astype(np.uint8) * 255).convert(mode).save(tmp_path / "a.png")
    (prompt,) = load_mask_prompts(tmp_path / "a.png")
    assert (prompt.obj_id, prompt.frame) == (1, 0)
    np.testing.assert_array_equal(prompt.mask, mask)


def test_greyscale_labels_below_255_are_labels(tmp_path: Path) -> None:
    Image.fromarray(np.array([[0, 1, 128]], np.uint8)).save(tmp_path / "a.png")
    assert [prompt.obj_id for prompt in load_mask_prompts(tmp_path / "a.png")] == [1, 128]


def test_index_255_of_a_palette_is_an_object(tmp_path: Path) -> None:
    write_label_png(tmp_path / "a.png", np.array([[0, 255]], np.uint8))
    assert [prompt.obj_id for prompt in load_mask_prompts(tmp_path / "a.png")] == [255]


def test_masks_that_say_nothing_or_too_much(tmp_path: Path) -> None:
    write_label_png(tmp_path / "a.png", np.zeros(SIZE, np.uint8))
    with pytest.raises(PromptError, match=r"a\.png: the mask is empty, expected at least one pixel"):
        load_mask_prompts(tmp_path / "a.png")
    Image.fromarray(np.array([[0, 80, 160, 255]], np.uint8)).save(tmp_path / "b.png")
    with pytest.raises(PromptError, match=r"b\.png: a greyscale mask with 255 and 2 other values.*threshold"):
        load_mask_prompts(tmp_path / "b.png")
    with pytest.raises(PromptError, match=r"c\.png: no such file"):
        load_mask_prompts(tmp_path / "c.png")


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: BoxPrompt(0, 0, 1, math.inf), "box coordinate inf, expected a finite number"),
        (lambda: BoxPrompt(0, 0, 1, wrong("2")), "box coordinate '2', expected a finite number"),
        (lambda: BoxPrompt(0, 0, 1, 1, obj_id=0), "object id 0"),
        (lambda: BoxPrompt(0, 0, 1, 1, frame=-1), "frame -1 of a prompt, expected an integer from 0"),
        (lambda: BoxPrompt(0, 0, 1, 1, frame=wrong(1.0)), "frame 1.0 of a prompt"),
        (lambda: PointPrompt((), ()), "0 points and 0 labels, expected one label per point"),
        (lambda: PointPrompt(((1, 2),), (1, 1)), "1 points and 2 labels"),
        (lambda: PointPrompt(wrong(((1, 2, 3),)), (1,)), r"point \(1, 2, 3\), expected \(x, y\)"),
        (lambda: PointPrompt(((1, 2),), (2,)), "point label 2, expected 1"),
        (lambda: PointPrompt(((1, math.nan),), (1,)), "point coordinate nan"),
        (
            lambda: MaskPrompt(wrong(np.ones((2, 2)))),
            r"got a ndarray of float64 and shape \(2, 2\), expected a \(height, width\) bool",
        ),
        (lambda: MaskPrompt(wrong([[True]])), "got a list of None"),
        (lambda: MaskPrompt(np.zeros((2, 2), bool)), "mask of object 1 in frame 0 is empty"),
    ],
)
def test_prompts_that_cannot_be_made(make: object, message: str) -> None:
    with pytest.raises(PromptError, match=message):
        make()  # type: ignore[operator]


FULL = np.ones(SIZE, bool)


@pytest.mark.parametrize(
    "prompts",
    [
        [BoxPrompt(0, 0, 64, 48)],
        [BoxPrompt(0.5, 0.5, 1.5, 1)],
        [PointPrompt(((0, 1), (1, 0)), (1, 1))],
        [PointPrompt(((0.5, 0.5), (1.5, 1)), (1, 1))],
        [PointPrompt(((0, 0), (63.9, 47.9)), (1, 0))],
        [MaskPrompt(FULL)],
        [BoxPrompt(1, 1, 9, 9), PointPrompt(((4, 4),), (0,))],
        [MaskPrompt(FULL), PointPrompt(((4, 4),), (0,), 1, 5), BoxPrompt(1, 1, 9, 9, 2, 0)],
    ],
)
@pytest.mark.parametrize("num_frames", [6, None])
def test_prompts_that_fit(prompts: list[Prompt], num_frames: int | None) -> None:
    check(prompts, SIZE, num_frames)


@pytest.mark.parametrize(
    ("prompts", "message"),
    [
        ([], "no prompt, expected at least one box, point or mask"),
        ([BoxPrompt(1, 1, 9, 9, frame=6)], r"frame 6 of a prompt, expected 0\.\.5"),
        ([BoxPrompt(9, 9, 1, 1)], "box 9,9,1,1 of object 1 has no area, .*did you mean 1,1,9,9?"),
        ([BoxPrompt(9, 1, 9, 5)], r"box 9,1,9,5 of object 1 has no area, expected x0 < x1 and y0 < y1$"),
        ([BoxPrompt(0.25, 0.5, 0.75, 1)], r"lies in 0\.\.1.*expected pixels: of 64x48.*would be 16,24,48,48$"),
        ([BoxPrompt(0, 0, 1, 1)], r"expected pixels: .*would be 0,0,64,48$"),
        ([PointPrompt(((0.5, 0.25), (1, 1)), (1, 0))], r"point 0\.5,0\.25 of object 1 lies in 0\.\.1.*would be 32,12$"),
        ([BoxPrompt(-1, 1, 9, 60)], r"leaves the frame, expected x in 0\.\.64 and y in 0\.\.48; .*inside is 0,1,9,48"),
        ([BoxPrompt(70, 1, 80, 9)], r"box 70,1,80,9 of object 1 leaves the frame, .* 0\.\.48$"),
        ([PointPrompt(((64, 5),), (1,))], r"point 64,5 .*outside the frame, .*0\.\.63 .*the nearest is 63,5"),
        ([PointPrompt(((3, -1),), (1,))], "the nearest is 3,0"),
        ([MaskPrompt(np.ones((64, 48), bool), 4)], "mask of object 4 has 64x48 pixels .* expected 48x64"),
        ([MaskPrompt(FULL), PointPrompt(((1, 1),), (1,))], "object 1 in frame 0 has a mask and points, expected one"),
        ([BoxPrompt(1, 1, 9, 9), MaskPrompt(FULL)], "object 1 in frame 0 has a mask and box"),
        ([BoxPrompt(1, 1, 9, 9), BoxPrompt(1, 1, 5, 5)], "has 2 prompts of the kind 'box', expected one"),
        ([MaskPrompt(FULL), MaskPrompt(FULL)], "has 2 prompts of the kind 'mask', expected one"),
        ([PointPrompt(((1, 1),), (1,)), PointPrompt(((2, 2),), (1,))], "join them with merge_points"),
        ([BoxPrompt(1, 1, 9, 9), PointPrompt(((1, 1),), (0,), 2)], "object 2 has only points off the object"),
    ],
)
def test_prompts_that_do_not_fit(prompts: list[Prompt], message: str) -> None:
    with pytest.raises(PromptError, match=message):
        check(prompts, SIZE, 6)

from __future__ import annotations

import numpy as np
import pytest

from surgery.errors import VideoError
from surgery.video import draw_ids, draw_masks, draw_windows, with_legend

from .clips import picture

GREY = np.full((40, 60, 3), 100, np.uint8)


def test_masks_tint_the_inside_and_draw_both_sides_of_the_edge() -> None:
    labels = np.zeros((40, 60), np.uint8)
    labels[10:30, 20:40] = 1
    before = GREY.copy()
    out = draw_masks(GREY, labels)
    np.testing.assert_array_equal(GREY, before)
    assert out.shape == GREY.shape
    assert out.dtype == np.uint8
    assert out[20, 30].tolist() == [114, 50, 50]  # half grey, half (128, 0, 0)
    assert out[20, 20].tolist() == out[10, 30].tolist() == out[29, 30].tolist() == [192, 128, 128]
    assert out[20, 19].tolist() == out[9, 30].tolist() == [50, 50, 50]
    assert out[20, 18].tolist() == [100, 100, 100]
    np.testing.assert_array_equal(out[:8], GREY[:8])


def test_neighbours_have_a_contour_each_and_the_frame_is_no_edge() -> None:
    labels = np.full((40, 60), 1, np.uint8)
    labels[:, 30:] = 2
    out = draw_masks(GREY, labels)
    assert out[5, 29].tolist() == [192, 128, 128]
    assert out[5, 30].tolist() == [128, 192, 128]
    assert (out[0, 0].tolist(), out[-1, -1].tolist()) == ([114, 50, 50], [50, 114, 50])


def test_contours_grow_with_the_frame() -> None:
    labels = np.zeros((960, 960), np.uint8)
    labels[:, 480:] = 1
    out = draw_masks(np.full((960, 960, 3), 100, np.uint8), labels)
    assert (out[480, 480:, 0] > 150).sum() == (out[480, :480, 0] < 60).sum() == 4


def test_no_objects_and_the_smallest_frame() -> None:
    np.testing.assert_array_equal(draw_masks(GREY, np.zeros((40, 60), np.uint8)), GREY)
    assert draw_masks(GREY[:1, :1], np.ones((1, 1), np.uint8)).shape == (1, 1, 3)


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        (np.zeros((60, 40), np.uint8), r"labels uint8 of shape \(60, 40\), expected uint8 of shape \(40, 60\)"),
        (np.zeros((40, 60), bool), "labels bool of shape"),
    ],
)
def test_bad_masks(labels: np.ndarray, message: str) -> None:
    with pytest.raises(VideoError, match=message):
        draw_masks(GREY, labels)


def test_windows_darken_what_was_not_computed() -> None:
    out = draw_windows(GREY, (2, 3), (20.0, 20.0), {1, 5})
    border, dark = [255, 200, 60], [42, 42, 42]
    assert out[10, 30].tolist() == out[30, 50].tolist() == [100, 100, 100]
    assert out[10, 10].tolist() == out[30, 10].tolist() == out[30, 30].tolist() == out[10, 50].tolist() == dark
    assert out[10, 20].tolist() == out[10, 39].tolist() == out[0, 30].tolist() == out[39, 50].tolist() == border
    assert out[10, 18].tolist() == dark


def test_padded_windows_of_fractional_size_reach_beyond_the_frame() -> None:
    out = draw_windows(GREY, (3, 3), (16.6, 24.2), {8})
    assert out[36, 55].tolist() == [100, 100, 100]
    assert out[20, 30].tolist() == [42, 42, 42]


def test_all_windows_and_none() -> None:
    every = draw_windows(picture(0), (2, 2), (24, 32), {0, 1, 2, 3})
    inside = np.zeros((48, 64), bool)
    inside[2:22, 2:30] = inside[26:46, 34:62] = True
    np.testing.assert_array_equal(every[inside], picture(0)[inside])
    none = draw_windows(GREY, (2, 3), (20, 20), set())
    assert np.unique(none).tolist() == [42]


@pytest.mark.parametrize(
    ("kept", "message"),
    [({6}, r"window 6, expected 0\.\.5 in a grid of 2x3"), ({-1}, "window -1, expected")],
)
def test_bad_windows(kept: set[int], message: str) -> None:
    with pytest.raises(VideoError, match=message):
        draw_windows(GREY, (2, 3), (20, 20), kept)


def test_what_is_no_frame() -> None:
    with pytest.raises(VideoError, match="the frame to draw on: got float64 values"):
        draw_masks(GREY.astype(float), np.zeros((40, 60), np.uint8))


def test_ids_are_written_on_top_of_objects_and_inside_where_there_is_no_room() -> None:
    labels = np.zeros((80, 120), np.uint8)
    labels[30:50, 20:40], labels[0:40, 80:100], labels[78:, 118:] = 1, 2, 3
    frame = np.full((80, 120, 3), 100, np.uint8)
    before = frame.copy()
    changed = (draw_ids(frame, labels) != 100).any(axis=2)
    np.testing.assert_array_equal(frame, before)
    tags = [np.argwhere(changed[rows, columns]) for rows, columns in (np.s_[:, :60], np.s_[:60, 60:], np.s_[60:, 60:])]
    assert all(len(tag) for tag in tags)
    assert tags[0][:, 0].max() in (29, 30) and tags[0][:, 0].min() > 15
    assert tags[0][:, 1].mean() == pytest.approx(29.5, abs=1)
    assert tags[1][:, 0].min() == 0 and tags[1][:, 1].mean() == pytest.approx(29.5, abs=1)
    assert tags[2][:, 1].max() == 59, "a tag stays inside the frame"
    np.testing.assert_array_equal(draw_ids(frame, np.zeros((80, 120), np.uint8)), frame)
    assert draw_ids(frame[:1, :1], np.ones((1, 1), np.uint8)).shape == (1, 1, 3)


def test_the_legend_names_all_objects_and_outlines_those_out_of_sight() -> None:
    both, one = with_legend(GREY, [1, 2], {1, 2}), with_legend(GREY, [1, 2], {1})
    assert both.shape == one.shape
    np.testing.assert_array_equal(both[:40], GREY)
    strip, other = both[40:], one[40:]
    red, green = ((strip == colour).all(axis=2) for colour in ([192, 128, 128], [128, 192, 128]))
    assert red.sum() > 60 and green.sum() > 60
    np.testing.assert_array_equal((other == [192, 128, 128]).all(axis=2), red)
    assert 0 < (other == [128, 192, 128]).all(axis=2).sum() < green.sum()
    assert (with_legend(GREY, [1], {1}, "dark") != with_legend(GREY, [1], {1})).any()


def test_the_legend_of_many_objects_goes_on_in_another_row() -> None:
    heights = [with_legend(GREY, list(range(1, count + 1)), set()).shape[0] - 40 for count in (1, 2, 9, 255)]
    assert heights == sorted(heights) and heights[0] == heights[1] < heights[2] < heights[3]
    with pytest.raises(VideoError, match="the frame to draw on"):
        with_legend(GREY[..., 0], [1], {1})
    with pytest.raises(VideoError, match="labels uint8 of shape"):
        draw_ids(GREY, np.zeros((3, 3), np.uint8))


def test_a_legend_that_does_not_fit_takes_another_line() -> None:
    frame = np.zeros((256, 256, 3), dtype=np.uint8)
    note = "objects; outlined: out of sight; dark: windows not computed"
    low, high = with_legend(frame, [1], {1}, "objects"), with_legend(frame, [1], {1}, note)
    assert high.shape[0] > low.shape[0]
    assert with_legend(frame, [1], set(), note).shape == high.shape
    assert (high[low.shape[0] :] != high[-1, -1]).any(), "the second line is written"

"""Tracking with either host: where it starts and ends, and going on from masks."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import pytest

from surgery import VideoError, sparsify
from surgery.demo import load
from surgery.tracking import TrackedFrame, track
from surgery.video import BoxPrompt, MaskPrompt, PointPrompt, Prompt, continued, labels_from_logits, open_video
from surgery.video.arrays import ArrayVideo

HOSTS = ("sam2", "transformers")
BOX = BoxPrompt(20, 30, 50, 60)
SECOND = BoxPrompt(80, 5, 110, 25, 2, 2)
Labels = np.ndarray


def clip(frames: int = 10) -> list[np.ndarray]:
    pixels = np.full((frames, 90, 120, 3), 40, dtype=np.uint8)
    for number in range(frames):
        pixels[number, 30:60, 20 + 4 * number : 50 + 4 * number] = (230, 90, 20)
        pixels[number, 5:25, 80:110] = (40, 90, 220)
    return list(pixels)


def labels(results: Iterator[TrackedFrame]) -> dict[int, Labels]:
    return {result.index: labels_from_logits(result.logits) for result in results}


class Unreliable(ArrayVideo):
    """A file that does not know its length, or cannot be decoded from some frame on."""

    def __init__(self, frames: Sequence[np.ndarray], broken: int | None = None, declared: int | None = None) -> None:
        super().__init__(frames)
        self.fps, self.num_frames, self.broken = 25.0, declared, broken

    def __iter__(self) -> Iterator[np.ndarray]:
        for index, frame in enumerate(super().__iter__()):
            if index == self.broken:
                raise VideoError(f"frame {index} is broken")
            yield frame


@pytest.mark.parametrize("host", HOSTS)
def test_frames_before_a_broken_one_are_tracked(host: str) -> None:
    results = track(load(host=host), Unreliable(clip(), broken=4), [BOX])
    assert [next(results).index for _ in range(4)] == [0, 1, 2, 3]
    with pytest.raises(VideoError, match="frame 4 is broken"):
        next(results)


@pytest.mark.parametrize("host", HOSTS)
@pytest.mark.parametrize("frames", [5, 18])
def test_a_file_of_unknown_length_tracks_as_a_list_of_frames_does(host: str, frames: int) -> None:
    model = load(host=host)
    expected = list(track(model, open_video(clip(frames)), [BOX, SECOND]))
    found = list(track(model, Unreliable(clip(frames)), [BOX, SECOND]))
    assert [one.index for one in found] == list(range(frames))
    for one, other in zip(found, expected, strict=True):
        for obj_id in one.logits:
            np.testing.assert_array_equal(one.logits[obj_id], other.logits[obj_id])


@pytest.mark.parametrize("host", HOSTS)
def test_a_video_that_ends_before_a_prompt_says_so(host: str) -> None:
    results = track(load(host=host), Unreliable(clip(5), declared=9), [BOX, BoxPrompt(80, 5, 110, 25, 2, 7)])
    assert [next(results).index for _ in range(5)] == list(range(5))
    with pytest.raises(VideoError, match="ended after 5 frames, before the prompt on frame 7"):
        next(results)


@pytest.mark.parametrize("host", HOSTS)
@pytest.mark.parametrize(("recipe", "last"), [(None, 2), ("turbo", 6)])
def test_going_on_from_masks(host: str, recipe: str | None, last: int) -> None:
    model: Any = load(host=host)
    if recipe is not None:
        sparsify(model, recipe)
    video = open_video(clip())
    prompts: list[Prompt] = [BOX, SECOND, BoxPrompt(20, 1, 30, 4, 3, 8)]
    whole = labels(track(model, video, prompts))
    rest = continued(prompts, last, whole.__getitem__)
    results = list(track(model, video, rest, last))
    assert [set(result.logits) for result in results[-3:]] == [{1, 2}, {1, 2, 3}, {1, 2, 3}]
    found, again = labels(iter(results)), labels(track(model, video, rest, last))
    assert list(found) == list(range(last + 1, 10))
    for index, one in found.items():
        np.testing.assert_array_equal(one, again[index])
        assert (one == whole[index]).mean() > 0.97


@pytest.mark.parametrize("host", HOSTS)
def test_going_on_after_a_frame_where_all_was_prompted_loses_nothing(host: str) -> None:
    model, video = load(host=host), open_video(clip())
    whole = labels(track(model, video, [BOX]))
    found = labels(track(model, video, continued([BOX], 0, whole.__getitem__), 0))
    for index in range(1, 10):
        np.testing.assert_array_equal(found[index], whole[index])


@pytest.mark.parametrize("host", HOSTS)
def test_going_on_at_the_end_or_without_any_object_in_sight(host: str) -> None:
    model, video = load(host=host), open_video(clip())
    assert labels(track(model, video, [BOX], 9)) == {}
    nothing = np.zeros((90, 120), np.uint8)
    assert list(labels(track(model, video, continued([BOX], 6, lambda _: nothing), 6))) == [7, 8, 9]


def test_what_an_object_is_prompted_with_to_go_on() -> None:
    one, two = np.zeros((9, 9), np.uint8), np.zeros((9, 9), np.uint8)
    one[:3] = 1
    two[:3], two[3:6] = 2, 1
    written = {3: one, 4: two, 5: one}
    point, off = PointPrompt(((1, 1),), (1,), 1, 3), PointPrompt(((1, 1),), (0,), 2, 5)
    later = BoxPrompt(1, 1, 3, 3, 2, 7)
    start: list[Prompt] = [BoxPrompt(0, 0, 9, 3, 1, 1), BoxPrompt(0, 0, 9, 3, 2, 1)]
    found = continued([*start, point, off, later], 5, written.__getitem__)
    # The correction of object 1 gives way to its mask; object 2 has none where it was corrected.
    assert found[:4] == [*start, off, later]
    masks = [prompt for prompt in found[4:] if isinstance(prompt, MaskPrompt)]
    assert [(mask.frame, mask.obj_id) for mask in masks] == [(3, 1), (5, 1)]
    np.testing.assert_array_equal(masks[0].mask, one == 1)

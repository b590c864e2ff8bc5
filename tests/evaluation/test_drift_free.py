"""Drift-free fidelity: sparse frames from the dense model's own state, on both hosts."""

from __future__ import annotations

import numpy as np
import pytest
import torch

import surgery
from surgery import ModelStateError, PromptError, Recipe, VideoError, demo
from surgery.demo.clips import make_clip
from surgery.evaluation.drift_free import Comparison, Summary, drift_free, summarise
from surgery.video import BoxPrompt, MaskPrompt, Prompt, Video, open_video

HOSTS = ("sam2", "transformers")


def clip(frames: int = 14, seed: int = 3) -> tuple[Video, list[Prompt]]:
    made = make_clip(seed, frames, objects=2)
    return open_video(made.frames), [MaskPrompt(made.labels[0] == label, label) for label in (1, 2)]


def cut(host: str, recipe: str = "balanced", overrides: tuple[str, ...] = ()) -> object:
    return surgery.sparsify(demo.load(host), Recipe.load(recipe, overrides))


@pytest.mark.parametrize("host", HOSTS)
@torch.inference_mode()
def test_an_exact_recipe_loses_nothing(host: str) -> None:
    rows = list(drift_free(cut(host, "exact"), *clip(), steps=(1, 4), every=4))
    assert [(row.frame, row.steps) for row in rows] == [(1, 1), (4, 4), (5, 1), (8, 4), (9, 1), (12, 4)]
    assert all(row.masks == 1.0 and row.on_object == 0.0 and row.elsewhere == 0.0 for row in rows)


@pytest.mark.parametrize("recipe", ["balanced", "turbo"])
@torch.inference_mode()
def test_hosts_agree_and_sparse_frames_are_sparse(recipe: str) -> None:
    found = {host: list(drift_free(cut(host, recipe), *clip(), steps=(1, 3))) for host in HOSTS}
    for one, other in zip(*found.values(), strict=True):
        assert (one.frame, one.steps) == (other.frame, other.steps)
        # A mask prompt is remembered differently, see `demo.load`.
        assert one.masks == pytest.approx(other.masks, abs=0.1)
        assert one.on_object == pytest.approx(other.on_object, abs=0.03)
        assert 0 < one.kept["windows"] < 0.8
    assert any(row.elsewhere > 0.01 for row in found["sam2"])


@pytest.mark.parametrize("host", HOSTS)
@torch.inference_mode()
def test_every_start_is_the_dense_models_own_state(host: str) -> None:
    """A comparison does not depend on the ones before it: what ran sparse before leaves no trace."""
    video, prompts = clip()
    model = cut(host)
    every = {(row.frame, row.steps): row for row in drift_free(model, video, prompts, steps=(2,), every=2)}
    few = {(row.frame, row.steps): row for row in drift_free(model, video, prompts, steps=(2,), every=6)}
    assert set(few) == {(2, 2), (8, 2)}
    assert all(every[key] == few[key] for key in few)


@torch.inference_mode()
def test_a_window_that_is_never_computed_shows_elsewhere_or_on_the_object() -> None:
    """More windows, less error: the measure follows what it is to measure."""
    errors = []
    for budget in (0.1, 0.5, 0.9):
        model = cut("transformers", "balanced", (f"routing.budget={budget}", "routing.object.max_wait=null"))
        rows = summarise(list(drift_free(model, *clip(), steps=(4,))))
        errors.append(rows[0].elsewhere)
        assert rows[0].kept["windows"] == pytest.approx(budget, abs=0.07)
    assert errors == sorted(errors, reverse=True) and errors[0] > 2 * errors[-1]


def test_summaries_are_means_and_root_mean_squares() -> None:
    rows = [
        Comparison(1, 1, 1.0, 0.3, None, {"windows": 0.5}),
        Comparison(4, 4, 0.8, 0.3, 0.1, {"windows": 0.5}),
        Comparison(9, 4, 0.6, None, 0.7, {"windows": 0.1}),
    ]
    one, four = summarise(rows)
    assert one == Summary(1, 1, 1.0, 0.3, None, {"windows": 0.5})
    assert (four.masks, four.on_object, four.kept["windows"]) == pytest.approx((0.7, 0.3, 0.3))
    assert four.elsewhere == pytest.approx(0.5)


def test_bad_input_is_refused() -> None:
    video, prompts = clip(5)
    model = cut("sam2")
    with pytest.raises(VideoError, match="4 frames follow the prompts, expected at least 8"):
        list(drift_free(model, video, prompts))
    with pytest.raises(PromptError, match="all prompts on one frame"):
        list(drift_free(model, video, [*prompts, BoxPrompt(10, 10, 40, 40, 5, frame=2)], steps=(1,)))
    for steps in ((), (0, 4)):
        with pytest.raises(PromptError, match="numbers of frames, each at least 1"):
            list(drift_free(model, video, prompts, steps=steps))
    with pytest.raises(ModelStateError):
        list(drift_free(demo.load("sam2"), video, prompts, steps=(1,)))


@torch.inference_mode()
def test_a_long_video_is_held_a_few_frames_at_a_time() -> None:
    made = make_clip(3, 14, objects=1)
    held: list[int] = []

    def frames() -> np.ndarray:
        for frame in made.frames:
            held.append(1)
            yield frame

    video = open_video(frames())
    assert video.num_frames is None
    rows = list(drift_free(cut("transformers"), video, [MaskPrompt(made.labels[0] == 1)], steps=(3,)))
    assert [row.frame for row in rows] == [3, 6, 9, 12] and len(held) == 14

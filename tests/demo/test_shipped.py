"""The weights that ship: they fit, they track, and both hosts agree on them."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from surgery import sparsify
from surgery.demo import load, make_clip
from surgery.demo.clips import HELD_OUT, held_out
from surgery.demo.model import WEIGHTS
from surgery.demo.show import prompt_for, run
from surgery.tracking import track
from surgery.video import open_video


def test_the_file_is_small() -> None:
    assert WEIGHTS.stat().st_size <= 12e6


@pytest.mark.parametrize("prompt", ["mask", "box"])
def test_it_tracks_and_surgery_costs_little(prompt: str) -> None:
    models = {"dense": load("sam2"), "sparse": sparsify(load("sam2"), "balanced")}
    scores = run(models, held_out(200, 3, 12), prompt).as_dict()
    dense, sparse = scores["dense"], scores["sparse"]
    assert dense["j_and_f"] > 0.75
    assert sparse["j_and_f"] > dense["j_and_f"] - 0.05
    assert sparse["windows_kept"] < 0.95


@pytest.mark.parametrize("prompt", ["box", "point"])
def test_hosts_agree_on_every_pixel(prompt: str) -> None:
    """Logits are of the order of 20; memories are stored in bfloat16, where a difference of 1e-7 can flip a rounding.

    At least 16 frames: on shorter videos stock sam2 scales pointer times by the length, which a stream cannot know.
    """
    clip = make_clip(HELD_OUT + 1, 17)
    prompts = [prompt_for(prompt, clip.labels[0] == label, label) for label in range(1, clip.visible.shape[1] + 1)]
    runs: list[list[Any]] = [
        [found.logits for found in track(load(host), open_video(clip.frames), prompts)]  # type: ignore[arg-type]
        for host in ("sam2", "transformers")
    ]
    for ours, theirs in zip(*runs, strict=True):
        for obj_id, logits in ours.items():
            assert np.abs(logits - theirs[obj_id]).max() < 5e-3
            assert ((logits > 0) != (theirs[obj_id] > 0)).mean() < 1e-4

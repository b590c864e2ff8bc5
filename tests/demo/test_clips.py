"""Clips: the same bytes everywhere, masks that are exactly the visible pixels, and the DAVIS layout."""

from __future__ import annotations

import hashlib
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from surgery.demo.clips import MIN_AREA, ClipError, _render, make_clip, write_davis
from surgery.demo.fixedpoint import COS, ONE, SIN, TURN, polar_grid
from surgery.demo.scene import LEVELS, write_script

DIGESTS = {
    "easy": "5fe03937a931617687f23000ad0e0f8d0b5adea48c93b61bc3587d3e38953946",
    "medium": "55c45fbae1f46fd412d1c282bdd97242460f03bdeb3c22145d0d807731e0e349",
    "hard": "4949d6c75e469d9042c2b15644a0511787040401c9c7ac6f4ba23f7050d021f3",
}


def digest(*arrays: np.ndarray) -> str:
    return hashlib.sha256(b"".join(array.tobytes() for array in arrays)).hexdigest()


@pytest.mark.parametrize("difficulty", sorted(DIGESTS))
def test_a_seed_gives_the_committed_bytes(difficulty: str) -> None:
    clip = make_clip(7, frames=5, size=64, difficulty=difficulty, cuts=1)
    assert digest(clip.frames, clip.labels) == DIGESTS[difficulty]


def test_trigonometric_table_is_far_from_every_rounding_edge() -> None:
    exact = np.cos(2 * np.pi * np.arange(TURN) / TURN) * ONE
    assert np.abs(np.abs(exact - np.floor(exact)) - 0.5).min() > 1e-6
    assert (np.round(exact) == COS).all()
    assert abs(int(SIN[TURN // 4]) - ONE) == 0


def test_polar_grid_agrees_with_arctan() -> None:
    angle, radius2 = polar_grid()
    radius = np.sqrt(radius2)
    assert np.abs(radius * np.cos(angle * 2 * np.pi / TURN)).max() <= radius.max()
    u = np.round(radius * np.cos((angle + 0.5) * 2 * np.pi / TURN))
    assert np.abs(u - u[:1, :].repeat(len(u), 0)).max() < 60  # a column has one u: within half an angle step


@pytest.mark.parametrize("difficulty", sorted(LEVELS))
def test_labels_are_exactly_the_pixels_an_object_paints(difficulty: str) -> None:
    script = write_script(11, 0, 6, difficulty, 0, None, calm=False)
    script = replace(script, noise=0)
    frames, labels = _render(script, 128)
    for label in range(1, script.objects + 1):
        actors = tuple(
            replace(actor, look=replace(actor.look, colours=~actor.look.colours)) if actor.label == label else actor
            for actor in script.shots[0].actors
        )
        other, same = _render(replace(script, shots=(replace(script.shots[0], actors=actors),)), 128)
        assert (same == labels).all()
        assert ((other != frames).any(-1) == (labels == label)).all()


@pytest.mark.parametrize("difficulty", sorted(LEVELS))
@pytest.mark.parametrize("seed", range(6))
def test_every_object_shows_on_frame_0_and_visibility_follows_the_labels(difficulty: str, seed: int) -> None:
    clip = make_clip(seed, frames=8, size=128, difficulty=difficulty)
    count = clip.visible.shape[1]
    areas = np.stack([np.bincount(frame.ravel(), minlength=count + 1) for frame in clip.labels])
    assert clip.frames.shape == (8, 128, 128, 3)
    assert clip.frames.dtype == clip.labels.dtype == np.uint8
    assert areas.shape[1] == count + 1
    assert (areas[0, 1:] >= MIN_AREA // 4).all()
    assert (clip.visible == (areas[:, 1:] > 0)).all()
    low, high = LEVELS[difficulty].objects
    assert low <= count <= high


@pytest.mark.parametrize("objects", [1, 6])
def test_number_of_objects_can_be_asked_for(objects: int) -> None:
    clip = make_clip(2, frames=1, size=64, difficulty="hard", objects=objects)
    assert clip.visible.shape == (1, objects)
    assert clip.visible.all()


def test_objects_leave_and_return_somewhere() -> None:
    gone = [make_clip(seed, frames=24, size=64).visible for seed in range(30)]
    returns = [bool((~v[:-1, k] & v[1:, k]).any()) for v in gone for k in range(v.shape[1])]
    assert sum(returns) >= 3


def test_a_cut_changes_the_scene() -> None:
    clip = make_clip(4, frames=12, size=64, difficulty="easy", cuts=2)
    change = np.abs(np.diff(clip.frames.astype(int), axis=0)).mean((1, 2, 3))
    script = write_script(4, 0, 12, "easy", 2, None, calm=False)
    cuts = [shot.start for shot in script.shots[1:]]
    assert len(cuts) == 2
    assert set(np.argsort(change)[-2:] + 1) == set(cuts)


def test_a_seed_shows_the_same_scene_at_every_size() -> None:
    small, large = (make_clip(5, frames=3, size=size).labels for size in (64, 128))
    assert (small == large[:, 1::2, 1::2]).mean() > 0.97


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"difficulty": "mediun"}, "did you mean 'medium'"),
        ({"difficulty": "x"}, "easy, medium, hard"),
        ({"size": 100}, "multiple of 16"),
        ({"size": 16}, "size 16 is not in 32 to 1024"),
        ({"frames": 0}, "1 to 1000"),
        ({"frames": 3, "cuts": 3}, "cuts 3 is not in 0 to 2"),
        ({"objects": 7}, "1 to 6"),
        ({"seed": -1}, "seed -1 is not in 0"),
    ],
)
def test_values_outside_their_range_are_refused(arguments: dict, message: str) -> None:
    with pytest.raises(ClipError, match=message):
        make_clip(**{"seed": 0, **arguments})


def test_davis_layout(tmp_path: Path) -> None:
    clip = make_clip(1, frames=2, size=64)
    assert write_davis([clip], tmp_path) == [tmp_path / "JPEGImages" / "480p" / clip.name]
    for index in range(2):
        image = Image.open(tmp_path / "JPEGImages" / "480p" / clip.name / f"{index:05d}.jpg")
        label = Image.open(tmp_path / "Annotations" / "480p" / clip.name / f"{index:05d}.png")
        assert image.size == label.size == (64, 64)
        assert label.mode == "P"
        assert (np.asarray(label) == clip.labels[index]).all()
        assert label.getpalette()[: 3 * 4] == [0, 0, 0, 128, 0, 0, 0, 128, 0, 128, 128, 0]
    assert (tmp_path / "ImageSets" / "2017" / "val.txt").read_text() == f"{clip.name}\n"


def test_importing_the_demo_needs_no_host() -> None:
    code = "import sys, surgery.demo; assert not {'torch', 'transformers', 'sam2'} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)

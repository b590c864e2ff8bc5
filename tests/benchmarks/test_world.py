"""The new world: clips are repeatable and their masks are those of what was painted; training mixes both worlds."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
import torch

pytest.importorskip("skimage")

from benchmarks.training import film, pictures, shapes
from benchmarks.training.bodies import Part, body, materials
from benchmarks.training.feed import Feed, FeedPlan
from benchmarks.training.stage import Actor, Camera, Canvas, Matrices, joints, moved, smeared, turned
from benchmarks.training.textures import surface
from benchmarks.training.world import make_world_clip
from surgery.demo.clips import MIN_AREA
from surgery.errors import DatasetError


def still(frames: int, aspect: float = 1.0) -> Camera:
    none = np.zeros(frames)
    return Camera(none, none, none + 1, none, aspect)


def at(x: list[float], y: float = 0.0, size: float = 0.5) -> Matrices:
    ways = np.array(x)
    return moved(ways, ways * 0 + y) @ turned(ways * 0, size, size)


def square(grey: float) -> Part:
    sprite = torch.full((4, 32, 32), grey)
    sprite[3] = 1
    return Part(sprite, (1.0, 1.0))


def test_a_seed_is_one_clip_and_every_object_shows_on_its_first_frame() -> None:
    clip, again, other = (make_world_clip(seed, 4, 128) for seed in (5, 5, 6))
    assert np.array_equal(clip.frames, again.frames) and np.array_equal(clip.labels, again.labels)
    assert not np.array_equal(clip.frames, other.frames)
    assert clip.frames.shape == (4, 128, 128, 3) and clip.frames.dtype == np.uint8
    for made in (clip, other):
        count = made.visible.shape[1]
        assert set(np.unique(made.labels)) <= set(range(count + 1))
        areas = np.bincount(made.labels[0].ravel(), minlength=count + 1)[1:]
        assert (areas * 4 >= MIN_AREA).all()


def test_clips_move() -> None:
    clips = [make_world_clip(seed, 6, 64) for seed in range(4)]
    assert all((clip.frames[0] != clip.frames[-1]).mean() > 0.1 for clip in clips)
    assert any((clip.labels[0] != clip.labels[-1]).any() for clip in clips)


def test_masks_are_what_was_painted_and_what_is_in_front_hides_them() -> None:
    canvas = Canvas(2, 64, still(2))
    canvas.paint(Actor([square(1.0)], 1, at([-0.25, 0.25])))
    assert np.array_equal(canvas.labels() == 1, canvas.colours[:, 0].numpy() > 0.5)
    before = canvas.labels()
    assert before[0, 32, 8:40].all() and not before[0, 32, 44:].any()
    canvas.paint(Actor([square(0.2)], 0, at([0.5, 0.5])))
    hidden = canvas.colours[:, 0].numpy()
    assert np.array_equal(canvas.labels() == 1, hidden > 0.6)
    canvas.paint(Actor([square(0.7)], 2, at([-0.5, -0.5])))
    assert not ((canvas.labels() == 1) & (before == 0)).any()
    assert (canvas.labels() == 2).sum() == 2 * 32 * 32


def test_a_wide_view_is_squeezed_to_the_square() -> None:
    canvas = Canvas(1, 64, still(1, 16 / 9))
    canvas.paint(Actor([square(1.0)], 1, at([0.0])))
    mask = canvas.labels()[0]
    assert mask.any(1).sum() == 32
    assert mask.any(0).sum() == pytest.approx(32 * 9 / 16, abs=1)


def test_far_things_move_less_with_the_camera_than_near_ones() -> None:
    time = np.arange(2.0)
    camera = Camera(time * 0.5, time * 0, time * 0 + 1, time * 0, 1.0)
    shifts = []
    for depth in (0.5, 1.0, 1.5):
        canvas = Canvas(2, 64, camera)
        canvas.paint(Actor([square(1.0)], 1, at([0.0, 0.0], size=0.2), depth))
        xs = [np.nonzero(mask)[1].mean() for mask in canvas.labels()]
        shifts.append(xs[0] - xs[1])
    assert shifts == pytest.approx([8, 16, 24], abs=1)


def test_a_limb_stays_at_its_joint_while_it_swings() -> None:
    trunk = square(1.0)
    limb = Part(trunk.sprite, (0.1, 0.4), 0, (0.3, 0.5), hangs=True, swing=(1.0, 0.7, 0.0))
    upper, lower = joints([trunk, limb], 5)
    top = lower @ np.array([0.0, -0.9, 1.0])
    assert np.allclose(top[:, :2], [0.3, 0.5])
    assert np.ptp((lower @ np.array([0.0, 0.9, 1.0]))[:, 0]) > 0.3
    assert np.allclose(upper[0], upper[4])


def test_a_blur_keeps_what_is_even_and_spreads_what_is_not() -> None:
    even = torch.full((3, 16, 16), 0.4)
    assert torch.allclose(smeared(even, 5.0, -3.0), even)
    line = torch.zeros(1, 16, 16)
    line[:, :, 8] = 1
    spread = smeared(line, 4.0, 0.0)
    assert (spread[0, 0] > 0).sum() == 5
    assert spread.sum() == pytest.approx(16.0)
    assert smeared(line, 0.2, 0.0) is line


def test_shadows_darken_and_are_no_object() -> None:
    canvas = Canvas(1, 64, still(1))
    canvas.colours += 1
    canvas.paint(Actor([square(1.0)], 1, at([0.0]), shadow=0.6))
    assert float(canvas.colours.min()) < 0.7
    assert (canvas.labels() == 1).sum() == 32 * 32


@pytest.mark.parametrize("draw", [
    shapes.blob, shapes.polygon, shapes.ellipse, shapes.union, shapes.limb, shapes.wheel, shapes.frame,
])  # fmt: skip
def test_silhouettes_lie_within_their_square(draw) -> None:  # type: ignore[no-untyped-def]
    for seed in range(5):
        alpha = draw(np.random.default_rng(seed))
        assert alpha.shape == (1, shapes.SIDE, shapes.SIDE)
        assert float(alpha.min()) >= 0 and float(alpha.max()) == 1
        edge = torch.cat([alpha[0, 0], alpha[0, -1], alpha[0, :, 0], alpha[0, :, -1]])
        assert float(edge.max()) <= 0.5


def test_surfaces_and_bodies_are_colours() -> None:
    rng = np.random.default_rng(1)
    for _ in range(12):
        made = surface(rng, 40, 64)
        assert made.shape == (3, 40, 64) and 0 <= float(made.min()) <= float(made.max()) <= 1
    ground = surface(rng, 200, 200)
    for _ in range(8):
        for part in body(rng, materials(rng, ground)):
            colours, alpha = part.sprite[:3], part.sprite[3]
            assert torch.isfinite(part.sprite).all()
            assert (colours <= alpha + 1e-5).all() and float(alpha.max()) > 0.5
            assert all(side > 0 and math.isfinite(side) for side in part.size)


def test_only_pictures_of_a_plain_licence_are_read(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, licence in pictures.LICENCES.items():
        assert licence.startswith(("CC0", "public domain"))
        assert pictures.picture(name).shape[0] == 3
    assert not {"motorcycle_left.png", "motorcycle_right.png", "coins.png", "ihc.png"} & set(pictures.LICENCES)
    with pytest.raises(DatasetError, match=r"nowhere\.png is missing"):
        pictures.picture("nowhere.png")


def test_a_course_starts_at_rest() -> None:
    for seed in range(5):
        way = film.wander(np.random.default_rng(seed), 12, 0.1)
        assert way[0] == 0 and np.isfinite(way).all()


def test_batches_of_the_new_world_repeat() -> None:
    plan = FeedPlan(2, 3, 64, pool=3, new_world=1.0)
    feed = Feed(1, plan)
    batch, again = feed.batch(0), Feed(1, plan).batch(0)
    assert torch.equal(batch.images, again.images) and torch.equal(batch.masks, again.masks)
    assert all(clip.name.startswith("world-") for clip in feed._pool.values())
    mixed = Feed(1, FeedPlan(2, 3, 64, new_world=0.5))
    names = {mixed._clip(index).name.split("-")[0] for index in range(8)}
    assert "world" in names and len(names) > 1


def test_no_clip_of_a_picture_file_is_in_the_repository() -> None:
    folder = Path(pictures.__file__).parent
    assert not [path for path in folder.rglob("*") if path.suffix in (".png", ".jpg", ".npy", ".npz")]

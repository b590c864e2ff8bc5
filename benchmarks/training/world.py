"""The new world: clips that look more like real video than those of `surgery.demo.clips`.

Float arithmetic: the same arguments give the same clip on one machine only. `benchmarks.training.pictures` lists the
pictures that textures come from, and their licences.
"""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray

from benchmarks.training import film, shapes
from benchmarks.training.bodies import body, dress, materials, pole, repaint
from benchmarks.training.film import wander
from benchmarks.training.stage import Actor, Camera, Canvas, Matrices, moved, smeared, turned
from benchmarks.training.textures import fractal, surface
from surgery.demo.clips import MIN_AREA, Clip, ClipError

REACH = 1.7
"""How many views wide and high the ground is painted; mirrored beyond."""

_ATTEMPTS = 24


@torch.no_grad()
def make_world_clip(seed: int, frames: int = 12, size: int = 256) -> Clip:
    """Return the clip of a seed, with 1 to 4 labelled objects, all of which show on frame 0.

    Args:
        seed: non-negative. frames: at least 1. size: side in pixels of the square that the picture is squeezed to.
    """
    for attempt in range(_ATTEMPTS):
        pictures, labels = _scene(np.random.default_rng([seed, attempt, 424243]), frames, size)
        shown = np.flatnonzero(np.bincount(labels[0].ravel(), minlength=2)[1:] * (256 / size) ** 2 >= MIN_AREA) + 1
        if len(shown):
            break
    else:
        raise ClipError(f"seed {seed} shows no object in {_ATTEMPTS} scenes of {size} pixels, expected at least one")
    kept = np.zeros(256, dtype=np.uint8)
    kept[shown] = np.arange(1, len(shown) + 1)
    labels = kept[labels]
    visible = np.stack([(labels == label).any((1, 2)) for label in range(1, len(shown) + 1)], 1)
    return Clip(f"world-{seed:05d}", pictures, labels, visible)


def _scene(rng: np.random.Generator, frames: int, size: int) -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
    """Draw a scene and film it: frames uint8 [T, S, S, 3] and labels uint8 [T, S, S]."""
    hard = rng.random() ** 1.5
    count = int(rng.choice([1, 2, 3, 4], p=[0.3, 0.45, 0.2, 0.05]))
    aspect = float(rng.choice([16 / 9, 16 / 9, 16 / 9, 4 / 3, 1.0, 9 / 16]))
    # Where things hardly move, a model learns to leave the mask where it is, and loses what walks away.
    speed = math.exp(rng.uniform(math.log(0.006), math.log(0.03 + 0.04 * hard))) * (0.2 if rng.random() < 0.15 else 1.0)
    places = [_place(rng, frames, speed, aspect, hard, main=number == 0) for number in range(count)]
    camera = _camera(rng, frames, speed, aspect, places[0])
    canvas = Canvas(frames, size, camera)
    ground = _ground(rng, max(shapes.SIDE, int(size * REACH)), aspect)
    smear = rng.uniform(0.2, 0.8) if rng.random() < 0.4 else 0.0
    canvas.ground(ground, REACH, rng.uniform(0.3, 1.0))
    for actor in _cast(rng, frames, speed, aspect, hard, places, ground):
        canvas.paint(actor, smear)
    pictures = film.light(rng, canvas.colours)
    if rng.random() < 0.2:
        pictures = pictures * _dapple(rng, canvas)
    if smear:
        pictures = _shaken(pictures, camera, smear, size)
    return film.develop(rng, film.soften(rng, pictures, 0.3)), canvas.labels()


def _place(
    rng: np.random.Generator, frames: int, speed: float, aspect: float, hard: float, main: bool = False
) -> Matrices:
    """Draw where a body is on every frame, [T, 3, 3]: a path, a size that may change, turns, views from the side."""
    size = math.exp(rng.uniform(math.log(0.5 - 0.2 * hard if main else 0.25), math.log(1.15)))
    still = np.zeros(frames)
    spread = 0.5 if main else 0.85
    x = rng.uniform(-spread, spread) * aspect + wander(rng, frames, speed * aspect)
    y = rng.uniform(-spread, spread) + wander(rng, frames, speed * 0.6)
    if rng.random() < 0.15 * hard:
        # Out of the picture and back.
        middle, width = rng.uniform(2, max(3, frames - 2)), rng.uniform(1, 4)
        way = 2.5 * np.exp(-(((np.arange(frames) - middle) / width) ** 2))
        turn = rng.uniform(0, 2 * math.pi)
        x, y = x + way * math.cos(turn) * aspect, y + way * math.sin(turn)
    growth = np.exp(wander(rng, frames, 0.02 if rng.random() < 0.5 else 0.005))
    tilt = rng.normal(0, 0.25) + wander(rng, frames, 0.1 if rng.random() < 0.2 * hard else 0.01)
    wide = still + 1.0
    if rng.random() < 0.35:
        wide = 1 - rng.uniform(0, 0.6) * (
            0.5 + 0.5 * np.sin(rng.uniform(0.05, 0.5) * np.arange(frames) + rng.uniform(0, 6))
        )
    mirror = rng.choice([-1.0, 1.0])
    return moved(x, y) @ turned(tilt, size * growth * wide * mirror, size * growth)


def _camera(rng: np.random.Generator, frames: int, speed: float, aspect: float, main: Matrices) -> Camera:
    """Draw the camera's way: still, drifting, following the main object, shaken by a hand."""
    x, y = np.zeros(frames), np.zeros(frames)
    if rng.random() < 0.75:
        x, y = wander(rng, frames, speed * aspect), wander(rng, frames, speed * 0.4)
    if rng.random() < 0.5:
        follow = rng.uniform(0.4, 1.05)
        x, y = x * 0.3 + follow * (main[:, 0, 2] - main[0, 0, 2]), y * 0.3 + follow * (main[:, 1, 2] - main[0, 1, 2])
    if rng.random() < 0.4:
        shake = rng.uniform(0, 0.015)
        x, y = x + rng.normal(0, shake, frames), y + rng.normal(0, shake, frames)
    zoom = np.exp(wander(rng, frames, 0.02 if rng.random() < 0.3 else 0.002))
    roll = wander(rng, frames, 0.01 if rng.random() < 0.3 else 0.001)
    return Camera(x, y, zoom, roll, aspect)


def _cast(
    rng: np.random.Generator,
    frames: int,
    speed: float,
    aspect: float,
    hard: float,
    places: list[Matrices],
    ground: torch.Tensor,
) -> list[Actor]:
    """Draw everything that stands and moves on the ground, far to near."""
    near: list[Actor] = []
    bend = float(rng.choice([0.0, 0.03, 0.08, 0.14]))
    shadow = rng.uniform(0.2, 0.7) if rng.random() < 0.5 else 0.0
    fall = (rng.normal(0, 0.2), rng.normal(0, 0.05))
    for label, place in enumerate(places, 1):
        parts = body(rng, materials(rng, ground if rng.random() < 0.35 * hard else None))
        near.append(Actor(parts, label, place, 1.0, bend, shadow, fall, int(rng.integers(1 << 30))))
        if rng.random() < 0.45 * hard:
            double = repaint(rng, parts) if rng.random() < 0.5 else parts
            near.append(replace(near[-1], parts=double, label=0, place=_place(rng, frames, speed, aspect, hard)))
    for _ in range(int(rng.integers(0, 2 + round(2.5 * hard)))):
        moves = speed if rng.random() < 0.5 else 0.0
        parts = body(rng, materials(rng, ground if rng.random() < 0.35 * hard else None))
        near.append(Actor(parts, 0, _place(rng, frames, moves, aspect, hard), 1.0, bend, shadow, fall, 7))
    order = rng.permutation(len(near)).tolist()
    front = []
    for _ in range(int(rng.choice([0, 1, 2], p=[1 - 0.7 * hard, 0.5 * hard, 0.2 * hard]))):
        depth = rng.uniform(1.0, 1.8)
        wear = materials(rng, None)
        thing = pole(rng, wear) if rng.random() < 0.6 else body(rng, wear)
        front.append(Actor(thing, 0, _place(rng, frames, speed * float(rng.choice([0, 1])), aspect, hard), depth))
    return [near[index] for index in order] + front


def _ground(rng: np.random.Generator, side: int, aspect: float) -> torch.Tensor:
    """Paint the far picture, float32 [3, side, side], squeezed as the view is: surfaces, a horizon, clutter, blur."""
    picture = _squeezed(rng, side, aspect)
    if rng.random() < 0.6:
        picture = _with_floor(rng, picture, aspect)
    wear = materials(rng, None, 0.35)
    for _ in range(int(rng.choice([0, 4, 10, 20, 32]))):
        if rng.random() < 0.3:
            wear = materials(rng, None, 0.35)
        high = int(side * math.exp(rng.uniform(math.log(0.03), math.log(0.35))))
        wide = int(high * math.exp(rng.normal(0, 0.5)) / aspect)
        sprite = dress(rng, shapes.silhouette(rng), wear.skin(rng))[None]
        sprite = F.interpolate(sprite, size=(max(4, high), max(4, wide)), mode="bilinear", antialias=True)[0]
        _paste(rng, picture, sprite)
    if rng.random() < 0.35:
        width = int(rng.choice([3, 3, 5, 7]))
        picture = F.avg_pool2d(F.pad(picture[None], [width // 2] * 4, mode="replicate"), width, 1)[0]
    return picture


def _squeezed(rng: np.random.Generator, side: int, aspect: float) -> torch.Tensor:
    made = surface(rng, side, max(64, int(side * aspect)), 0.12)
    return F.interpolate(made[None], size=(side, side), mode="bilinear", align_corners=False, antialias=True)[0]


def _with_floor(rng: np.random.Generator, picture: torch.Tensor, aspect: float) -> torch.Tensor:
    """Lay a surface over the lower part, in perspective, up to a wavy, soft or sharp horizon."""
    side = picture.shape[1]
    floor = _squeezed(rng, side, aspect)
    ys, xs = torch.meshgrid(torch.linspace(-1, 1, side), torch.linspace(-1, 1, side), indexing="ij")
    horizon = rng.uniform(-0.35, 0.4)
    waves = (fractal(rng, side, side, 2.4)[0, 0] - 0.5) * rng.uniform(0, 0.6)
    below = ys - horizon - waves
    near = below.clamp(min=0) + rng.uniform(0.1, 1.0)
    grid = torch.stack([xs / near * 0.6, 1.2 - 0.5 / near], -1)
    floor = F.grid_sample(floor[None], grid[None], padding_mode="reflection", align_corners=False)[0]
    share = (below * math.exp(rng.uniform(1, 5.3)) + 0.5).clamp(0, 1)
    return picture * (1 - share) + floor * share


def _paste(rng: np.random.Generator, picture: torch.Tensor, sprite: torch.Tensor) -> None:
    high, wide = (min(a, b) for a, b in zip(sprite.shape[1:], picture.shape[1:], strict=True))
    top, left = int(rng.integers(picture.shape[1] - high + 1)), int(rng.integers(picture.shape[2] - wide + 1))
    here = picture[:, top : top + high, left : left + wide]
    here.mul_(1 - sprite[3:, :high, :wide]).add_(sprite[:3, :high, :wide])


def _dapple(rng: np.random.Generator, canvas: Canvas) -> torch.Tensor:
    """Return light and shade that lie on the world and not on the things, [T, 3, S, S]."""
    field = fractal(rng, 128, 128, rng.uniform(1.2, 2.2)).sub(0.5).mul(rng.uniform(2, 8)).add(0.5).clamp(0, 1)
    lit = Canvas(canvas.frames, canvas.size, canvas.camera)
    lit.ground((1 - rng.uniform(0.2, 0.6) * field).expand(3, -1, -1), REACH, 1.0)
    return lit.colours


def _shaken(pictures: torch.Tensor, camera: Camera, smear: float, size: int) -> torch.Tensor:
    """Blur every frame along the camera's way."""
    if len(pictures) < 2:
        return pictures
    x = np.gradient(camera.x) * size / 2 / camera.aspect * smear
    y = np.gradient(camera.y) * size / 2 * smear
    return torch.stack([smeared(frame, *way) for frame, way in zip(pictures, zip(x, y, strict=True), strict=True)])

"""The script of a synthetic clip: who is in it, how they look, and where they are on every frame."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

from surgery.demo.fixedpoint import COS, ONE, SIN, TURN, WORLD, Draws
from surgery.demo.sprites import SHAPES, Look, Pose, background, look, outline, paint

MAX_OBJECTS = 6


@dataclass(frozen=True)
class Level:
    """What one difficulty means. Speeds and radii are in 1/1000 of the frame's side, chances in percent."""

    objects: tuple[int, int]
    radius: tuple[int, int]
    speed: tuple[int, int]
    spin: int  # largest rotation a frame, in 1/1024 turn
    pulse: int  # largest change of scale, percent
    bend: int  # largest deformation, percent of the radius
    leave: int  # chance that an object leaves and comes back
    lookalikes: tuple[int, int]  # unlabelled copies of labelled objects
    lookalike_hue: int  # how far a copy's hue is from its original's, of 1536
    occluders: tuple[int, int]  # large unlabelled things crossing in front
    hue_gap: int  # least distance between the hues of the ground and of an object, of 1536
    contrast: int  # strength of the ground's pattern, of 255
    drift: int  # largest camera motion a frame
    noise: int  # sensor noise, grey levels


LEVELS: dict[str, Level] = {
    "easy": Level((1, 2), (130, 200), (2, 10), 6, 8, 4, 0, (0, 0), 0, (0, 0), 300, 90, 2, 2),
    "medium": Level((1, 4), (90, 180), (4, 18), 12, 15, 8, 25, (0, 1), 260, (0, 1), 130, 170, 5, 6),
    "hard": Level((2, 6), (65, 150), (6, 30), 24, 25, 14, 40, (1, 3), 0, (1, 2), 0, 255, 9, 12),
}
"""The difficulty table."""


@dataclass(frozen=True)
class Actor:
    """One sprite of one shot: its look, its label (0 if it is not a labelled object) and its motion."""

    look: Look
    label: int
    start: Pose
    velocity: tuple[int, int]
    sway: tuple[int, int, int]  # amplitude, rate and phase of the wobble around the path
    spin: int
    pulse: tuple[int, int, int]
    ripple: int
    away: tuple[int, int, int, int] | None  # first frame, last frame, and the step a frame of an excursion
    bounded: bool = True

    def pose(self, frame: int) -> Pose:
        """Return the pose `frame` frames into the shot."""
        start = self.start
        amplitude, rate, phase = self.sway
        x = start.x + self.velocity[0] * frame + amplitude * int(SIN[(phase + rate * frame) % TURN]) // ONE
        y = start.y + self.velocity[1] * frame + amplitude * int(COS[(phase + rate * frame) % TURN]) // ONE
        if self.bounded:
            x, y = _bounce(x, WORLD // 12), _bounce(y, WORLD // 12)
        if self.away is not None:
            first, last, step_x, step_y = self.away
            beyond = max(0, min(frame - first, last - frame, 8))
            x, y = x + step_x * beyond, y + step_y * beyond
        depth, rate, phase = self.pulse
        radius = start.radius * (ONE * 100 + depth * int(SIN[(phase + rate * frame) % TURN])) // (ONE * 100)
        return Pose(x, y, radius, start.angle + self.spin * frame, start.bend, start.phase + self.ripple * frame)


@dataclass(frozen=True)
class Shot:
    """The frames `start` to `stop` - 1, between two cuts: the background and the sprites, far to near."""

    start: int
    stop: int
    seed: tuple[int, ...]
    tint: tuple[int, int, int]  # hue, saturation and contrast of the ground
    pan: tuple[int, int, int]  # amplitude in 1/1000 of a side, rate, phase
    actors: tuple[Actor, ...]

    def ground(self, size: int) -> NDArray[np.uint32]:
        """Return the packed background, uint32 [size * 5/4, size * 5/4]."""
        return background(Draws(*self.seed, 1), size * 5 // 4, *self.tint)

    def camera(self, frame: int, size: int) -> tuple[int, int]:
        """Return the top-left corner of the view in the background, pixels in [0, size / 4]."""
        reach, rate, phase = self.pan
        slack = size // 8
        at = (phase + rate * (frame - self.start)) % TURN
        swing = min(slack, size * reach // 1000)
        return slack + swing * int(SIN[at]) // ONE, slack + swing * int(COS[(at * 2) % TURN]) // ONE

    def perform(self, frame: int, picture: NDArray[np.uint32], labels: NDArray[np.uint8]) -> None:
        """Draw the sprites in place on a packed picture [S, S] of the ground, and their labels on uint8 [S, S]."""
        for actor in self.actors:
            paint(picture, labels, actor.look, actor.pose(frame - self.start), actor.label)


@dataclass(frozen=True)
class Script:
    """A whole clip: its shots in order, the number of labelled objects and the camera's noise."""

    frames: int
    objects: int
    shots: tuple[Shot, ...]
    noise: int
    seed: tuple[int, ...]

    def film(self, images: NDArray[np.uint8]) -> NDArray[np.uint8]:
        """Return frames uint8 [T, S, S, 3] with sensor noise, the same in the three channels."""
        grain = Draws(*self.seed, 2).bytes(*images.shape[:3]).astype(np.int16)
        grain = (grain * (2 * self.noise + 1) >> 8) - self.noise
        return np.clip(images + grain[..., None], 0, 255).astype(np.uint8)


def write_script(
    seed: int, attempt: int, frames: int, difficulty: str, cuts: int, objects: int | None, calm: bool
) -> Script:
    """Draw the script of a clip. `attempt` numbers redraws; in a `calm` one the labelled objects are in front."""
    level = LEVELS[difficulty]
    key = (seed, sorted(LEVELS).index(difficulty), attempt)
    draws = Draws(*key, 0)
    count = objects if objects is not None else draws.between(*level.objects)
    hue = draws.below(1536)
    # One after the other: the draws of an object's hue and of its look alternate.
    hues = (hue + level.hue_gap + draws.below(1536 - 2 * level.hue_gap) for _ in range(count))
    looks = [(_figure(draws, own), own) for own in hues]
    # Each cut has its own part of the clip, so that no two coincide.
    parts = ((1 + i * (frames - 1) // cuts, (i + 1) * (frames - 1) // cuts) for i in range(cuts))
    starts = [0, *(draws.between(*part) for part in parts)]
    shots = []
    for number, (start, stop) in enumerate(pairwise([*starts, frames])):
        present = [number == 0 or draws.chance(50) for _ in looks]
        actors = _place(draws, level, looks, present, stop - start, calm)
        tint = (hue if number == 0 else draws.below(1536), draws.between(20, 150), level.contrast)
        pan = (draws.between(0, 120), 1 + draws.below(1 + level.drift), draws.below(TURN))
        shots.append(Shot(start, stop, (*key, number), tint, pan, tuple(actors)))
    return Script(frames, count, tuple(shots), level.noise, key)


def _figure(draws: Draws, hue: int) -> Look:
    """Draw the look of an object of this hue, of any shape."""
    shape = outline(draws, SHAPES[draws.below(len(SHAPES))])
    return look(draws, shape, hue, draws.between(140, 255), draws.between(90, 255), 256)


def _place(
    draws: Draws, level: Level, looks: list[tuple[Look, int]], present: list[bool], length: int, calm: bool
) -> list[Actor]:
    """Draw positions and motions of one shot's sprites, far to near; occluders are nearest."""
    taken: list[tuple[int, int, int]] = []
    near = []
    for label, ((dress, _), here) in enumerate(zip(looks, present, strict=True), start=1):
        actor = _actor(draws, level, dress, label, length, taken)
        if here:
            near.append(actor)
    for _ in range(draws.between(*level.lookalikes)):
        dress, hue = looks[draws.below(len(looks))]
        if level.lookalike_hue:
            dress = _figure(draws, hue + level.lookalike_hue)
        near.append(_actor(draws, level, dress, 0, length, taken))
    for index in range(len(near) - 1, 0, -1):
        other_index = draws.below(index + 1)
        near[index], near[other_index] = near[other_index], near[index]
    if calm:
        near.sort(key=lambda actor: actor.label > 0)
    return near + [_occluder(draws, level, length) for _ in range(draws.between(*level.occluders))]


def _actor(
    draws: Draws, level: Level, dress: Look, label: int, length: int, taken: list[tuple[int, int, int]]
) -> Actor:
    """Draw one sprite that starts apart from those in `taken` (x, y, radius), where there is room."""
    radius = draws.between(*level.radius) * WORLD // 1000
    best, best_gap = (WORLD // 2, WORLD // 2), -(1 << 62)
    for _ in range(12):
        x, y = (draws.between(WORLD // 7, WORLD * 6 // 7) for _ in range(2))
        gap = min(((x - a) ** 2 + (y - b) ** 2 - (radius + r) ** 2 for a, b, r in taken), default=0)
        if gap > best_gap:
            best, best_gap = (x, y), gap
        if gap >= 0:
            break
    taken.append((*best, radius))
    speed = draws.between(*level.speed) * WORLD // 1000
    heading = draws.below(TURN)
    away = None
    if length >= 4 and draws.chance(level.leave):
        first = draws.between(1, max(1, length // 2))
        side = draws.below(4)
        step = (WORLD // 7) * (1 - 2 * (side & 1))
        away = (first, first + draws.between(6, 14), step * (side >> 1), step * (1 - (side >> 1)))
    return Actor(
        look=dress,
        label=label,
        start=Pose(*best, radius, draws.below(TURN), level.bend * 41, draws.below(TURN)),
        velocity=(speed * int(COS[heading]) // ONE, speed * int(SIN[heading]) // ONE),
        sway=(draws.between(0, WORLD // 40), draws.between(8, 40), draws.below(TURN)),
        spin=draws.between(-level.spin, level.spin),
        pulse=(draws.between(0, level.pulse), draws.between(8, 30), draws.below(TURN)),
        ripple=draws.between(0, 40),
        away=away,
    )


def _occluder(draws: Draws, level: Level, length: int) -> Actor:
    """Draw a large sprite that crosses the frame from one side to the other, starting outside."""
    shape = outline(draws, "blob")
    dress = look(draws, shape, draws.below(1536), draws.between(30, 200), draws.between(60, 220), 200)
    radius = draws.between(120, 190) * WORLD // 1000
    speed = draws.between(20, 45) * WORLD // 1000
    sign = 1 - 2 * draws.below(2)
    wait = draws.below(max(1, length // 2))
    begin = -2 * radius - wait * speed if sign > 0 else WORLD + 2 * radius + wait * speed
    across = draws.between(WORLD // 5, WORLD * 4 // 5)
    sideways = draws.chance(50)
    x, y = (begin, across) if sideways else (across, begin)
    velocity = (sign * speed, 0) if sideways else (0, sign * speed)
    pose = Pose(x, y, radius, draws.below(TURN), level.bend * 41, draws.below(TURN))
    return Actor(dress, 0, pose, velocity, (0, 8, 0), draws.between(-8, 8), (0, 8, 0), 8, None, bounded=False)


def _bounce(value: int, margin: int) -> int:
    """Fold a coordinate into [margin, WORLD - margin] as if it bounced off the sides."""
    span = WORLD - 2 * margin
    return WORLD - margin - abs((value - margin) % (2 * span) - span)

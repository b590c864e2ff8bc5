"""Looks of the synthetic world: shape tables, textures and backgrounds, and how one sprite is painted on a frame."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from surgery.demo.fixedpoint import COS, GRID, ONE, SIN, TURN, WORLD, Draws, IntArray, pack, polar_grid, wheel

SHAPES = ("blob", "polygon", "star", "ring", "pair")


@dataclass(frozen=True)
class Look:
    """What an object looks like: `inside` bool [GRID, GRID] and `colours` packed uint32 [GRID, GRID]."""

    inside: NDArray[np.bool_]
    colours: NDArray[np.uint32]


@dataclass(frozen=True)
class Pose:
    """Where an object is on one frame: world units, angle units; `bend` in 1/4096 of the radius."""

    x: int
    y: int
    radius: int
    angle: int
    bend: int
    phase: int


def outline(draws: Draws, kind: str) -> NDArray[np.bool_]:
    """Return a random shape table of the given kind, bool [GRID, GRID]."""
    angle, radius2 = polar_grid()
    turns = np.arange(TURN, dtype=np.int64)
    if kind == "polygon":
        sides = draws.between(3, 6)
        sector = TURN // sides
        reach = np.int64(4096) * COS[sector // 2] // COS[(turns % sector - sector // 2) % TURN]
        reach = reach * draws.between(85, 115) // 100
    elif kind == "star":
        points = draws.between(4, 7)
        reach = 3000 + 1050 * COS[turns * points % TURN] // ONE
    else:
        reach = np.full(TURN, 3500, dtype=np.int64)
        for wave in range(2, 6):
            reach += draws.between(100, 1000) * COS[(turns * wave + draws.below(TURN)) % TURN] // (ONE * (wave - 1))
    stretch = draws.between(55, 100)
    lean = draws.below(TURN)
    reach = reach * (200 - (100 - stretch) * (ONE + COS[(2 * turns + lean) % TURN]) // ONE) // 200
    inside = radius2 <= reach[angle] ** 2
    if kind == "ring":
        inside &= radius2 >= (reach[angle] * draws.between(35, 50) // 100) ** 2
    if kind == "pair":
        # A body and a head: half the shape's size, and shifted to overlap its rim.
        top, left = draws.below(2) * GRID // 2, draws.between(0, GRID // 2)
        inside[top : top + GRID // 2, left : left + GRID // 2] |= inside[::2, ::2].copy()
    return inside


def smooth_noise(draws: Draws, cells: int, size: int, octaves: int) -> IntArray:
    """Return value noise, int64 [size, size] in [0, 255]; the first octave has `cells` lattice cells along a side."""
    total = np.zeros((size, size), dtype=np.int64)
    weight = 0
    for octave in range(octaves):
        n = cells << octave
        if n >= size:
            break
        share = 1 << (octaves - 1 - octave)
        lattice = draws.bytes(n + 1, n + 1).astype(np.int64)
        at = np.arange(size, dtype=np.int64) * n * 256 // size
        cell, part = at >> 8, at & 255
        rows = lattice[:, cell] * (256 - part) + lattice[:, cell + 1] * part
        total += share * ((rows[cell] * (256 - part[:, None]) + rows[cell + 1] * part[:, None]) >> 16)
        weight += share
    return total // max(weight, 1)


def pattern(draws: Draws, size: int) -> IntArray:
    """Return a random texture field, int64 [size, size] in [0, 255]."""
    kind = draws.below(6)
    y, x = np.mgrid[0:size, 0:size].astype(np.int64)
    turn = draws.below(TURN)
    along = (x * COS[turn] + y * SIN[turn]) // ONE
    across = (y * COS[turn] - x * SIN[turn]) // ONE
    pitch = size // draws.between(4, 9) + 1
    if kind == 0:
        return smooth_noise(draws, draws.between(3, 6), size, 3)
    if kind == 1:
        return along // pitch % 2 * 255
    if kind == 2:
        return (along // pitch + across // pitch) % 2 * 255
    if kind == 3:
        du, dv = along % (2 * pitch) - pitch, across % (2 * pitch) - pitch
        return np.where(du * du + dv * dv < pitch * pitch // 2, 255, 0)
    if kind == 4:
        return np.where(across > (size * (COS[turn] - SIN[turn])) // (2 * ONE), 255, 0)
    return 128 + 127 * COS[along * TURN // (2 * pitch) % TURN] // ONE


def blend(first: IntArray, second: IntArray, field: IntArray) -> IntArray:
    """Mix two RGB colours int64 [3] by a field in [0, 255]: int64 [*field.shape, 3]."""
    return first + (second - first) * field[..., None] // 255


def look(draws: Draws, shape: NDArray[np.bool_], hue: int, saturation: int, value: int, hue_spread: int) -> Look:
    """Dress a shape table in a two-colour pattern around `hue` with some shading."""
    main = wheel(hue, saturation, value)
    other_value = value - 90 if value > 150 else value + 90
    other = wheel(hue + draws.between(-hue_spread, hue_spread), max(saturation - draws.below(120), 0), other_value)
    shade = smooth_noise(draws, 4, GRID, 2) - 128
    return Look(shape, pack(blend(main, other, pattern(draws, GRID)) + shade[..., None] // 4))


def background(draws: Draws, size: int, hue: int, saturation: int, contrast: int) -> NDArray[np.uint32]:
    """Return a packed background texture uint32 [size, size]; `contrast` in [0, 255] is how strong its pattern is."""
    value = draws.between(80, 200)
    low, high = wheel(hue, saturation, value), wheel(hue + draws.between(-200, 200), saturation, draws.between(40, 240))
    field = smooth_noise(draws, draws.between(3, 8), size, 4)
    ground = blend(low, low + (high - low) * contrast // 255, field)
    if draws.chance(50):
        ground += ((pattern(draws, size) - 128) * contrast // 1024)[..., None]
    return pack(ground + (smooth_noise(draws, size // 8, size, 2)[..., None] - 128) * contrast // 512)


def paint(frame: NDArray[np.uint32], labels: NDArray[np.uint8], item: Look, pose: Pose, label: int) -> None:
    """Draw a sprite in place on a packed frame [S, S] and write `label` on the pixels it covers."""
    size = frame.shape[0]
    reach = pose.radius * 8 // 5
    left, top = (max((at - reach) * size // WORLD, 0) for at in (pose.x, pose.y))
    right, bottom = (min((at + reach) * size // WORLD + 1, size) for at in (pose.x, pose.y))
    if left >= right or top >= bottom:
        return
    dx = ((2 * np.arange(left, right, dtype=np.int64) + 1) * WORLD) // (2 * size) - pose.x
    dy = ((2 * np.arange(top, bottom, dtype=np.int64) + 1) * WORLD) // (2 * size) - pose.y
    # One division per coefficient, none per pixel; the extra 16 bits keep the far corner well within one cell.
    cos, sin = int(COS[pose.angle % TURN]), int(SIN[pose.angle % TURN])
    a, b = (cos << 16) // pose.radius, (sin << 16) // pose.radius
    u = (a * dx[None, :] + b * dy[:, None]) >> 18
    v = (a * dy[:, None] - b * dx[None, :]) >> 18
    u += (pose.bend * SIN[((v >> 4) + pose.phase) % TURN]) >> 14
    cell_u = (u * (GRID * 4 // 5) >> 13) + GRID // 2
    cell_v = (v * (GRID * 4 // 5) >> 13) + GRID // 2
    within = (cell_u >= 0) & (cell_u < GRID) & (cell_v >= 0) & (cell_v < GRID)
    at = np.where(within, cell_v * GRID + cell_u, 0)
    covered = within & item.inside.ravel()[at]
    frame[top:bottom, left:right][covered] = item.colours.ravel()[at[covered]]
    labels[top:bottom, left:right][covered] = label

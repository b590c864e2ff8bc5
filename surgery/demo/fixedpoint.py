"""Integer building blocks of the synthetic world: draws, trigonometry, polar coordinates, colours.

Everything that decides a pixel is an integer, so that a seed gives the same bytes on every platform. Draws read the raw
stream of PCG64, the only part of `numpy.random` whose bytes NumPy promises not to change.
"""

from __future__ import annotations

import math
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

IntArray = NDArray[np.int64]

TURN = 1024
"""Angle units in one full turn."""
ONE = 1 << 14
"""Fixed-point one of the trigonometric tables."""
WORLD = 1 << 16
"""World units along one side of the frame, whatever its size in pixels."""
GRID = 128
"""Cells along one side of a shape table; the table covers 1.25 radii each way."""

COS: IntArray = np.array([round(math.cos(2 * math.pi * i / TURN) * ONE) for i in range(TURN)], dtype=np.int64)
SIN: IntArray = np.roll(COS, TURN // 4)


class Draws:
    """A stream of integer draws, one per (seed, purpose) pair."""

    def __init__(self, *key: int) -> None:
        """Start the stream named by `key`, a sequence of non-negative integers."""
        self._bits = np.random.PCG64(np.random.SeedSequence(list(key)))

    def below(self, n: int) -> int:
        """Return an integer in [0, n)."""
        return int(self._bits.random_raw()) % n

    def between(self, low: int, high: int) -> int:
        """Return an integer in [low, high], both ends included."""
        return low + self.below(high - low + 1)

    def chance(self, percent: int) -> bool:
        """Return True in `percent` of 100 draws."""
        return self.below(100) < percent

    def bytes(self, *shape: int) -> NDArray[np.uint8]:
        """Return an array of the given shape of uniform bytes, uint8."""
        count = math.prod(shape)
        raw = self._bits.random_raw((count + 7) // 8).astype("<u8")
        return raw.view(np.uint8)[:count].reshape(shape)


@lru_cache(maxsize=1)
def polar_grid() -> tuple[IntArray, IntArray]:
    """Return (angle, radius²) of every cell of a shape table, int64 [GRID, GRID].

    Angles are in [0, TURN); radii in units of 1/4096 of the object's radius. The angle is counted in directions of the
    table, by exact cross products, because `arctan2` may differ in its last bit between platforms and so move an edge.
    """
    axis = (2 * np.arange(GRID, dtype=np.int64) + 1 - GRID) * (4096 * 5 // 4) // GRID
    u, v = np.meshgrid(axis, axis)
    lower = v < 0
    pu, pv = np.where(lower, -u, u), np.where(lower, -v, v)
    angle = np.zeros((GRID, GRID), dtype=np.int64)
    for turn in range(1, TURN // 2):
        angle += COS[turn] * pv - SIN[turn] * pu >= 0
    return (angle + np.where(lower, TURN // 2, 0)) % TURN, u * u + v * v


def wheel(hue: int, saturation: int, value: int) -> IntArray:
    """Return the RGB colour, int64 [3] in [0, 255], of a hue in [0, 1536) with saturation and value in [0, 255]."""
    # How far red, green and blue are behind their own hue: each is full for a third of the wheel around it.
    behind = (hue - np.array([0, 512, 1024], dtype=np.int64)) % 1536
    pure = np.clip(np.maximum(511 - behind, behind - 1024), 0, 255)
    return (255 * 255 - (255 - pure) * saturation) * value // (255 * 255)


def pack(rgb: IntArray) -> NDArray[np.uint32]:
    """Return RGB values int64 [..., 3] as one uint32 a pixel (its bytes are R, G, B, 0 in memory order)."""
    quad = np.zeros((*rgb.shape[:-1], 4), dtype=np.uint8)
    quad[..., :3] = np.clip(rgb, 0, 255)
    return quad.view(np.uint32)[..., 0]

"""Silhouettes: blobs, polygons, unions, limbs, wheels, frames; all float32 [1, S, S], 1 inside, with a soft edge."""

from __future__ import annotations

import math

import numpy as np
import torch
import torch.nn.functional as F

from benchmarks.training.pictures import horse
from benchmarks.training.textures import fractal

SIDE = 128
"""Side of a silhouette in pixels; it covers [-1, 1] in both directions."""

_EDGE = SIDE / 2.6  # sharpness of an edge: about two pixels wide


def axes(side: int = SIDE) -> tuple[torch.Tensor, torch.Tensor]:
    """Return x and y of the pixel centres, float32 [S, S] each, in (-1, 1)."""
    line = (torch.arange(side) + 0.5) * (2 / side) - 1
    ys, xs = torch.meshgrid(line, line, indexing="ij")
    return xs, ys


def soft(distance: torch.Tensor) -> torch.Tensor:
    """Return alpha [1, S, S] from a distance that is positive inside."""
    return (distance * _EDGE + 0.5).clamp(0, 1)[None]


def blob(rng: np.random.Generator, rough: float = 0.35) -> torch.Tensor:
    """Return a star-shaped blob with random Fourier terms in its radius."""
    xs, ys = axes()
    angle = torch.atan2(ys, xs)
    radius = torch.ones_like(xs)
    for term in range(1, 8):
        radius = radius + rng.normal(0, rough / term**1.1) * torch.cos(term * angle + rng.uniform(0, 2 * math.pi))
    radius = radius.clamp(min=0.25)
    return soft(radius / radius.max() * 0.93 - torch.hypot(xs, ys))


def polygon(rng: np.random.Generator) -> torch.Tensor:
    """Return a convex polygon of 3 to 8 sides, corners maybe rounded."""
    sides = int(rng.integers(3, 9))
    turns = (
        np.sort(rng.uniform(0, 2 * math.pi, sides))
        if rng.random() < 0.5
        else (np.arange(sides) / sides * 2 * math.pi + rng.normal(0, 0.15, sides))
    )
    xs, ys = axes()
    inside = 0.95 - torch.hypot(xs, ys)
    for turn in turns:
        inside = torch.minimum(inside, rng.uniform(0.45, 0.9) - (xs * math.cos(turn) + ys * math.sin(turn)))
    return soft(inside)


def ellipse(rng: np.random.Generator) -> torch.Tensor:
    """Return a super-ellipse: from a lozenge over an ellipse to a rounded box."""
    xs, ys = axes()
    power = rng.uniform(1.3, 6)
    return soft(0.93 - (xs.abs() ** power + ys.abs() ** power) ** (1 / power))


def union(rng: np.random.Generator) -> torch.Tensor:
    """Return two to six ellipses and bars in one."""
    xs, ys = axes()
    whole = torch.full_like(xs, -1.0)
    for _ in range(int(rng.integers(2, 7))):
        cx, cy, turn = rng.uniform(-0.45, 0.45), rng.uniform(-0.45, 0.45), rng.uniform(0, math.pi)
        long, wide = rng.uniform(0.25, 0.5), rng.uniform(0.06, 0.4)
        u = (xs - cx) * math.cos(turn) + (ys - cy) * math.sin(turn)
        v = (ys - cy) * math.cos(turn) - (xs - cx) * math.sin(turn)
        whole = torch.maximum(whole, (1 - torch.hypot(u / long, v / wide)) * wide)
    return soft(torch.minimum(whole, 0.97 - torch.hypot(xs, ys)))


def limb(rng: np.random.Generator) -> torch.Tensor:
    """Return a limb that fills the square from its joint, (0, -0.9), to its end, (0, 0.9); scale x for its width."""
    xs, ys = axes()
    end, belly = rng.uniform(0.4, 0.9), rng.uniform(-0.1, 0.3)
    along = (ys + 0.9) / 1.8
    width = (1 - along) * 0.9 + along * end + belly * torch.sin(along.clamp(0, 1) * math.pi)
    return soft(torch.minimum(width * 0.8 - xs.abs(), 0.93 - ys.abs()))


def wheel(rng: np.random.Generator) -> torch.Tensor:
    """Return a wheel: a rim, a hub and spokes, or a disc."""
    xs, ys = axes()
    radius, angle = torch.hypot(xs, ys), torch.atan2(ys, xs)
    thick = rng.uniform(0.07, 0.25)
    rim = thick - (radius - (0.93 - thick)).abs()
    if rng.random() < 0.35:
        return soft(0.93 - radius)
    spokes = int(rng.integers(3, 12))
    phase = torch.remainder(angle * spokes / (2 * math.pi), 1.0) - 0.5
    spoke = rng.uniform(0.015, 0.05) - phase.abs() * radius * 2 * math.pi / spokes
    spoke = torch.minimum(spoke, 0.9 - radius)
    return soft(torch.maximum(torch.maximum(rim, spoke), rng.uniform(0.1, 0.25) - radius))


def frame(rng: np.random.Generator) -> torch.Tensor:
    """Return thin bars between three to six points, as a bicycle's frame or a rack."""
    xs, ys = axes()
    points = rng.uniform(-0.8, 0.8, (int(rng.integers(3, 7)), 2))
    thick = rng.uniform(0.03, 0.09)
    whole = torch.full_like(xs, -1.0)
    for (ax, ay), (bx, by) in zip(points, np.roll(points, 1, axis=0), strict=True):
        length = max((bx - ax) ** 2 + (by - ay) ** 2, 1e-6)
        at = (((xs - ax) * (bx - ax) + (ys - ay) * (by - ay)) / length).clamp(0, 1)
        whole = torch.maximum(whole, thick - torch.hypot(xs - ax - at * (bx - ax), ys - ay - at * (by - ay)))
    return soft(whole)


def holes(rng: np.random.Generator, alpha: torch.Tensor) -> torch.Tensor:
    """Return a silhouette with noise bitten out of it, as leaves and hair have."""
    noise = fractal(rng, SIDE, SIDE, rng.uniform(0.8, 1.8))
    return alpha * ((noise - rng.uniform(0.25, 0.45)) * 12).clamp(0, 1)


def silhouette(rng: np.random.Generator) -> torch.Tensor:
    """Return a random silhouette."""
    kind = rng.random()
    if kind < 0.3:
        return blob(rng, rng.uniform(0.1, 0.5))
    if kind < 0.45:
        return polygon(rng)
    if kind < 0.6:
        return ellipse(rng)
    if kind < 0.85:
        return union(rng)
    if kind < 0.9:
        return F.interpolate(horse()[None], size=(SIDE, SIDE), mode="bilinear")[0]
    return holes(rng, blob(rng))

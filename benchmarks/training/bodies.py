"""Bodies: things of one or many parts, each part with a silhouette, a material and a joint at which it may swing."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np
import torch
import torch.nn.functional as F

from benchmarks.training import shapes
from benchmarks.training.pictures import cut_out
from benchmarks.training.textures import jitter, surface


@dataclass(frozen=True)
class Part:
    """One part of a body.

    Attributes:
        sprite: float32 [4, h, w], RGB times alpha, and alpha; it covers [-1, 1] in both of the part's directions.
        size: half extents (x, y) in the body's units.
        parent: index of the part it hangs on, or -1.
        joint: (x, y) on the parent from the parent's own joint, in the body's units.
        hangs: the joint is at the part's upper end and not at its centre.
        angle: at rest, radians. swing: (amplitude, radians a frame, phase). spin: radians a frame.
    """

    sprite: torch.Tensor
    size: tuple[float, float]
    parent: int = -1
    joint: tuple[float, float] = (0.0, 0.0)
    hangs: bool = False
    angle: float = 0.0
    swing: tuple[float, float, float] = (0.0, 0.0, 0.0)
    spin: float = 0.0


@dataclass(frozen=True)
class Materials:
    """What a body is made of: some surfaces, float32 [3, S, S] each."""

    surfaces: tuple[torch.Tensor, ...]

    def skin(self, rng: np.random.Generator) -> torch.Tensor:
        """Return a piece of one of them, at times with a pattern of another, float32 [3, S, S]."""
        made = self._piece(rng)
        if len(self.surfaces) > 1 and rng.random() < 0.35:
            share = shapes.silhouette(rng)
            turned = (share, share.flip(1), share.transpose(1, 2))[int(rng.integers(3))]
            made = made * (1 - turned) + self._piece(rng) * turned
        return made

    def _piece(self, rng: np.random.Generator) -> torch.Tensor:
        whole = self.surfaces[int(rng.integers(len(self.surfaces)))]
        side = int(whole.shape[1] * rng.uniform(0.4, 1.0))
        top, left = int(rng.integers(whole.shape[1] - side + 1)), int(rng.integers(whole.shape[2] - side + 1))
        piece = whole[None, :, top : top + side, left : left + side]
        return F.interpolate(piece, size=(shapes.SIDE, shapes.SIDE), mode="bilinear", align_corners=False)[0]


def materials(rng: np.random.Generator, ground: torch.Tensor | None, plain: float = 0.3) -> Materials:
    """Draw one to three surfaces; from `ground`, float32 [3, H, W], they are pieces of it: camouflage."""
    made = []
    for _ in range(int(rng.choice([1, 2, 2, 3]))):
        if ground is not None and rng.random() < 0.7:
            top, left = (int(rng.integers(size - shapes.SIDE + 1)) for size in ground.shape[1:])
            piece = ground[:, top : top + shapes.SIDE, left : left + shapes.SIDE]
            made.append((piece * rng.uniform(0.75, 1.25) + rng.normal(0, 0.05)).clamp(0, 1))
        else:
            made.append(surface(rng, shapes.SIDE, shapes.SIDE, plain))
    return Materials(tuple(made))


def dress(rng: np.random.Generator, alpha: torch.Tensor, skin: torch.Tensor) -> torch.Tensor:
    """Return a sprite [4, S, S] of a silhouette and a skin, shaded as if it bulged towards the light."""
    depth = F.avg_pool2d(alpha[None], 8)
    for _ in range(2):
        depth = F.avg_pool2d(depth, 3, 1, 1)
    depth = F.interpolate(depth, size=alpha.shape[1:], mode="bicubic", align_corners=False)[0, 0]
    slope_y, slope_x = torch.gradient(depth, spacing=2 / shapes.SIDE)
    light, strength = rng.uniform(0, 2 * math.pi), rng.uniform(0, 0.16)
    shade = 1 + strength * (slope_x * math.cos(light) + slope_y * math.sin(light)) + rng.uniform(0, 0.3) * (depth - 0.6)
    return torch.cat([(skin * shade.clamp(0.25, 1.7)).clamp(0, 1) * alpha, alpha])


def body(rng: np.random.Generator, wear: Materials) -> list[Part]:
    """Return a random body within about the unit circle; parts come far to near."""
    kind = rng.random()
    if kind < 0.22:
        return [_part(rng, wear, shapes.silhouette, _spread(rng, 0.9))]
    if kind < 0.36:
        return [_cut(rng)]
    if kind < 0.52:
        return _cluster(rng, wear)
    if kind < 0.80:
        return _figure(rng, wear)
    return _vehicle(rng, wear)


def repaint(rng: np.random.Generator, parts: list[Part]) -> list[Part]:
    """Return the same body in changed colours."""
    order = [*rng.permutation(3).tolist(), 3]
    gain = torch.tensor([*rng.uniform(0.6, 1.0, 3), 1.0], dtype=torch.float32)[:, None, None]
    return [replace(part, sprite=part.sprite[order] * gain) for part in parts]


def pole(rng: np.random.Generator, wear: Materials) -> list[Part]:
    """Return a long thin thing to be in front of others: a pole, a trunk, maybe with a crown."""
    size = (rng.uniform(0.02, 0.14), rng.uniform(1.2, 3.0))
    parts = [_part(rng, wear, shapes.limb, size, angle=rng.normal(0, 0.12))]
    if rng.random() < 0.4:
        crown = (rng.uniform(0.2, 0.6), rng.uniform(0.15, 0.5))
        parts.append(_part(rng, wear, lambda r: shapes.holes(r, shapes.blob(r)), crown, 0, (0.0, -size[1])))
    return parts


def _spread(rng: np.random.Generator, size: float, most: float = 0.7) -> tuple[float, float]:
    """Return half extents whose geometric mean is about `size`."""
    stretch = math.exp(rng.uniform(-most, most) / 2)
    return size * stretch, size / stretch


def _part(
    rng: np.random.Generator, wear: Materials, draw: Callable[[np.random.Generator], torch.Tensor],
    size: tuple[float, float], parent: int = -1, joint: tuple[float, float] = (0.0, 0.0), hangs: bool = False,
    angle: float = 0.0, swing: tuple[float, float, float] = (0.0, 0.0, 0.0),
) -> Part:  # fmt: skip
    return Part(dress(rng, draw(rng), wear.skin(rng)), size, parent, joint, hangs, angle, swing)


def _cut(rng: np.random.Generator) -> Part:
    """Return a piece of a photograph, in other colours half of the time."""
    piece = cut_out(rng, shapes.SIDE)
    skin, alpha = piece[:3], piece[3:].clamp(0, 1)
    if rng.random() < 0.6:
        skin = jitter(rng, skin)
    return Part(torch.cat([skin * alpha, alpha]), _spread(rng, 0.85))


def _cluster(rng: np.random.Generator, wear: Materials) -> list[Part]:
    """Return two to five shapes over each other, some loose."""
    parts = [_part(rng, wear, shapes.silhouette, _spread(rng, rng.uniform(0.5, 0.8)))]
    for _ in range(int(rng.integers(1, 5))):
        joint = (rng.uniform(-0.6, 0.6), rng.uniform(-0.6, 0.6))
        size = _spread(rng, rng.uniform(0.15, 0.5), 1.2)
        swing = _swing(rng, 0.4) if rng.random() < 0.5 else (0.0, 0.0, 0.0)
        part = _part(rng, wear, shapes.silhouette, size, 0, joint, bool(rng.random() < 0.4), rng.uniform(-3, 3), swing)
        parts.append(part)
    return parts


def _swing(rng: np.random.Generator, most: float) -> tuple[float, float, float]:
    return rng.uniform(0, most), rng.uniform(0.05, 0.5), rng.uniform(0, 2 * math.pi)


def _figure(rng: np.random.Generator, wear: Materials, size: float = 1.0) -> list[Part]:
    """Return a trunk with a head and two to four jointed limbs, upright as people or long as animals."""
    upright = rng.random() < 0.6
    length, width = size * rng.uniform(0.3, 0.45), size * rng.uniform(0.16, 0.34)
    trunk_size = (width, length) if upright else (length, width)
    draw = shapes.ellipse if rng.random() < 0.5 else lambda r: shapes.blob(r, 0.15)
    trunk = _part(rng, wear, draw, trunk_size, angle=rng.normal(0, 0.2))
    pace, phase, reach = rng.uniform(0.05, 0.5), rng.uniform(0, 6.3), rng.uniform(0, 0.8)
    near: list[Part] = [trunk]
    count = int(rng.integers(2, 5))
    for number in range(count):
        legs = number < 2 or not upright
        x = trunk_size[0] * rng.uniform(-0.9, 0.9) * (0.4 if upright and legs else 1.0)
        y = trunk_size[1] * (rng.uniform(0.5, 0.9) if legs else rng.uniform(-0.9, -0.5))
        long, wide = size * rng.uniform(0.18, 0.32), size * rng.uniform(0.05, 0.14)
        swing = (reach, pace, phase + number * math.pi)
        near.append(_part(rng, wear, shapes.limb, (wide, long), 0, (x, y), True, rng.normal(0, 0.4), swing))
        bend = (reach * rng.uniform(0.3, 1), pace, phase + number * math.pi + 0.8)
        tip = (wide * rng.uniform(0.6, 1.0), long * rng.uniform(0.7, 1.1))
        parent = len(near) - 1
        near.append(_part(rng, wear, shapes.limb, tip, parent, (0.0, long * 1.7), True, rng.normal(0.2, 0.4), bend))
    head = size * rng.uniform(0.09, 0.2)
    neck = (0.0, -length - head * 0.6) if upright else (length * 1.0, -width - head * rng.uniform(0, 1.2))
    near.append(_part(rng, wear, shapes.ellipse, _spread(rng, head, 0.4), 0, neck, swing=_swing(rng, 0.3)))
    if not upright and rng.random() < 0.7:
        neck_size = (head * 0.5, math.hypot(*neck) * 0.4)
        near.append(_part(rng, wear, shapes.limb, neck_size, 0, (length * 0.8, 0.0), True, math.pi + 0.3))
    return near


def _vehicle(rng: np.random.Generator, wear: Materials) -> list[Part]:
    """Return a box on two wheels, or a thin frame on two wheels; at times with a rider of other materials."""
    roll = rng.uniform(-0.4, 0.4)
    thin = rng.random() < 0.5
    radius = rng.uniform(0.25, 0.4) if thin else rng.uniform(0.13, 0.25)
    hull_size = (
        (rng.uniform(0.35, 0.55), rng.uniform(0.15, 0.3)) if thin else (rng.uniform(0.6, 0.95), rng.uniform(0.2, 0.45))
    )
    hull = _part(rng, wear, shapes.frame if thin else _hull, hull_size)
    parts = [hull]
    for side in (-1, 1):
        joint = (side * (0.55 if thin else hull_size[0] * 0.6), hull_size[1] * rng.uniform(0.8, 1.0))
        wheel = _part(rng, wear, shapes.wheel, (radius, radius), 0, joint)
        parts.append(replace(wheel, spin=roll))
    if not thin:
        for _ in range(int(rng.integers(1, 4))):
            joint = (rng.uniform(-0.5, 0.5) * hull_size[0], -hull_size[1] * rng.uniform(0.1, 0.6))
            parts.append(_part(rng, wear, shapes.ellipse, _spread(rng, 0.14, 0.8), 0, joint))
    if thin or rng.random() < 0.3:
        rider = _figure(rng, Materials((surface(rng, shapes.SIDE, shapes.SIDE, 0.5), *wear.surfaces)), 0.8)
        first = len(parts)
        for part in rider:
            at = (rng.normal(0, 0.1), -hull_size[1] - 0.25) if part.parent < 0 else part.joint
            parts.append(replace(part, parent=0 if part.parent < 0 else part.parent + first, joint=at))
    return parts


def _hull(rng: np.random.Generator) -> torch.Tensor:
    return shapes.ellipse(rng) if rng.random() < 0.5 else shapes.polygon(rng)

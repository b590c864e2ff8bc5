"""Motion and drawing: bodies with paths through the world, seen by a camera, painted over each other far to near.

World units: the view is 2 high and 2 x aspect wide. The output is square, as the model's input is.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray

from benchmarks.training.bodies import Part

Matrices = NDArray[np.floating[Any]]  # [T, 3, 3]
Box = tuple[slice, slice]


@dataclass(frozen=True)
class Actor:
    """A body in the world.

    Attributes:
        parts: far to near. label: 0 if it is not to be segmented.
        place: [T, 3, 3], from the body's units to the world's.
        depth: how far it follows the camera: 0 with the camera, 1 the plane of the objects, above 1 in front of it.
        bend: amplitude of its slow warp in a part's units.
        shadow: darkness of its shadow in [0, 1). fall: where it falls, (x, y) in body heights.
    """

    parts: list[Part]
    label: int
    place: Matrices
    depth: float = 1.0
    bend: float = 0.0
    shadow: float = 0.0
    fall: tuple[float, float] = (0.0, 0.0)
    seed: int = 0


@dataclass(frozen=True)
class Camera:
    """The way of the camera: [T] each, centre in world units, zoom, roll in radians."""

    x: NDArray[np.float64]
    y: NDArray[np.float64]
    zoom: NDArray[np.float64]
    roll: NDArray[np.float64]
    aspect: float

    def view(self, depth: float) -> Matrices:
        """Return [T, 3, 3] from the output's [-1, 1] square to the world at a depth."""
        squeeze = np.diag([self.aspect, 1.0, 1.0])
        zoom = 1 / self.zoom ** (0.5 + 0.5 * depth)
        return moved(self.x * depth, self.y * depth) @ turned(self.roll, zoom, zoom) @ squeeze


def moved(x: NDArray[np.float64], y: NDArray[np.float64]) -> Matrices:
    """Return translations [T, 3, 3]."""
    made = np.tile(np.eye(3), (len(x), 1, 1))
    made[:, 0, 2], made[:, 1, 2] = x, y
    return made


def turned(
    angle: NDArray[np.float64], wide: NDArray[np.float64] | float, high: NDArray[np.float64] | float
) -> Matrices:
    """Return [T, 3, 3]: scaled by (wide, high), then turned."""
    made = np.zeros((len(angle), 3, 3))
    made[:, 0, 0], made[:, 0, 1] = np.cos(angle) * wide, -np.sin(angle) * high
    made[:, 1, 0], made[:, 1, 1] = np.sin(angle) * wide, np.cos(angle) * high
    made[:, 2, 2] = 1
    return made


def joints(parts: list[Part], frames: int) -> list[Matrices]:
    """Return for every part [T, 3, 3] from its sprite's square to the body's units."""
    time = np.arange(frames)
    bones: list[Matrices] = []
    placed: list[Matrices] = []
    for part in parts:
        reach, rate, phase = part.swing
        angle = part.angle + part.spin * time + reach * np.sin(rate * time + phase)
        still = np.zeros(frames)
        bone = moved(still + part.joint[0], still + part.joint[1]) @ turned(angle, 1.0, 1.0)
        bones.append(bone if part.parent < 0 else bones[part.parent] @ bone)
        centre = moved(still, still + (0.9 * part.size[1] if part.hangs else 0.0))
        placed.append(bones[-1] @ centre @ turned(still, *part.size))
    return placed


class Canvas:
    """A clip in the making: colours float32 [T, 3, S, S] and what of each label is seen."""

    def __init__(self, frames: int, size: int, camera: Camera) -> None:
        self.frames, self.size, self.camera = frames, size, camera
        self.colours = torch.zeros(frames, 3, size, size)
        self.seen: dict[int, torch.Tensor] = {}

    def ground(self, picture: torch.Tensor, reach: float, depth: float) -> None:
        """Fill with a picture float32 [3, h, w] that covers `reach` views in both directions, mirrored beyond."""
        aspect = self.camera.aspect
        to_picture = np.diag([1 / (reach * aspect), 1 / reach, 1.0]) @ self.camera.view(depth)
        self.colours = _sample(picture, to_picture, _everywhere(self.size), self.size, "reflection")

    def paint(self, actor: Actor, smear: float = 0.0) -> None:
        """Paint an actor over what is there. `smear`: the share of a frame the shutter is open."""
        found = self._layer(actor)
        if found is None:
            return
        layer, box = found
        if smear:
            layer = self._smeared(layer, actor, smear)
        if actor.shadow:
            self._shade(layer[:, 3:], box, actor)
        clear = 1 - layer[:, 3:]
        here = self.colours[:, :, box[0], box[1]]
        self.colours[:, :, box[0], box[1]] = here * clear + layer[:, :3]
        for seen in self.seen.values():
            seen[:, box[0], box[1]] *= clear[:, 0]
        if actor.label:
            mine = self.seen.setdefault(actor.label, torch.zeros(self.frames, self.size, self.size))
            mine[:, box[0], box[1]] += layer[:, 3]

    def labels(self) -> NDArray[np.uint8]:
        """Return uint8 [T, S, S]: the label whose share of the pixel is over a half, else 0."""
        made = torch.zeros(self.frames, self.size, self.size, dtype=torch.uint8)
        for label, seen in self.seen.items():
            made[seen > 0.5] = label
        return made.numpy()

    def _layer(self, actor: Actor) -> tuple[torch.Tensor, Box] | None:
        """Return the actor alone, [T, 4, h, w] with colours times alpha, and where that is; None if never in view."""
        inverse = np.linalg.inv(self.camera.view(actor.depth))
        to_view = [inverse @ actor.place @ part for part in joints(actor.parts, self.frames)]
        boxes = [_box(matrix, self.size) for matrix in to_view]
        inside = [box for box in boxes if box is not None]
        if not inside:
            return None
        rows = slice(min(b[0].start for b in inside), max(b[0].stop for b in inside))
        columns = slice(min(b[1].start for b in inside), max(b[1].stop for b in inside))
        layer = torch.zeros(self.frames, 4, rows.stop - rows.start, columns.stop - columns.start)
        for number, (part, matrix, box) in enumerate(zip(actor.parts, to_view, boxes, strict=True)):
            if box is None:
                continue
            sprite = _fitted(part.sprite, matrix, self.size)
            drawn = _sample(sprite, np.linalg.inv(matrix), box, self.size, "zeros", actor.bend, actor.seed + number)
            at = (slice(box[0].start - rows.start, box[0].stop - rows.start),
                  slice(box[1].start - columns.start, box[1].stop - columns.start))  # fmt: skip
            layer[:, :, at[0], at[1]] = layer[:, :, at[0], at[1]] * (1 - drawn[:, 3:]) + drawn
        return layer, (rows, columns)

    def _smeared(self, layer: torch.Tensor, actor: Actor, smear: float) -> torch.Tensor:
        """Blur along the actor's way over the picture, frame by frame."""
        centre = (np.linalg.inv(self.camera.view(actor.depth)) @ actor.place)[:, :2, 2] * self.size / 2
        speed = np.gradient(centre, axis=0) * smear if self.frames > 1 else np.zeros((1, 2))
        return torch.stack([smeared(frame, *way) for frame, way in zip(layer, speed, strict=True)])

    def _shade(self, alpha: torch.Tensor, box: Box, actor: Actor) -> None:
        """Darken what is there by a soft, shifted, flattened copy of the actor."""
        high = box[0].stop - box[0].start
        x, y = int(actor.fall[0] * high), int(actor.fall[1] * high)
        small = F.avg_pool2d(alpha, 4, 4, ceil_mode=True)
        for _ in range(2):
            small = F.avg_pool2d(small, 5, 1, 2)
        flat = F.interpolate(small, size=(max(1, high // 3), alpha.shape[3]), mode="bilinear", align_corners=False)
        top, left = box[0].stop - flat.shape[2] // 2 + y, box[1].start + x
        rows = slice(max(0, top), min(self.size, top + flat.shape[2]))
        columns = slice(max(0, left), min(self.size, left + flat.shape[3]))
        if rows.start < rows.stop and columns.start < columns.stop:
            part = flat[:, :, rows.start - top : rows.stop - top, columns.start - left : columns.stop - left]
            self.colours[:, :, rows, columns] *= 1 - actor.shadow * part


def smeared(image: torch.Tensor, x: float, y: float, most: int = 9) -> torch.Tensor:
    """Return an image [C, H, W] blurred along (x, y) pixels, by shifts to whole pixels; edges repeat."""
    length = min(most, round(max(abs(x), abs(y))))
    if length < 1:
        return image
    scale = length / max(abs(x), abs(y))
    padded = F.pad(image[None], (most, most, most, most), mode="replicate")[0]
    total = torch.zeros_like(image)
    for step in range(length + 1):
        share = step / length - 0.5
        dx, dy = most + round(share * x * scale), most + round(share * y * scale)
        total += padded[:, dy : dy + image.shape[1], dx : dx + image.shape[2]]
    return total / (length + 1)


def _everywhere(size: int) -> Box:
    return slice(0, size), slice(0, size)


def _box(to_view: Matrices, size: int) -> Box | None:
    """Return the pixels that a sprite's square, a little widened, reaches on any frame; None if there are none."""
    corners = to_view @ (np.array([[-1, -1, 1, 1], [-1, 1, -1, 1], [0.9, 0.9, 0.9, 0.9]]) / 0.9)
    low = np.floor((corners[:, :2].min((0, 2)) + 1) / 2 * size).clip(0, size).astype(int)
    high = np.ceil((corners[:, :2].max((0, 2)) + 1) / 2 * size).clip(0, size).astype(int)
    if (high - low < 1).any():
        return None
    return slice(int(low[1]), int(high[1])), slice(int(low[0]), int(high[0]))


def _fitted(sprite: torch.Tensor, to_view: Matrices, size: int) -> torch.Tensor:
    """Return the sprite at about the size at which it is seen, so that sampling it does not alias."""
    seen = np.hypot(to_view[:, 0, :2], to_view[:, 1, :2]).mean(0) * size * 1.2
    height, width = (int(np.clip(pixels, 4, side)) for pixels, side in zip(seen[::-1], sprite.shape[1:], strict=True))
    if (height, width) == tuple(sprite.shape[1:]):
        return sprite
    return F.interpolate(sprite[None], size=(height, width), mode="bilinear", align_corners=False, antialias=True)[0]


def _sample(
    image: torch.Tensor, to_image: Matrices, box: Box, size: int, beyond: str, bend: float = 0.0, seed: int = 0
) -> torch.Tensor:
    """Return an image [C, h, w] seen through [T, 3, 3] matrices at the pixels of a box, [T, C, H, W]."""
    rows, columns = (torch.arange(side.start, side.stop) * (2 / size) + (1 / size - 1) for side in box)
    ys, xs = torch.meshgrid(rows, columns, indexing="ij")
    theta = torch.from_numpy(to_image.astype(np.float32))
    flat = torch.stack([xs.flatten(), ys.flatten(), torch.ones(xs.numel())])
    grid = (theta[:, :2] @ flat).movedim(1, 2)
    if bend:
        rng = np.random.default_rng(seed)
        time = torch.arange(len(theta))[:, None] * rng.uniform(0.05, 0.5)
        shift = [
            bend * torch.sin(grid[..., 1 - axis] * rng.uniform(1, 4) + time + rng.uniform(0, 2 * math.pi))
            for axis in (0, 1)
        ]
        grid = grid + torch.stack(shift, -1)
    grid = grid.view(len(theta), len(rows), len(columns), 2)
    return F.grid_sample(
        image.expand(len(theta), -1, -1, -1), grid, mode="bilinear", padding_mode=beyond, align_corners=False
    )

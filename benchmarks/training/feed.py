"""Training batches from the synthetic worlds: a sliding pool of clips, windows cut from them, prompts for objects.

A batch is a function of (seed, step) alone, so that an interrupted run goes on with the batches it would have had.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray

from benchmarks.training.world import make_world_clip
from surgery.demo.clips import HELD_OUT, Clip, Difficulty, make_clip

PromptKind = Literal["mask", "box", "point"]
Points = tuple[torch.Tensor, torch.Tensor]

LEVEL_MIX: tuple[Difficulty, ...] = ("easy", "medium", "medium", "hard")
"""Difficulties that clips are drawn from, with equal chance."""

MEAN = (0.485, 0.456, 0.406)
STD = (0.229, 0.224, 0.225)


@dataclass(frozen=True)
class Practice:
    """Single images to be segmented from a prompt, without memory: N of the (object, frame) pairs of a batch.

    Attributes:
        rows, frames: int64 [N] each, into a batch's objects and frames; the object is visible there.
        kind, points: as in `Batch`, never `"mask"`.
    """

    rows: torch.Tensor
    frames: torch.Tensor
    kind: PromptKind
    points: Points

    def to(self, device: torch.device | str) -> Practice:
        """Return the practice on a device."""
        points = (self.points[0].to(device), self.points[1].to(device))
        return Practice(self.rows.to(device), self.frames.to(device), self.kind, points)


@dataclass(frozen=True)
class Batch:
    """A training batch of B clips of T frames with R prompted objects.

    Attributes:
        images: float32 [B, T, 3, S, S], normalised as SAM 2 expects.
        masks: bool [R, T, S, S], the visible pixels of each object.
        clip_of: int64 [R], which clip an object is in.
        kind: how frame 0 is prompted.
        points: float32 [R, P, 2] as (x, y) pixels and labels int32 [R, P] (1 inside, 2 and 3 box corners), or None.
        practice: images to be segmented by themselves, or None.
    """

    images: torch.Tensor
    masks: torch.Tensor
    clip_of: torch.Tensor
    kind: PromptKind
    points: Points | None
    practice: Practice | None = None

    def to(self, device: torch.device | str) -> Batch:
        """Return the batch on a device."""
        points = None if self.points is None else (self.points[0].to(device), self.points[1].to(device))
        practice = None if self.practice is None else self.practice.to(device)
        images, masks, clip_of = (tensor.to(device) for tensor in (self.images, self.masks, self.clip_of))
        return Batch(images, masks, clip_of, self.kind, points, practice)


@dataclass(frozen=True)
class FeedPlan:
    """How batches are cut: clips a batch, frames a window, pixels, objects a clip, how long a clip is reused,
    on how many frames an object is also prompted by itself, and the chance that a clip is of the new world."""

    clips: int
    frames: int
    size: int
    objects: int = 2
    source_frames: int = 12
    pool: int = 400
    fresh_per_step: int = 2
    practice: int = 2
    levels: tuple[Difficulty, ...] = LEVEL_MIX
    new_world: float = 0.0


def normalise(frames: NDArray[np.uint8]) -> torch.Tensor:
    """Return uint8 frames [..., H, W, 3] as float32 [..., 3, H, W], normalised as SAM 2 expects."""
    scaled = torch.from_numpy(np.ascontiguousarray(frames)).float().div_(255).movedim(-1, -3).contiguous()
    return (scaled - torch.tensor(MEAN)[:, None, None]) / torch.tensor(STD)[:, None, None]


class Feed:
    """The batches of a run."""

    def __init__(self, seed: int, plan: FeedPlan) -> None:
        self.seed, self.plan = seed, plan
        self._pool: dict[int, Clip] = {}

    def batch(self, step: int) -> Batch:
        """Return the batch of a step."""
        plan = self.plan
        rng = np.random.default_rng([self.seed, step])
        low = step * plan.fresh_per_step
        for stale in [index for index in self._pool if index < low]:
            del self._pool[stale]
        images: list[NDArray[np.uint8]] = []
        masks: list[NDArray[np.bool_]] = []
        clip_of: list[int] = []
        while len(images) < plan.clips:
            window = self._window(rng, low)
            if window is None:
                continue
            frames, labels, chosen = window
            for label in chosen:
                masks.append(labels == label)
                clip_of.append(len(images))
            images.append(frames)
        kinds: tuple[PromptKind, ...] = ("mask", "box", "mask", "point")
        kind = kinds[step % len(kinds)]
        truth = torch.from_numpy(np.stack(masks))
        points = make_points(rng, truth[:, 0].numpy(), kind)
        practice = self._practice(rng, truth.numpy())
        return Batch(normalise(np.stack(images)), truth, torch.tensor(clip_of), kind, points, practice)

    def _practice(self, rng: np.random.Generator, masks: NDArray[np.bool_]) -> Practice:
        """Prompt every object on up to `practice` random frames that show it."""
        rows, frames = [], []
        for row, shown in enumerate(masks.sum((2, 3)) >= self._least_area):
            for frame in rng.permutation(np.flatnonzero(shown))[: self.plan.practice]:
                rows.append(row)
                frames.append(int(frame))
        kind: PromptKind = "point" if rng.random() < 0.35 else "box"
        points = make_points(rng, masks[rows, frames], kind)
        assert points is not None
        return Practice(torch.tensor(rows), torch.tensor(frames), kind, points)

    @property
    def _least_area(self) -> int:
        """Pixels an object must show to be prompted."""
        return max(12, 150 * self.plan.size**2 // 65536)

    def _clip(self, index: int) -> Clip:
        if index not in self._pool:
            plan = self.plan
            rng = np.random.default_rng([self.seed, index, 7])
            clip_seed = (self.seed * 10_000_019 + index) % HELD_OUT
            if plan.new_world and np.random.default_rng([self.seed, index, 8]).random() < plan.new_world:
                self._pool[index] = make_world_clip(clip_seed, plan.source_frames, plan.size)
                return self._pool[index]
            difficulty = self.plan.levels[int(rng.integers(len(self.plan.levels)))]
            cuts = int(rng.random() < 0.08)
            # A clip with one object can be segmented without looking at the prompt.
            objects = int(rng.integers(2, 5)) if rng.random() < 0.6 else None
            self._pool[index] = make_clip(clip_seed, plan.source_frames, plan.size, difficulty, cuts, objects)
        return self._pool[index]

    def _window(
        self, rng: np.random.Generator, low: int
    ) -> tuple[NDArray[np.uint8], NDArray[np.uint8], list[int]] | None:
        """Cut a window of a random clip: frames, labels and the objects to follow; None if none shows on its first."""
        plan = self.plan
        clip = self._clip(low + int(rng.integers(plan.pool)))
        most = max(1, (plan.source_frames - 1) // max(1, plan.frames - 1))
        stride = min(int(rng.choice([1, 1, 2, 3])), most)
        start = int(rng.integers(plan.source_frames - stride * (plan.frames - 1)))
        at = start + stride * np.arange(plan.frames)
        if rng.random() < 0.5:
            at = at[::-1]
        frames, labels = clip.frames[at].copy(), clip.labels[at].copy()
        area = np.bincount(labels[0].ravel(), minlength=8)[1:]
        able = np.flatnonzero(area >= self._least_area) + 1
        if not len(able):
            return None
        chosen = rng.permutation(able)[: plan.objects].tolist()
        if plan.frames > 1 and rng.random() < 0.08:
            # A cut to another clip: the one frame after which every object is gone, to teach the object score.
            other = self._clip(low + int(rng.integers(plan.pool)))
            cut = int(rng.integers(1, plan.frames))
            frames[cut:], labels[cut:] = other.frames[at[cut:]], 0
        for axis in (1, 2):
            if rng.random() < 0.5:
                frames, labels = np.flip(frames, axis), np.flip(labels, axis)
        gain = rng.uniform(0.75, 1.2)
        frames = np.clip(frames[..., rng.permutation(3)] * np.float32(gain), 0, 255).astype(np.uint8)
        return frames, np.ascontiguousarray(labels), chosen


def make_points(
    rng: np.random.Generator, masks: NDArray[np.bool_], kind: PromptKind, jitter: float = 0.08
) -> Points | None:
    """Return prompts for masks bool [R, H, W]: (x, y) float32 [R, P, 2] and labels int32 [R, P]; None for mask prompts.

    A point is any pixel of its mask; a box's corners are moved by up to `jitter` of its sides.
    """
    if kind == "mask":
        return None
    coords, labels = [], []
    for mask in masks:
        ys, xs = np.nonzero(mask)
        if kind == "point":
            pick = int(rng.integers(len(ys)))
            coords.append([[xs[pick], ys[pick]]])
            labels.append([1])
        else:
            left, right, top, bottom = xs.min(), xs.max(), ys.min(), ys.max()
            shake = rng.uniform(-jitter, jitter, 4) * np.array([right - left, bottom - top] * 2)
            coords.append([[left + shake[0], top + shake[1]], [right + shake[2], bottom + shake[3]]])
            labels.append([2, 3])
    return torch.tensor(np.array(coords), dtype=torch.float32), torch.tensor(labels, dtype=torch.int32)

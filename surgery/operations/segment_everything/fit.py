"""Fitting the proposal head to boxes, without a label: the boxes are those of the model's own masks."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from surgery.operations.segment_everything.head import REACH, STRIDES, Level, ProposalHead

Features = tuple[Tensor, Tensor, Tensor]
CENTER = 0.3
"""Places within this share of a box's sides around its middle are to find it, or within one stride."""


def targets(levels: Sequence[Level], boxes: Tensor) -> list[Tensor]:
    """For every level the box that each place is to find: int64 [h * w], -1 for none. The smallest box wins."""
    if not len(boxes):
        return [torch.full((len(level.centers()),), -1, device=boxes.device) for level in levels]
    sides = (boxes[:, 2:] - boxes[:, :2]).clamp(min=1)
    size = sides.prod(1).sqrt()
    middle = (boxes[:, 2:] + boxes[:, :2]) / 2
    found, low = [], 0.0
    for level in levels:
        high = REACH * level.stride if level.stride != STRIDES[-1] else float("inf")
        near = (level.centers()[:, None] - middle).abs() <= (sides * CENTER / 2).clamp(min=level.stride / 2)
        fits = near.all(2) & (size > low) & (size <= high)
        smallest = torch.where(fits, size, torch.inf).min(1)
        found.append(torch.where(smallest.values.isfinite(), smallest.indices, -1))
        low = high
    return found


def loss(levels: Sequence[Level], boxes: Tensor) -> Tensor:
    """Focal loss of objectness and 1 - GIoU of boxes, of one picture. boxes: [n, 4] on the model's input."""
    wanted = targets(levels, boxes)
    logits = torch.cat([level.objectness.flatten() for level in levels])
    index = torch.cat(wanted)
    truth = (index >= 0).to(logits.dtype)
    probability = logits.sigmoid()
    right = torch.where(truth > 0, probability, 1 - probability)
    weight = torch.where(truth > 0, 0.25, 0.75) * (1 - right) ** 2
    focal = (weight * F.binary_cross_entropy_with_logits(logits, truth, reduction="none")).sum()
    hits = truth.sum().clamp(min=1)
    if not bool(truth.any()):
        return focal / hits
    said = torch.cat([level.boxes() for level in levels])[index >= 0]
    return (focal + (1 - generalised_iou(said, boxes[index[index >= 0]])).sum()) / hits


def generalised_iou(one: Tensor, other: Tensor) -> Tensor:
    """Of boxes [n, 4] pairwise, -1 to 1."""
    areas = [(each[:, 2:] - each[:, :2]).clamp(min=0).prod(1) for each in (one, other)]
    inner = (torch.minimum(one[:, 2:], other[:, 2:]) - torch.maximum(one[:, :2], other[:, :2])).clamp(min=0).prod(1)
    outer = (torch.maximum(one[:, 2:], other[:, 2:]) - torch.minimum(one[:, :2], other[:, :2])).prod(1).clamp(min=1e-6)
    union = (areas[0] + areas[1] - inner).clamp(min=1e-6)
    return inner / union - (outer - union) / outer


def fit_head(
    head: ProposalHead, features: Sequence[Features], boxes: Sequence[Tensor], steps: int, batch: int = 8,
    rate: float = 2e-3, seed: int = 0, tick: Callable[[float], None] = lambda loss: None,
) -> None:  # fmt: skip
    """Fit a head in place. features, boxes: of every picture. tick: told the loss after every step."""
    generator = torch.Generator().manual_seed(seed)
    head.reset_parameters(generator)
    optimizer = torch.optim.AdamW(head.parameters(), lr=rate, weight_decay=0.01)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, rate, total_steps=steps, pct_start=0.1)
    head.train().requires_grad_(True)
    with torch.enable_grad():
        for _ in range(steps):
            chosen = torch.randint(len(features), (min(batch, len(features)),), generator=generator).tolist()
            few = [torch.cat([features[place][level] for place in chosen]) for level in range(len(STRIDES))]
            found = head(few)
            total = torch.stack(
                [loss(levels, boxes[place]) for levels, place in zip(found, chosen, strict=True)]
            ).mean()
            optimizer.zero_grad()
            total.backward()
            torch.nn.utils.clip_grad_norm_(head.parameters(), 1.0)
            optimizer.step()
            schedule.step()
            tick(float(total.detach()))
    head.eval().requires_grad_(False)

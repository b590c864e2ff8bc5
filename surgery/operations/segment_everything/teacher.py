"""What the head is taught: boxes of the model's own masks, each of its largest piece."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor


def largest_pieces(masks: Tensor) -> Tensor:
    """Of masks bool [n, h, w] the largest 8-connected piece each: specks far away would make its box too large."""
    count, height, width = masks.shape
    number = torch.arange(1, height * width + 1, dtype=torch.float32, device=masks.device).reshape(1, height, width)
    labels = number * masks
    while True:
        spread = F.max_pool2d(labels[:, None], 3, 1, 1)[:, 0] * masks
        spread = _swept(spread, masks)
        if torch.equal(spread, labels):
            break
        labels = spread
    flat = labels.flatten(1).to(torch.int64)
    sizes = torch.zeros(count, height * width + 1, dtype=torch.int64, device=masks.device)
    sizes.scatter_add_(1, flat, torch.ones_like(flat))
    sizes[:, 0] = 0
    return (labels == sizes.argmax(1).to(labels.dtype)[:, None, None]) & masks


def _swept(labels: Tensor, masks: Tensor) -> Tensor:
    """Every run of a row, and then of a column, takes its largest label: pieces are done in a few rounds."""
    for _ in range(2):
        labels, masks = labels.transpose(1, 2), masks.transpose(1, 2)
        runs = (~masks).cumsum(2) * 2 + masks
        best = torch.zeros(*labels.shape[:2], 2 * labels.shape[2] + 2, device=labels.device)
        best = best.scatter_reduce(2, runs, labels, "amax")
        labels = best.gather(2, runs) * masks
    return labels

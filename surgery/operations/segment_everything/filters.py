"""What is kept of decoded masks: stability, boxes, and of those that show the same only the best."""

from __future__ import annotations

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor


def upsampled(logits: Tensor, size: tuple[int, int]) -> Tensor:
    """[n, h, w] -> fp32 [n, H, W], as the hosts do it."""
    return F.interpolate(logits[:, None].float(), size, mode="bilinear", align_corners=False)[:, 0]


def stability(logits: Tensor, offset: float) -> Tensor:
    """IoU of every mask [n, H, W] a little smaller with itself a little larger, fp32 [n]; NaN for one without pixels.
    offset: of the logits."""
    return _count(logits > offset) / _count(logits > -offset)


def _count(masks: Tensor) -> Tensor:
    return masks.sum(-1, dtype=torch.int16 if masks.shape[-1] < 2**15 else torch.int32).sum(-1, dtype=torch.int32)


def boxes_of(masks: Tensor) -> Tensor:
    """First and last column and row of masks bool [n, H, W]: int64 [n, 4] (x0, y0, x1, y1); zeros for an empty one."""
    columns, rows = masks.any(-2), masks.any(-1)
    ends = [_ends(columns), _ends(rows)]
    found = torch.stack([ends[0][0], ends[1][0], ends[0][1], ends[1][1]], -1)
    return found * columns.any(-1, keepdim=True)


def _ends(line: Tensor) -> tuple[Tensor, Tensor]:
    number = line.to(torch.uint8)
    return number.argmax(-1), line.shape[-1] - 1 - number.flip(-1).argmax(-1)


def overlaps(boxes: Tensor, others: Tensor) -> Tensor:
    """IoU of boxes [n, 4] with [m, 4]: [n, m]; 0 where both are empty."""
    areas = [(each[:, 2] - each[:, 0]) * (each[:, 3] - each[:, 1]) for each in (boxes, others)]
    low = torch.maximum(boxes[:, None, :2], others[None, :, :2])
    high = torch.minimum(boxes[:, None, 2:], others[None, :, 2:])
    both = (high - low).clamp(min=0).prod(-1)
    union = areas[0][:, None] + areas[1] - both
    return torch.where(union > 0, both / union, 0.0)


def best_of_each(boxes: Tensor, scores: Tensor, most: float) -> Tensor:
    """Greedy suppression, best first: places of the boxes that overlap no better one by more than `most`.

    Ties go to the earlier one, as in torchvision.
    """
    order = scores.sort(stable=True, descending=True).indices
    ranked = boxes[order].float()
    covers = (overlaps(ranked, ranked).double() > most).cpu().numpy()
    kept, gone = [], np.zeros(len(order), dtype=bool)
    for place in range(len(order)):
        if not gone[place]:
            kept.append(place)
            gone |= covers[place]
    return order[torch.tensor(kept, dtype=torch.int64, device=order.device)]

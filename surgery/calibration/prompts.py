"""What to track when nobody says: a grid of points on the first frame, judged by the model's own IoU and stability."""

from __future__ import annotations

from itertools import product
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from surgery.errors import PromptError
from surgery.hosts import view_of
from surgery.operations.segment_everything.filters import stability
from surgery.tracking import track
from surgery.video import MaskPrompt, PointPrompt, Video, open_video

GRID = 8
MIN_IOU, MIN_STABILITY = 0.7, 0.75
MIN_AREA, MAX_AREA = 0.002, 0.5
OVERLAP = 0.5
_OFFSET = 1.0


def automatic_prompts(model: Any, video: Video, objects: int = 3) -> tuple[MaskPrompt, ...]:
    """Find up to `objects` objects on the first frame, as the automatic mask generator of SAM does it.

    Every point of an 8x8 grid is a click of its own. A mask is kept when the model predicts an IoU of at least 0.7,
    when its extent hardly depends on the threshold (IoU of the masks at logits 1 and -1 at least 0.75), and when it
    covers 0.2 to 50 % of the frame; of overlapping ones (IoU above 0.5) the most stable stays.

    Args:
        model: a video model of either host, stock or under surgery; run dense by the caller if it is to be.

    Raises:
        PromptError: nothing found.
    """
    view = view_of(model)
    points = product(*((np.arange(GRID) + 0.5) / GRID * side for side in video.size))
    clicks = [PointPrompt(((float(x), float(y)),), (1,), number) for number, (y, x) in enumerate(points, start=1)]
    ious: list[float] = []

    def note(module: Any, args: Any, output: Any) -> None:
        ious.append(float(output[1].max()))

    with view.mask_decoder().register_forward_hook(note):
        logits = next(track(model, open_video([next(iter(video))]), clicks)).logits
    found: list[tuple[float, npt.NDArray[np.bool_]]] = []
    for iou, values in zip(ious, logits.values(), strict=False):
        inside = values > 0
        steady = float(stability(torch.from_numpy(values)[None], _OFFSET))
        if iou >= MIN_IOU and steady >= MIN_STABILITY and MIN_AREA <= float(inside.mean()) <= MAX_AREA:
            found.append((steady + iou, inside))
    chosen: list[npt.NDArray[np.bool_]] = []
    for _, mask in sorted(found, key=lambda pair: -pair[0]):
        if len(chosen) < objects and all((mask & other).sum() <= OVERLAP * (mask | other).sum() for other in chosen):
            chosen.append(mask)
    if not chosen:
        raise PromptError(
            f"no object found on the first frame (64 clicks, none with a predicted IoU of {MIN_IOU} and "
            f"a stability of {MIN_STABILITY}); say what to track with a mask, box or point"
        )
    return tuple(MaskPrompt(mask, number) for number, mask in enumerate(chosen, start=1))

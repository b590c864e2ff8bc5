"""`transformers`: how SAM 3's tracker is given a video, as SAM 2's is, with sessions and pictures of its own."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image
from torch import Tensor

from surgery.hosts.sam21 import normalised
from surgery.hosts.transformers.driver import TransformersDriver, image_processor

_HALF = (0.5, 0.5, 0.5)


def pixels_of(frame: npt.NDArray[np.uint8], size: int) -> Tensor:
    """RGB uint8 [H, W, 3] -> normalised fp32 [3, size, size], bilinear, to -1 .. 1."""
    return normalised(frame, size, Image.Resampling.BILINEAR, _HALF, _HALF)


def new_processor(side: int) -> Any:
    """A `Sam3TrackerVideoProcessor` for a model of `side` pixels."""
    from transformers import Sam2VideoVideoProcessor, Sam3TrackerVideoProcessor

    size = {"height": side, "width": side}
    return Sam3TrackerVideoProcessor(
        # Its masks are those of pictures with labels, which no video has.
        image_processor=image_processor("Sam3ImageProcessor", side, side),
        video_processor=Sam2VideoVideoProcessor(size=size, image_mean=_HALF, image_std=_HALF),
    )


class Sam3TrackerDriver(TransformersDriver):
    """`Sam3TrackerVideoModel`."""

    pixels = staticmethod(pixels_of)
    processor = staticmethod(new_processor)
    session_kind = "Sam3TrackerVideoInferenceSession"

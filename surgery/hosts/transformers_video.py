"""Streaming sessions and processors of `transformers`, sized for a model."""

from __future__ import annotations

from typing import Any

import torch


def new_session(size: tuple[int, int], device: torch.device, dtype: torch.dtype) -> Any:
    """A streaming `Sam2VideoInferenceSession` for a video of `size` (height, width)."""
    from transformers import Sam2VideoInferenceSession

    return Sam2VideoInferenceSession(video_height=size[0], video_width=size[1], inference_device=device, dtype=dtype)


def new_processor(side: int) -> Any:
    """A `Sam2VideoProcessor` for a model of `side` pixels."""
    import transformers
    from transformers import Sam2VideoProcessor, Sam2VideoVideoProcessor

    # Early 5.x has only the "fast" name.
    names = ("Sam2ImageProcessor", "Sam2ImageProcessorFast")
    kind = next(getattr(transformers, name) for name in names if hasattr(transformers, name))
    size = {"height": side, "width": side}
    mask = {"height": side // 4, "width": side // 4}
    return Sam2VideoProcessor(
        image_processor=kind(size=size, mask_size=mask),
        video_processor=Sam2VideoVideoProcessor(size=size),
    )

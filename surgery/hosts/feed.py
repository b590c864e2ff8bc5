"""Frames that are already tensors, handed to a model of either host through the host's own per-frame calls.

`surgery.tracking` reads and resizes each frame between the host's calls; timing wants neither inside.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import nullcontext
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from torch import Tensor

from surgery.errors import UnsupportedModelError
from surgery.hosts import view_of

Masks = Mapping[int, npt.NDArray[np.bool_]]


class FrameSource(Protocol):
    """A sequence of normalised frames [3, S, S], S the side of the model's input."""

    def __len__(self) -> int: ...

    def __getitem__(self, index: int) -> Tensor: ...


def feed(model: Any, frames: FrameSource, masks: Masks) -> Iterator[Tensor]:
    """Track the objects of `masks`, prompted on frame 0, through `frames`; one `next` is one frame.

    The first `next` makes the session, prompts the objects and gives the masks of frame 0.

    Args:
        model: a video model of either host.
        frames: on the model's device.
        masks: bool [S, S] by object id.

    Yields:
        Mask logits [objects, 1, S, S] (> 0 is foreground), on the model's device.

    Raises:
        UnsupportedModelError: not a SAM 2 video model of a known host.
    """
    name = view_of(model).name
    runs = {"sam2": _stock, "transformers": _transformers}
    if name not in runs:
        raise UnsupportedModelError(f"no feed for host {name!r}; expected one of {', '.join(runs)}")
    return runs[name](model, frames, masks)


def _stock(model: Any, frames: FrameSource, masks: Masks) -> Iterator[Tensor]:
    from surgery.hosts.sam2_video import frames_instead_of_files, without_bar

    side = view_of(model).image_size()
    with frames_instead_of_files(frames, (side, side)):
        state = model.init_state("memory")
    for obj_id, mask in masks.items():
        model.add_new_mask(state, 0, obj_id, torch.from_numpy(np.ascontiguousarray(mask)))
    steps = model.propagate_in_video(state, 0, len(frames))
    for index in range(len(frames)):
        # The host makes its bar when the first frame is asked for.
        with without_bar() if index == 0 else nullcontext():
            _, _, logits = next(steps)
        yield logits
    steps.close()


def _transformers(model: Any, frames: FrameSource, masks: Masks) -> Iterator[Tensor]:
    from surgery.hosts.transformers_video import new_processor, new_session

    side = view_of(model).image_size()
    reference = next(model.parameters())
    session = new_session((side, side), reference.device, reference.dtype)
    processor = new_processor(side)
    given = [torch.from_numpy(np.ascontiguousarray(mask)) for mask in masks.values()]
    processor.add_inputs_to_inference_session(
        session, frame_idx=0, obj_ids=list(masks), original_size=(side, side), input_masks=given
    )
    for index in range(len(frames)):
        out = model(session, frame=frames[index][None], frame_idx=index)
        session.processed_frames.pop(index)
        logits = out.pred_masks.reshape(len(masks), 1, *out.pred_masks.shape[-2:])
        yield F.interpolate(logits.float(), (side, side), mode="bilinear", align_corners=False)

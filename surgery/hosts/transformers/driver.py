"""`transformers`: how a video is fed and read, frame by frame as a stream."""

from __future__ import annotations

from collections.abc import Generator, Sequence
from typing import Any, ClassVar

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from surgery.core.driver import Driver, FrameSource
from surgery.core.host import HostView
from surgery.hosts.sam21 import pixels_of


def new_session(
    size: tuple[int, int], device: torch.device, dtype: torch.dtype, kind: str = "Sam2VideoInferenceSession"
) -> Any:
    """A streaming session for a video of `size` (height, width). kind: its class in the library."""
    import transformers

    session = getattr(transformers, kind)
    return session(video_height=size[0], video_width=size[1], inference_device=device, dtype=dtype)


def new_processor(side: int) -> Any:
    """A `Sam2VideoProcessor` for a model of `side` pixels."""
    from transformers import Sam2VideoProcessor, Sam2VideoVideoProcessor

    size = {"height": side, "width": side}
    return Sam2VideoProcessor(
        image_processor=image_processor("Sam2ImageProcessor", side, side // 4),
        video_processor=Sam2VideoVideoProcessor(size=size),
    )


def image_processor(kind: str, side: int, mask: int) -> Any:
    """The library's image processor of this name for images of `side` and masks of `mask` pixels."""
    import transformers

    # Early 5.x has only the "fast" name.
    found = next(getattr(transformers, name) for name in (kind, f"{kind}Fast") if hasattr(transformers, name))
    return found(size={"height": side, "width": side}, mask_size={"height": mask, "width": mask})


class TransformersDriver(Driver):
    """`Sam2VideoModel`; the session is a `Sam2VideoInferenceSession` that holds one image at a time.

    session_kind: class of the session. processor: makes one for a model of so many pixels.
    """

    pixels = staticmethod(pixels_of)
    processor = staticmethod(new_processor)
    session_kind: ClassVar[str] = "Sam2VideoInferenceSession"

    def __init__(self, view: HostView, frames: FrameSource, size: tuple[int, int]) -> None:
        super().__init__(view, frames, size)
        reference = next(self.model.parameters())
        self.session = new_session(size, reference.device, reference.dtype, self.session_kind)
        self._processor = self.processor(view.image_size())

    def add_mask(self, frame: int, obj_id: int, mask: npt.NDArray[np.bool_]) -> None:
        self._add(frame, obj_id, input_masks=[torch.from_numpy(np.ascontiguousarray(mask))])

    def add_box(self, frame: int, obj_id: int, box: Sequence[float]) -> None:
        self._add(frame, obj_id, input_boxes=[[[float(value) for value in box]]])

    def add_points(self, frame: int, obj_id: int, points: Sequence[tuple[float, float]], labels: Sequence[int]) -> None:
        places = [[[[float(x), float(y)] for x, y in points]]]
        self._add(frame, obj_id, input_points=places, input_labels=[[[int(label) for label in labels]]])

    def _add(self, frame: int, obj_id: int, **given: Any) -> None:
        waiting = [other for other in self.session.obj_with_new_inputs if other != obj_id]
        self._processor.add_inputs_to_inference_session(
            self.session, frame_idx=frame, obj_ids=[obj_id], original_size=self.size, **given
        )
        # The processor keeps only the objects of its last call; all of a frame's belong together.
        self.session.obj_with_new_inputs = [*waiting, obj_id]

    def remove(self, obj_id: int) -> None:
        # The host has no call for it: what it keeps by the number of an object is numbered anew.
        session = self.session
        gone = session.obj_id_to_idx(obj_id)
        for store in (
            session._obj_idx_to_id,
            session.point_inputs_per_obj,
            session.mask_inputs_per_obj,
            session.output_dict_per_obj,
            session.frames_tracked_per_obj,
        ):
            kept = [each for place, each in sorted(store.items()) if place != gone]
            store.clear()
            store.update(enumerate(kept))
        session._obj_id_to_idx.clear()
        session._obj_id_to_idx.update((each, place) for place, each in session._obj_idx_to_id.items())
        session.obj_ids.remove(obj_id)
        session.obj_with_new_inputs = [each for each in session.obj_with_new_inputs if each != obj_id]

    def steps(self, first: int, last: int) -> Generator[tuple[Sequence[int], Tensor], None, None]:
        for index in range(first, last + 1):
            out = self.model(self.session, frame=self.frames[index], frame_idx=index)
            self.session.processed_frames.pop(index)
            yield out.object_ids, out.pred_masks

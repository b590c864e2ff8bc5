"""`transformers`: what the surgery keeps in a `Sam2VideoInferenceSession`, and what it gives back of one."""

from __future__ import annotations

import weakref
from collections.abc import Set
from typing import Any

from surgery.errors import ModelStateError
from surgery.operations import TrimCaches
from surgery.operations.trim_caches import blank_images, drop_far, one_copy
from surgery.session import SessionHandle, VideoState

STATE_KEY = "_surgery"


class TransformersSession(SessionHandle):
    """`Sam2VideoInferenceSession`, an object with a `__dict__`."""

    def __init__(self, session: Any) -> None:
        super().__init__(vars(session), STATE_KEY)
        self._session = session

    def home(self) -> weakref.ref[Any]:
        return weakref.ref(self._session)

    def features(self) -> dict[int, Any]:
        found: dict[int, Any] = self.holder["cache"]._vision_features
        return found

    def keep(self, features: dict[int, Any]) -> None:
        self.holder["cache"]._vision_features = features


def trim(settings: TrimCaches, session: Any, state: VideoState, frame: int) -> None:
    """Drop what the session keeps of `frame`, whose memory has been encoded, and of frames far from it.

    Nothing far is dropped after a call that only prompts.
    """
    for outputs in session.output_dict_per_obj.values():
        for stored in (outputs["cond_frame_outputs"].get(frame), outputs["non_cond_frame_outputs"].get(frame)):
            if stored is None:
                continue
            if settings.high_res_masks:
                stored.pop("high_res_masks", None)
            if settings.positions and "maskmem_pos_enc" in stored:
                stored["maskmem_pos_enc"] = state.positions = one_copy(stored["maskmem_pos_enc"], state.positions)
    if settings.frames is None or state.cursor is None or state.cursor[0] != frame:
        return
    for index, outputs in session.output_dict_per_obj.items():
        drop_far(outputs["non_cond_frame_outputs"], frame, settings.frames)
        drop_far(session.frames_tracked_per_obj[index], frame, settings.frames)
    if settings.images:
        blank_images(session.processed_frames, frame, settings.frames, state.cursor[1])


def require_image(session: Any, cached: Set[int], frame: int) -> None:
    """Raises ModelStateError when `frame` must be encoded and its image was emptied."""
    if frame not in cached and not session.processed_frames[frame].numel():
        raise ModelStateError(
            f"frame {frame} is needed again, and trim_caches has emptied its image; give it anew with "
            "session.add_new_frame(pixels, frame_idx), or set caches.frames higher"
        )

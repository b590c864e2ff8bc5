"""`transformers`: what the surgery keeps in a `Sam2VideoInferenceSession`, and what it gives back of one."""

from __future__ import annotations

import weakref
from collections.abc import MutableMapping, Set
from typing import Any

from torch import Tensor

from surgery.core.session import SessionHandle, Stores
from surgery.errors import ModelStateError

STATE_KEY = "_surgery"


class TransformersSession(SessionHandle):
    """`Sam2VideoInferenceSession`, an object with a `__dict__`."""

    mask_key, position_key = "high_res_masks", "maskmem_pos_enc"

    def __init__(self, session: Any) -> None:
        super().__init__(vars(session), STATE_KEY)
        self._session = session

    def home(self) -> weakref.ref[Any]:
        return weakref.ref(self._session)

    def features(self) -> dict[int, Any]:
        return self.holder["cache"]._vision_features

    def outputs(self) -> dict[int, Stores]:
        session = self._session
        return {
            session.obj_idx_to_id(place): (
                each["cond_frame_outputs"],
                each["non_cond_frame_outputs"],
                session.frames_tracked_per_obj[place],
            )
            for place, each in session.output_dict_per_obj.items()
        }

    def images(self) -> MutableMapping[int, Tensor]:
        return self._session.processed_frames

    def keep(self, features: dict[int, Any]) -> None:
        self.holder["cache"]._vision_features = features


def require_session(session: Any, name: str) -> None:
    """Raises ModelStateError for a session that is not of the library's class of this name."""
    if not any(base.__name__ == name for base in type(session).__mro__):
        raise ModelStateError(
            f"the session is a {type(session).__name__}; expected a {name}, as the model's own processor makes it"
        )


def require_image(session: Any, cached: Set[int], frame: int) -> None:
    """Raises ModelStateError when `frame` must be encoded and its image was emptied."""
    if frame not in cached and not session.processed_frames[frame].numel():
        raise ModelStateError(
            f"frame {frame} is needed again, and trim_caches has emptied its image; give it anew with "
            "session.add_new_frame(pixels, frame_idx), or set caches.frames higher"
        )

"""Stock `sam2`: what the surgery keeps in an `inference_state`, and which memories the host reads out of one."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from surgery.core.attention import MemoryFrame
from surgery.core.session import SessionHandle, Stores

STATE_KEY = "surgery"


class Sam2Session(SessionHandle):
    """`inference_state`, a plain dict."""

    def __init__(self, inference_state: dict[str, Any]) -> None:
        super().__init__(inference_state, STATE_KEY)

    def features(self) -> dict[int, Any]:
        return self.holder["cached_features"]

    def outputs(self) -> dict[int, Stores]:
        ids, stores = self.holder["obj_idx_to_id"], self.holder["output_dict_per_obj"]
        return {
            ids[place]: (
                each["cond_frame_outputs"],
                each["non_cond_frame_outputs"],
                self.holder["frames_tracked_per_obj"][place],
            )
            for place, each in stores.items()
        }

    def keep(self, features: dict[int, Any]) -> None:
        self.holder["cached_features"] = features


class TracedFrame(dict[str, Any]):
    """One frame's stored output that reports when its memory is read."""

    def __init__(self, output: dict[str, Any], frame: MemoryFrame, log: list[MemoryFrame]) -> None:
        super().__init__(output)
        self._frame, self._log = frame, log

    def __getitem__(self, key: str) -> Any:
        if key == "maskmem_features":
            self._log.append(self._frame)
        return super().__getitem__(key)


class TracedFrames(Mapping[int, Any]):
    """Non-conditioning outputs of one object, wrapped one by one as the host asks for them."""

    def __init__(self, outputs: dict[int, dict[str, Any]], log: list[MemoryFrame]) -> None:
        self._outputs, self._log = outputs, log

    def __getitem__(self, frame: int) -> Any:
        return TracedFrame(self._outputs[frame], frame, self._log)

    def __iter__(self) -> Iterator[int]:
        return iter(self._outputs)

    def __len__(self) -> int:
        return len(self._outputs)

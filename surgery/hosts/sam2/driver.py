"""Stock `sam2`: how a video is fed and read. Its `init_state` loads only folders and files, and it draws a bar."""

from __future__ import annotations

import threading
from collections.abc import Generator, Iterator, Sequence
from contextlib import AbstractContextManager, closing, contextmanager, nullcontext
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from surgery.core.access import replaced
from surgery.core.driver import Driver, FrameSource
from surgery.core.host import HostView
from surgery.hosts.sam21 import pixels_of

# Both replace a name in the host's module for a moment; two threads at it would put back each other's replacement.
_LOCK = threading.RLock()


def frames_instead_of_files(frames: Any, size: tuple[int, int]) -> AbstractContextManager[None]:
    """Inside, `init_state(anything)` uses `frames`, a tensor or sequence of [3, S, S].

    size: (height, width) of the video in pixels.
    """
    return _replaced("load_video_frames", lambda **_: (frames, *size))


def without_bar() -> AbstractContextManager[None]:
    """Inside, `propagate_in_video` starts without its progress bar: the caller shows one, or none."""
    return _replaced("tqdm", lambda steps, **_: steps)


@contextmanager
def _replaced(name: str, value: Any) -> Iterator[None]:
    import sam2.sam2_video_predictor as module

    with _LOCK, replaced(module, name, value):
        yield


class Sam2Driver(Driver):
    """`SAM2VideoPredictor`; the session is its `inference_state`."""

    pixels = staticmethod(pixels_of)

    def __init__(self, view: HostView, frames: FrameSource, size: tuple[int, int]) -> None:
        super().__init__(view, frames, size)
        with frames_instead_of_files(frames, size):
            self.session = self.model.init_state("frames")

    def add_mask(self, frame: int, obj_id: int, mask: npt.NDArray[np.bool_]) -> None:
        self.model.add_new_mask(self.session, frame, obj_id, torch.from_numpy(np.ascontiguousarray(mask)))

    def add_box(self, frame: int, obj_id: int, box: Sequence[float]) -> None:
        corners = np.array(box, dtype=np.float32)
        self.model.add_new_points_or_box(self.session, frame, obj_id, box=corners)

    def add_points(self, frame: int, obj_id: int, points: Sequence[tuple[float, float]], labels: Sequence[int]) -> None:
        places, kinds = np.array(points, dtype=np.float32), np.array(labels, dtype=np.int32)
        self.model.add_new_points_or_box(self.session, frame, obj_id, points=places, labels=kinds)

    def remove(self, obj_id: int) -> None:
        self.model.remove_object(self.session, obj_id, need_output=False)

    def steps(self, first: int, last: int) -> Generator[tuple[Sequence[int], Tensor], None, None]:
        with closing(self.model.propagate_in_video(self.session, first, last - first)) as steps:
            for index in range(first, last + 1):
                # The host makes its bar when the first frame is asked for.
                with without_bar() if index == first else nullcontext():
                    _, ids, logits = next(steps)
                yield ids, logits

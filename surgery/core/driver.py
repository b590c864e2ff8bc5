"""How a video goes through a model by the host's own calls: prompts and frames in, masks out. The same for all hosts.

`surgery.tracking` drives a video that is read frame by frame; `follow` one whose frames are ready, for timing and
warming up.
"""

from __future__ import annotations

import copy
from abc import ABC, abstractmethod
from collections.abc import Generator, Iterator, Mapping, Sequence
from contextlib import closing
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
import numpy.typing as npt
import torch.nn.functional as F
from torch import Tensor

if TYPE_CHECKING:
    from surgery.core.host import HostView


class FrameSource(Protocol):
    """A sequence of normalised frames [3, S, S], S the side of the model's input."""

    def __len__(self) -> int: ...

    def __getitem__(self, index: int) -> Tensor: ...


class Driver(ABC):
    """One video, in a session of its own.

    Args:
        view: of the model.
        frames: on the model's device. Asked for when a frame is due, and perhaps for frame 0 at once.
        size: (height, width) of the video in pixels, which prompts refer to.

    session: the host's own.
    """

    session: Any

    def __init__(self, view: HostView, frames: FrameSource, size: tuple[int, int]) -> None:
        self.model, self.frames, self.size = view.model, frames, size

    @staticmethod
    @abstractmethod
    def pixels(frame: npt.NDArray[np.uint8], size: int) -> Tensor:
        """A frame as the model takes it: RGB [H, W, 3] -> normalised [3, size, size]."""

    @abstractmethod
    def add_mask(self, frame: int, obj_id: int, mask: npt.NDArray[np.bool_]) -> None:
        """Prompt an object on a frame with a mask, bool [H, W]. All prompts of a frame come before its step."""

    @abstractmethod
    def add_box(self, frame: int, obj_id: int, box: Sequence[float]) -> None:
        """The same with a box (x0, y0, x1, y1) in pixels."""

    @abstractmethod
    def add_points(self, frame: int, obj_id: int, points: Sequence[tuple[float, float]], labels: Sequence[int]) -> None:
        """The same with points (x, y) in pixels; labels: 1 on the object, 0 off it."""

    def remove(self, obj_id: int) -> None:
        """End an object between two passes of `steps`: it is tracked no longer, and costs nothing."""
        raise NotImplementedError(f"{type(self).__name__} cannot end an object")

    def twin(self) -> Driver:
        """The same with a copy of the session, which goes on as this one would. Frames are shared."""
        other = copy.copy(self)
        other.session = copy.deepcopy(self.session, {id(self.frames): self.frames})
        return other

    @abstractmethod
    def steps(self, first: int, last: int) -> Generator[tuple[Sequence[int], Tensor], None, None]:
        """Track frames `first` to `last`, one a step; prompts on `first` take effect, those on later frames do not.

        Yields:
            Object ids, and their mask logits [n, 1, h, w] in the host's own size (> 0 is foreground).
        """


def follow(view: HostView, frames: FrameSource, masks: Mapping[int, npt.NDArray[np.bool_]]) -> Iterator[Tensor]:
    """Track the objects of `masks`, prompted on frame 0, through `frames`; one `next` is one frame.

    The first `next` makes the session, prompts the objects and gives the masks of frame 0.

    Args:
        frames: on the model's device.
        masks: bool [S, S] by object id.

    Yields:
        Mask logits [objects, 1, S, S] (> 0 is foreground), on the model's device.
    """
    size = (view.image_size(), view.image_size())
    driver = view.drive(frames, size)
    for obj_id, mask in masks.items():
        driver.add_mask(0, obj_id, mask)
    with closing(driver.steps(0, len(frames) - 1)) as steps:
        for _, logits in steps:
            yield resized(logits, size)


def resized(logits: Tensor, size: tuple[int, int]) -> Tensor:
    """Mask logits of n objects as [n, 1, height, width]: as they are, or interpolated in fp32."""
    if logits.dim() == 4 and tuple(logits.shape[-2:]) == size:
        return logits
    maps = logits.reshape(-1, 1, *logits.shape[-2:]).float()
    return F.interpolate(maps, size, mode="bilinear", align_corners=False)

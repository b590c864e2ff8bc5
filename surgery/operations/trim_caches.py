"""What a host keeps of a video and will not read again, given back."""

from __future__ import annotations

from collections.abc import Iterator, MutableMapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import torch
from pydantic import Field, model_validator
from torch import Tensor, nn

from surgery.core.host import HostView
from surgery.core.operation import MOST, Bound, Operation, Patch
from surgery.core.session import SessionHandle, State
from surgery.core.surgery import Surgery
from surgery.errors import RecipeError

_BLANK = torch.empty(0)


class TrimCaches(Operation):
    """The host's session gives back what it keeps of every frame and no longer reads."""

    type: Literal["trim_caches"] = "trim_caches"
    high_res_masks: bool = Field(
        True,
        description="`transformers`: drop masks at model resolution (4 MiB each at 1024 px) once they are in memory",
    )
    positions: bool = Field(True, description="`transformers`: one position code for all memory frames of a video")
    frames: int | None = Field(
        None,
        ge=1,
        le=MOST,
        description="forget tracked frames further than so many from the one being tracked; null: keep all",
    )
    images: bool = Field(False, description="`transformers`: empty the images behind those frames too; needs `frames`")

    alias: ClassVar[str] = "caches"

    @model_validator(mode="after")
    def _images_follow_frames(self) -> TrimCaches:
        if self.images and self.frames is None:
            raise ValueError("images: true needs a number of frames, e.g. frames: 16 (images behind them are emptied)")
        return self

    @property
    def clause(self) -> str:
        """See `Operation.clause`."""
        return "caches trimmed"

    def check(self, host: HostView) -> list[nn.Module]:
        """See `Operation.check`: no frame is dropped that the model reads again."""
        horizon = host.memory_horizon()
        if self.frames is not None and self.frames < horizon:
            raise RecipeError(
                f"trim_caches: frames {self.frames}: this model reads up to {horizon} frames back; expected {horizon} "
                "or more, or null to keep all"
            )
        return []

    def bind(self, surgery: Surgery, before: Bound[Any] | None) -> CacheTrimmer:
        """See `Operation.bind`."""
        return CacheTrimmer(self, surgery)


@dataclass(eq=False)
class KeptPositions(State):
    """The one position code of all memory frames of a video."""

    code: Tensor | None = None


class CacheTrimmer(Bound[TrimCaches]):
    """Trimming in one model."""

    def patches(self) -> Iterator[Patch]:
        """See `Bound.patches`."""
        yield Patch("stored", self._trim)

    def _trim(self, handle: SessionHandle, frame: int, obj_ids: Sequence[int]) -> None:
        """Drop what the session keeps of a frame whose memory was stored, and of frames far from it.

        Nothing far is dropped after a call that only prompts.
        """
        settings, video = self.settings, self.surgery.state_of(handle)
        positions, outputs = video.state(KeptPositions), handle.outputs()
        for obj_id in obj_ids:
            for stored in (outputs[obj_id][0].get(frame), outputs[obj_id][1].get(frame)):
                if stored is None:
                    continue
                if settings.high_res_masks and handle.mask_key is not None:
                    stored.pop(handle.mask_key, None)
                key = handle.position_key
                if settings.positions and key is not None and key in stored:
                    stored[key] = positions.code = one_copy(stored[key], positions.code)
        if settings.frames is None or video.cursor is None or video.cursor[0] != frame:
            return
        for obj_id in obj_ids:
            drop_far(outputs[obj_id][1], frame, settings.frames)
            drop_far(outputs[obj_id][2], frame, settings.frames)
        images = handle.images()
        if settings.images and images is not None:
            blank_images(images, frame, settings.frames, video.cursor[1])


def drop_far(frames: MutableMapping[int, Any], frame: int, keep: int) -> None:
    """Remove what lies more than `keep` frames before or after `frame`; what stays is at most 2 * keep + 1 entries."""
    for far in [number for number in frames if abs(number - frame) > keep]:
        del frames[far]


def blank_images(images: MutableMapping[int, Tensor], frame: int, keep: int, reverse: bool) -> None:
    """Empty the images more than `keep` frames behind `frame`, up to the first that is empty or missing.

    One empty tensor takes the place of all, because `transformers` numbers a stream's next frame by how many it holds.
    """
    step = 1 if reverse else -1
    behind = frame + step * (keep + 1)
    while behind in images and images[behind].numel():
        images[behind] = _BLANK
        behind += step


def one_copy(positions: Tensor, kept: Tensor | None) -> Tensor:
    """The position code to store for a memory frame: the one `kept` where it is the same code, else `positions`.

    It depends on shape, type and device alone.
    """
    if kept is None or (kept.shape, kept.dtype, kept.device) != (positions.shape, positions.dtype, positions.device):
        return positions.clone()
    return kept

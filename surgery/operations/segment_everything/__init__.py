"""Everything in a picture: fewer prompts, as in MobileSAMv2 and TinySAM, and a decoder that skips nothing."""

from __future__ import annotations

from typing import Any

from torch import nn

from surgery.core.host import HostView
from surgery.core.operation import Bound
from surgery.core.surgery import Surgery
from surgery.operations.segment_everything.bound import Everything
from surgery.operations.segment_everything.settings import EverythingSettings, FilterSettings

__all__ = ["Everything", "FilterSettings", "SegmentEverything"]


class SegmentEverything(EverythingSettings):
    """Masks of everything in a picture from fewer prompts, decoded for less; see `surgery.everything`."""

    def check(self, host: HostView) -> list[nn.Module]:
        """See `Operation.check`: every part that a picture goes through."""
        host.picture_driver()
        return [host.image_encoder(), host.prompt_encoder(), host.mask_decoder()]

    def bind(self, surgery: Surgery, before: Bound[Any] | None) -> Everything:
        """See `Operation.bind`."""
        return Everything(self, surgery, before if isinstance(before, Everything) else None)

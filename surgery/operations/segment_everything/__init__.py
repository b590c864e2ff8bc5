"""Everything in a picture: fewer prompts, as in MobileSAMv2 and TinySAM, and a decoder that skips nothing."""

from __future__ import annotations

from typing import Any, ClassVar, Literal

from pydantic import Field
from torch import nn

from surgery.core.host import HostView
from surgery.core.operation import Bound, Fraction, Operation
from surgery.core.surgery import Surgery
from surgery.operations.segment_everything.bound import Everything
from surgery.operations.segment_everything.settings import BoxSettings, CoarseSettings, FilterSettings

__all__ = ["Everything", "FilterSettings", "SegmentEverything"]


class SegmentEverything(Operation):
    """Masks of everything in a picture from fewer prompts, decoded for less; see `surgery.everything`.

    Nothing in tracking changes, so the recipe stays exact there.
    """

    type: Literal["segment_everything"] = "segment_everything"
    prompts: Literal["grid", "hierarchical", "boxes"] = Field(
        "grid",
        description="`grid`: the host's own points; `hierarchical`: a coarse grid first, fine points where it is not "
        "sure; `boxes`: proposals",
    )
    points: int = Field(32, ge=1, le=256, description="points along a side of the grid")
    lazy: bool = Field(True, description="upscale only prompts with a mask that can pass; skips nothing")
    folded: bool = Field(False, description="projections of the picture folded into the prompts' tokens; to rounding")
    batch: int = Field(64, ge=1, le=4096, description="prompts at once")
    filters: FilterSettings = Field(FilterSettings(), description="which masks are kept")
    coarse: CoarseSettings = Field(CoarseSettings(), description="`prompts: hierarchical`: what is left to fine points")
    boxes: BoxSettings = Field(BoxSettings(), description="`prompts: boxes`: where boxes come from")
    max_recall_drop: Fraction = Field(
        0.3,
        description="promise of `fit_everything`: share of the grid's masks that may be missed on held-out pictures",
    )

    alias: ClassVar[str] = "everything"
    for_pictures: ClassVar[bool] = True

    @property
    def clause(self) -> str:
        """See `Operation.clause`."""
        how = {"grid": f"{self.points} x {self.points} points", "hierarchical": "a coarse grid and fine points",
               "boxes": "proposed boxes"}[self.prompts]  # fmt: skip
        return f"everything in a picture from {how}"

    def check(self, host: HostView) -> list[nn.Module]:
        """See `Operation.check`: every part that a picture goes through."""
        host.picture_driver()
        return [host.image_encoder(), host.prompt_encoder(), host.mask_decoder()]

    def bind(self, surgery: Surgery, before: Bound[Any] | None) -> Everything:
        """See `Operation.bind`."""
        return Everything(self, surgery, before if isinstance(before, Everything) else None)

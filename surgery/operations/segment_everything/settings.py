"""The entry of a recipe."""

from __future__ import annotations

from typing import Annotated, ClassVar, Literal

from pydantic import Field

from surgery.core.operation import Fields, Fraction, Operation
from surgery.core.pictures import Filters

Threshold = Annotated[float, Field(ge=0.0, le=1.0, allow_inf_nan=False)]


class FilterSettings(Fields):
    """Which masks are kept."""

    iou: Threshold | None = Field(None, description="least predicted IoU; null: the host's own, 0 keeps all")
    stability: Threshold | None = Field(None, description="least stability; null: the host's own, 0 keeps all")
    offset: float = Field(1.0, gt=0.0, le=100.0, description="change of the logits that a stable mask stands")
    nms: Fraction = Field(0.7, description="of two masks whose boxes overlap more (IoU), the better one is kept")

    def of(self, own: Filters) -> Filters:
        """own: of the host."""
        iou, stability = (mine if mine is not None else theirs for mine, theirs in
                          ((self.iou, own.iou), (self.stability, own.stability)))  # fmt: skip
        return Filters(iou, stability, own.inclusive, self.offset, self.nms)


class EverythingSettings(Operation):
    """What the entry of a recipe says. Nothing in tracking changes, so the recipe stays exact there."""

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

    alias: ClassVar[str] = "everything"
    for_pictures: ClassVar[bool] = True

    @property
    def clause(self) -> str:
        """See `Operation.clause`."""
        how = {"grid": f"{self.points} x {self.points} points", "hierarchical": "a coarse grid and fine points",
               "boxes": "proposed boxes"}[self.prompts]  # fmt: skip
        return f"everything in a picture from {how}"

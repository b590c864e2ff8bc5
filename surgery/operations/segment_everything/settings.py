"""The groups of a recipe's entry."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, model_validator

from surgery.core.operation import Fields, Fraction
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


class CoarseSettings(Fields):
    """`prompts: hierarchical`: what a coarse grid leaves to the fine one."""

    points: int = Field(8, ge=1, le=256, description="points along a side of the coarse grid")
    iou: Threshold = Field(0.88, description="least predicted IoU of a coarse mask that is trusted")
    stability: Threshold = Field(0.95, description="least stability of it")
    logit: float = Field(8.5, ge=0.0, le=1000.0, description="fine points run where no trusted mask is above this")


class BoxSettings(Fields):
    """`prompts: boxes`: where they come from and what is done with their masks."""

    proposer: Literal["head", "hub"] = Field(
        "head", description="`head`: fitted on the model's own masks; `hub`: an object detector of `transformers`"
    )
    detector: str | None = Field(None, min_length=1, max_length=300, description="Hub id or folder of the detector")
    max_prompts: int = Field(320, ge=1, le=4096, description="boxes at most, the best first")
    nms: Fraction = Field(0.9, description="of two boxes that overlap more (IoU), the better one is kept")
    least: Threshold = Field(0.0, description="least objectness, or score of the detector")
    masks: Literal[1, 3] = Field(1, description="masks of a box")
    filters: bool = Field(True, description="false: masks of boxes are not filtered, only suppressed")
    residual_points: int = Field(
        0, ge=0, le=256, description="points along a side of a grid that runs where no mask lies; 0: none"
    )

    @model_validator(mode="after")
    def _a_detector_for_the_hub(self) -> BoxSettings:
        if (self.proposer == "hub") != (self.detector is not None):
            raise ValueError(
                "boxes: proposer hub needs a detector, such as PekingU/rtdetr_r50vd"
                if self.detector is None
                else f"boxes: detector {self.detector!r:.80} is for proposer hub; the proposer is {self.proposer}"
            )
        return self

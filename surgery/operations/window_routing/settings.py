"""Sparse Window Routing: which windows of a frame run through the encoder's middle blocks."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import Any, ClassVar, Literal

from pydantic import Field, field_validator, model_validator

from surgery.core.evidence import EvidenceSettings
from surgery.core.operation import MOST, Count, Fields, Fraction, Operation, Share, percent


class ObjectSettings(Fields):
    """Where objects are thought to be, from what is known of the frame before."""

    saliency_mass: Fraction = Field(
        0.7, description="share of the prompt-to-image attention that the salient windows hold"
    )
    score_gate: float = Field(5.0, description="object score logit under which salient windows are added")
    dilation: int = Field(5, ge=1, le=255, description="max-pool kernel on the low-resolution masks, odd; 1: none")
    max_wait: Count | None = Field(
        None,
        description="frames that a window of an object may wait to be computed, whatever the budget; null: any number",
    )
    background: Share = Field(
        0.5, description="with a budget: what a change counts for where no object is, against 1 where one is"
    )
    unsure: Fraction | None = Field(
        None,
        description="an object whose last mask is unsure over more than this share of it makes the frame take the next "
        "size; with a budget; null: never",
    )
    motion: float = Field(
        0.0,
        ge=0.0,
        le=100.0,
        description="the mask also counts where the object would be after so many frames at its speed",
    )
    candidates: Literal["all", "best"] = Field(
        "all", description="which mask candidates count: all three, or the `best` by predicted IoU"
    )

    @field_validator("dilation")
    @classmethod
    def _odd(cls, value: int) -> int:
        if value % 2 == 0:
            raise ValueError(f"expected an odd kernel size, got {value}; the nearest are {value - 1} and {value + 1}")
        return value


class ShortcutSettings(Fields):
    """The branch that stands in for the routed span on skipped windows (Efficient-SAM2, section 3.2)."""

    type: Literal["bottleneck", "identity", "ffn", "attention"] = Field(
        "bottleneck", description="`bottleneck` is the published one"
    )


class SkippedSettings(Fields):
    """What windows return that are not computed."""

    temporal: bool = Field(False, description="their last output plus the shortcut's change, not the shortcut alone")
    shortcut: ShortcutSettings = Field(ShortcutSettings(), description="the branch that stands in for the blocks")
    padding: Literal["exact", "published"] = Field(
        "exact", description="`published`: the padding order of the released shortcuts; not with `temporal`"
    )

    @model_validator(mode="after")
    def _published_has_no_memory(self) -> SkippedSettings:
        if self.padding == "published" and self.temporal:
            raise ValueError("padding: published needs temporal: false (padded tokens have no last output)")
        return self


class StageSettings(Fields):
    """How much of the encoder is routed."""

    span: Literal["stage3", "tiles"] = Field(
        "stage3",
        description="`tiles`: skipped windows skip all blocks before the middle ones as well; needs `skipped.temporal`",
    )
    early: Share = Field(
        0.0,
        description="with tiles: share of the map that passes the blocks before the span, as much more as a frame has "
        "windows above the budget",
    )
    globals: Literal["packed", "cached", "dense"] = Field(
        "packed",
        description="inner global blocks: computed windows attend among themselves (`packed`, as published) or to all "
        "tokens, skipped ones as last computed (`cached`); or these blocks run for all tokens (`dense`, with the span "
        "as `stage3`, and a shortcut for every run of blocks between them); the last two need `skipped.temporal`",
    )
    stage4: Literal["dense", "routed"] = Field(
        "dense",
        description="`routed`: stage 4 runs for computed windows only; needs `skipped.temporal`",
    )

    @model_validator(mode="before")
    @classmethod
    def _forgotten(cls, data: Any) -> Any:
        """Without the fitted correction of reused stages; what they reuse follows the picture now."""
        return {key: data[key] for key in data if key != "correction"} if isinstance(data, dict) else data

    @model_validator(mode="after")
    def _tiles_have_more(self) -> StageSettings:
        if self.early and self.span != "tiles":
            raise ValueError(f"early: {self.early:g} needs span: tiles (with span: stage3 the whole map passes)")
        return self


class RefreshSettings(Fields):
    """When a frame is encoded with every window although routing could have skipped some.

    Prompted frames and jumps are always dense; these are the further reasons.
    """

    start: bool = Field(
        True, description="dense first tracked frame of a pass; false: routed by the masks of the prompted frame"
    )

    every: Count = Field(0, description="dense frame after so many routed ones; 0: never for this reason")
    scene_cut: float | None = Field(
        0.6,
        gt=0.0,
        description="mean change of the 32x32 thumbnail, in standard deviations, that is a new scene; null: no test",
    )
    lost: Literal["never", "once", "always"] = Field(
        "once",
        description="object score at most 0: dense on the next frame (`once`), until it is back (`always`), or `never`",
    )


class WindowSettings(Operation):
    """Sparse Window Routing: only windows near the object run through the middle blocks (Efficient-SAM2, 3.2)."""

    type: Literal["sparse_window_routing"] = "sparse_window_routing"
    windows: Literal["object", "all"] = Field("object", description="`all`: every window on every frame (exact)")
    budget: Fraction = Field(
        1.0,
        description="largest share of the windows on a routed frame, of fewer than ten rounded up; 1: no limit; below "
        "1 needs `skipped.temporal`",
    )
    fill: bool = Field(False, description="compute as many windows as the budget allows, wanted or not")
    rolling: Count = Field(0, description="windows computed on each frame because they have waited longest")
    round_to: int = Field(
        1, ge=1, le=MOST, description="window counts are rounded up to a multiple (fewer compiled shapes)"
    )
    refresh: RefreshSettings = Field(
        RefreshSettings(), description="when all windows are computed, beside prompted frames and jumps"
    )
    object: ObjectSettings = Field(ObjectSettings(), description="where objects are thought to be")
    skipped: SkippedSettings = Field(SkippedSettings(), description="what windows return that are not computed")
    stages: StageSettings = Field(StageSettings(), description="how much of the encoder is routed")

    alias: ClassVar[str] = "routing"
    share: ClassVar[str | None] = "windows"
    by_frame: ClassVar[bool] = True
    moved: ClassVar[Mapping[str, str]] = MappingProxyType(
        {
            name: f"{group}.{name}"
            for group, names in {
                "object": ("saliency_mass", "score_gate", "dilation", "motion", "candidates"),
                "skipped": ("temporal", "shortcut", "padding"),
                "stages": ("span", "early", "correction", "stage4"),
            }.items()
            for name in names
        }
    )

    @property
    def uses_shortcut(self) -> bool:
        """Whether skipped windows are given anything but their last output."""
        return self.stages.span == "stage3" or self.stages.early > 0

    @property
    def remembers_span(self) -> bool:
        """Whether skipped windows return the span's last output, and not what tiles or runs of blocks remember."""
        return self.skipped.temporal and self.stages.span == "stage3" and self.stages.globals != "dense"

    @model_validator(mode="after")
    def _skipped_windows_have_what_is_asked(self) -> WindowSettings:
        stages, skipped = self.stages, self.skipped
        memory = (skipped.temporal, "skipped.temporal: true")
        whole = (stages.span == "stage3", "span: stage3")
        pointwise = (skipped.shortcut.type != "attention", "skipped.shortcut.type: bottleneck, ffn or identity")
        for setting, asked, (met, needed), why in (
            ("span: tiles", stages.span == "tiles", memory, "a skipped tile has nothing but its last output"),
            ("globals: cached", stages.globals == "cached", memory, "nothing else remembers skipped tokens"),
            ("globals: dense", stages.globals == "dense", memory, "nothing else remembers skipped tokens"),
            ("globals: dense", stages.globals == "dense", whole, "of a skipped tile there is no token to run for"),
            ("stage4: routed", stages.stage4 == "routed", memory, "a skipped window has nothing but its last output"),
            (f"budget: {self.budget:g}", self.budget < 1.0, memory, "windows of the object are skipped as well"),
            ("globals: dense", stages.globals == "dense", pointwise, "runs of blocks are corrected token by token"),
            (f"early: {stages.early:g}", stages.early > 0, pointwise, "extra pieces are corrected token by token"),
        ):
            if asked and not met:
                raise ValueError(f"{setting} needs {needed} ({why})")
        return self

    @property
    def approximate(self) -> bool:
        """Whether windows may be skipped."""
        return self.windows != "all"

    @property
    def clause(self) -> str:
        """See `Operation.clause`."""
        if self.windows == "all":
            return "all windows"
        unit = "tiles" if self.stages.span == "tiles" else "windows"
        if self.budget < 1.0:
            first = "those that changed most" if self.object.max_wait is None else "the object's first"
            text = f"{'' if self.fill else 'at most '}{percent(self.budget)} of the {unit}, {first}"
        elif self.fill:
            text = f"all {unit}"
        else:
            text = f"{unit} near the object"
            if self.rolling:
                text += f" and {self.rolling} of the others in turn"
        if self.stages.span == "tiles":
            text += ", from the first block on"
        if self.refresh.every:
            text += f", a whole frame after every {self.refresh.every}"
        if self.refresh.lost == "always":
            text += ", whole frames while an object is lost"
        return text

    @classmethod
    def neutral(cls) -> WindowSettings:
        """With a memory, which most fields ask for."""
        return cls(skipped=SkippedSettings(temporal=True))

    @property
    def evidence(self) -> EvidenceSettings | None:
        """See `Operation.evidence`."""
        if not self.approximate:
            return None
        return EvidenceSettings(self.object.candidates, self.object.motion, True, self.object.unsure is not None)

    def structure(self) -> dict[str, Any]:
        """See `Operation.structure`."""
        # Frames above the budget compute more early pieces.
        early = {"budget"} if self.stages.early else set()
        return self.model_dump(mode="json", include={"windows", "skipped", "stages", *early})

    def allowed(self, kept: Mapping[str, float]) -> float | None:
        """See `Operation.allowed`: the budget."""
        return self.budget if self.windows == "object" else 1.0

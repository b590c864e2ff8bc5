"""The operations of a recipe, field by field, and what calibration may do with them.

Operation types live in one registry, `OPERATIONS`. CONTRIBUTING.md lists what else a new one needs.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, ClassVar, Literal, get_args

from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator

from surgery.errors import nearest

_MAX_COUNT = 1_000_000

Fraction = Annotated[float, Field(gt=0.0, le=1.0, allow_inf_nan=False)]


class Settings(BaseModel):
    """Immutable, strict about types, closed to unknown keys."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)


class ShortcutSettings(Settings):
    """The branch that stands in for the routed span on skipped windows (Efficient-SAM2, section 3.2)."""

    type: Literal["bottleneck", "identity", "ffn", "attention"] = Field(
        "bottleneck", description="`bottleneck` is the published one"
    )


class RefreshSettings(Settings):
    """When a frame is encoded with every window although routing could have skipped some.

    Prompted frames and jumps are always dense; these are the further reasons.
    """

    start: bool = Field(
        True, description="dense first tracked frame of a pass; false: routed by the masks of the prompted frame"
    )

    every: int = Field(
        0, ge=0, le=_MAX_COUNT, description="dense frame after so many routed ones; 0: never for this reason"
    )
    scene_cut: float | None = Field(
        0.6,
        gt=0.0,
        allow_inf_nan=False,
        description="mean change of the 32x32 thumbnail, in standard deviations, that is a new scene; null: no test",
    )
    lost: Literal["never", "once", "always"] = Field(
        "once",
        description="object score at most 0: dense on the next frame (`once`), until it is back (`always`), or `never`",
    )


class SparseWindowRouting(Settings):
    """Sparse Window Routing: only windows near the object run through the middle blocks (Efficient-SAM2, 3.2)."""

    type: Literal["sparse_window_routing"] = "sparse_window_routing"
    windows: Literal["object", "all"] = Field("object", description="`all`: every window on every frame (exact)")
    span: Literal["stage3", "tiles"] = Field(
        "stage3",
        description="`tiles`: skipped windows skip all blocks before the middle ones as well",
    )
    early: float = Field(
        0.0,
        ge=0.0,
        le=1.0,
        allow_inf_nan=False,
        description="with tiles: share of the map that passes the blocks before the span",
    )
    correction: Literal["none", "patch"] = Field(
        "none",
        description="with tiles: `patch` lets reused maps of stages 1 and 2 follow the patch embedding (fitted)",
    )
    stage4: Literal["dense", "routed"] = Field(
        "dense",
        description="`routed`: stage 4 runs for computed windows only; needs `temporal`",
    )
    saliency_mass: Fraction = Field(
        0.7, description="share of the prompt-to-image attention that the salient windows hold"
    )
    score_gate: float = Field(
        5.0, allow_inf_nan=False, description="object score logit under which salient windows are added"
    )
    dilation: int = Field(5, ge=1, le=255, description="max-pool kernel on the low-resolution masks, odd; 1: none")
    motion: float = Field(
        0.0,
        ge=0.0,
        le=100.0,
        allow_inf_nan=False,
        description="the mask also counts where the object would be after so many frames at its speed",
    )
    candidates: Literal["all", "best"] = Field(
        "all", description="which mask candidates count: all three, or the `best` by predicted IoU"
    )
    shortcut: ShortcutSettings = ShortcutSettings()
    temporal: bool = Field(False, description="skipped windows return their last output plus the shortcut's change")
    rolling: int = Field(
        0, ge=0, le=_MAX_COUNT, description="windows computed on each frame because they have waited longest"
    )
    budget: Fraction = Field(
        1.0,
        description="largest share of the windows on a routed frame; 1: no limit; below 1 needs `temporal`",
    )
    fill: bool = Field(False, description="compute as many windows as the budget allows, wanted or not")
    round_to: int = Field(
        1, ge=1, le=_MAX_COUNT, description="window counts are rounded up to a multiple (fewer compiled shapes)"
    )
    padding: Literal["exact", "published"] = Field(
        "exact", description="`published`: the padding order of the released shortcuts; not with `temporal`"
    )
    refresh: RefreshSettings = RefreshSettings()

    alias: ClassVar[str] = "routing"

    @property
    def uses_shortcut(self) -> bool:
        """Whether skipped windows are given anything but their last output."""
        return self.span == "stage3" or self.early > 0

    @field_validator("dilation")
    @classmethod
    def _odd(cls, value: int) -> int:
        if value % 2 == 0:
            raise ValueError(f"expected an odd kernel size, got {value}; the nearest are {value - 1} and {value + 1}")
        return value

    @model_validator(mode="after")
    def _published_has_no_memory(self) -> SparseWindowRouting:
        if self.padding == "published" and self.temporal:
            raise ValueError("padding 'published' works only with temporal: false (padded tokens have no last output)")
        return self

    @model_validator(mode="after")
    def _tiles_need_memory(self) -> SparseWindowRouting:
        if self.span == "tiles" and not self.temporal:
            raise ValueError("span 'tiles' needs temporal: true (a skipped tile has nothing but its last output)")
        return self

    @model_validator(mode="after")
    def _early_is_for_tiles(self) -> SparseWindowRouting:
        if self.early > 0 and self.span != "tiles":
            raise ValueError(f"early: {self.early:g} needs span: tiles (with span: stage3 the whole map passes)")
        if self.correction != "none" and self.span != "tiles":
            raise ValueError(
                f"correction: {self.correction} needs span: tiles (with span: stage3 nothing is reused there)"
            )
        if self.early > 0 and self.shortcut.type == "attention":
            raise ValueError(
                "early above 0 works token by token, which shortcut.type attention does not; expected bottleneck, ffn "
                "or identity"
            )
        return self

    @model_validator(mode="after")
    def _stage4_needs_memory(self) -> SparseWindowRouting:
        if self.stage4 == "routed" and not self.temporal:
            raise ValueError("stage4 'routed' needs temporal: true (a skipped window has nothing but its last output)")
        return self

    @model_validator(mode="after")
    def _budget_needs_memory(self) -> SparseWindowRouting:
        if self.budget < 1.0 and not self.temporal:
            raise ValueError("a budget below 1 needs temporal: true (windows of the object are skipped as well)")
        return self


class SparseMemoryRetrieval(Settings):
    """Sparse Memory Retrieval: older memory frames keep only the tokens that mattered (Efficient-SAM2, section 3.3)."""

    type: Literal["sparse_memory_retrieval"] = "sparse_memory_retrieval"
    keep: Fraction = Field(0.05, description="share of the tokens kept of each older memory frame; 1: all")
    keep_conditioning: Fraction = Field(
        1.0, description="the same for conditioning frames, measured when first read; 1: whole"
    )
    rebalance: bool = Field(
        False, description="kept tokens of a frame together weigh what the whole frame weighed when measured"
    )
    warm_up: bool = Field(
        True, description="prune only after as many frames were measured as the bank's middle holds (5)"
    )
    query_stride: int = Field(1, ge=1, le=_MAX_COUNT, description="saliency averages every n-th query only; 1: all")

    alias: ClassVar[str] = "retrieval"


class SparseQueryRouting(Settings):
    """Memory attention runs for tokens of computed windows and near the object; the others keep their last output."""

    type: Literal["sparse_query_routing"] = "sparse_query_routing"
    margin: int = Field(2, ge=0, le=255, description="tokens by which the object's mask candidates are widened")
    rolling: int = Field(
        1, ge=0, le=_MAX_COUNT, description="further windows whose tokens are queries, those that waited longest"
    )
    budget: Fraction = Field(
        1.0,
        description="largest share of the tokens that are queries; 1: no limit",
    )

    alias: ClassVar[str] = "queries"


Part = Literal["encoder", "memory_attention", "memory_encoder", "mask_decoder"]
PARTS: tuple[Part, ...] = get_args(Part)
"""The parts of a model that `precision` and `compile` act on."""
CompileMode = Literal["default", "reduce-overhead", "max-autotune", "max-autotune-no-cudagraphs"]
_DTYPES = {"bfloat16": "bf16", "float16": "fp16"}


def _each_part_once(value: Any) -> tuple[Part, ...]:
    if not isinstance(value, (list, tuple)):
        raise ValueError(f"expected a list of parts, got {value!r:.80}; known: {', '.join(PARTS)}")
    for part in value:
        if part not in PARTS:
            raise ValueError(f"unknown part {part!r:.80}{nearest(str(part), PARTS)}; known: {', '.join(PARTS)}")
    if len(set(value)) != len(value):
        raise ValueError(f"expected each part once, got {', '.join(value)}")
    return tuple(part for part in PARTS if part in value)


class Precision(Settings):
    """Parts of the model run in half precision; what they take and give, and everything between them, stays fp32."""

    type: Literal["precision"] = "precision"
    dtype: Literal["bf16", "fp16"] = Field("bf16", description="`bfloat16` and `float16` are read as well")
    cast: Literal["autocast", "weights"] = Field(
        "autocast",
        description="`autocast`: as torch.autocast casts operations; `weights`: by half-precision weights",
    )
    keep_fp32: tuple[Part, ...] = Field((), description="parts left as they are")

    alias: ClassVar[str] = "precision"

    @field_validator("dtype", mode="before")
    @classmethod
    def _full_names(cls, value: Any) -> Any:
        return _DTYPES.get(value, value) if isinstance(value, str) else value

    @field_validator("keep_fp32", mode="before")
    @classmethod
    def _known_parts(cls, value: Any) -> Any:
        return _each_part_once(value)


class TrimCaches(Settings):
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
        le=_MAX_COUNT,
        description="forget tracked frames further than so many from the one being tracked; null: keep all",
    )
    images: bool = Field(False, description="`transformers`: empty the images behind those frames too; needs `frames`")

    alias: ClassVar[str] = "caches"

    @model_validator(mode="after")
    def _images_follow_frames(self) -> TrimCaches:
        if self.images and self.frames is None:
            raise ValueError("images: true needs a number of frames, e.g. frames: 16 (images behind them are emptied)")
        return self


class CompileParts(Settings):
    """torch.compile of the large parts of the model, with a bounded set of graphs (docs/compile.md)."""

    type: Literal["compile"] = "compile"
    parts: tuple[Part, ...] = Field(PARTS, description="what is compiled; the prompt encoder never is")
    mode: CompileMode = Field("default", description="of torch.compile; all but `default` are inductor's")
    backend: str = Field("inductor", min_length=1, max_length=80, description="any that torch.compile knows")

    alias: ClassVar[str] = "compile"

    @field_validator("parts", mode="before")
    @classmethod
    def _known_parts(cls, value: Any) -> Any:
        found = _each_part_once(value)
        if not found:
            raise ValueError(f"expected a non-empty list out of {', '.join(PARTS)}; got {value!r:.80}")
        return found

    @model_validator(mode="after")
    def _modes_are_of_inductor(self) -> CompileParts:
        if self.mode != "default" and self.backend != "inductor":
            raise ValueError(
                f"mode {self.mode!r} is one of inductor's; with backend {self.backend!r} use mode: default"
            )
        return self


Operation = SparseWindowRouting | SparseMemoryRetrieval | SparseQueryRouting | Precision | TrimCaches | CompileParts
OPERATIONS: dict[str, type[Settings]] = {
    "sparse_window_routing": SparseWindowRouting,
    "sparse_memory_retrieval": SparseMemoryRetrieval,
    "sparse_query_routing": SparseQueryRouting,
    "precision": Precision,
    "trim_caches": TrimCaches,
    "compile": CompileParts,
}
_MAX_CANDIDATES = 5000


class CalibrationSettings(Settings):
    """What calibration promises, and what it may change to keep the promise.

    Drops are 1 - J&F of the sparse masks against the dense model's own masks, on clips that took no part in fitting.
    The Jaccard distance is a metric, so the drop in J against any ground truth is at most 1 - J against dense masks.
    """

    max_drop: float = Field(
        0.05, gt=0.0, le=1.0, allow_inf_nan=False, description="promise on the mean over held-out clips"
    )
    max_clip_drop: float = Field(
        0.2, gt=0.0, le=1.0, allow_inf_nan=False, description="promise on the worst held-out clip"
    )
    objective: Literal["memory", "stage", "masks"] = Field(
        "memory",
        description="what the shortcut is fitted to: conditioned feature (`memory`), span output (`stage`) or masks",
    )
    steps: int = Field(100, ge=0, le=_MAX_COUNT, description="gradient steps after the closed form")
    search: dict[str, tuple[Any, ...]] = Field(
        default_factory=dict,
        description="values to try, by dotted field; every combination is a candidate, at most 5,000",
    )

    @field_validator("search", mode="before")
    @classmethod
    def _lists(cls, value: Any) -> Any:
        if not isinstance(value, Mapping):
            raise ValueError(f"expected a mapping of dotted fields to lists of values, got {value!r:.80}")
        count = 1
        for key, values in value.items():
            if not isinstance(values, (list, tuple)) or not values:
                raise ValueError(f"{key!r:.80}: expected a non-empty list of values, got {values!r:.80}")
            count *= len(values)
        if count > _MAX_CANDIDATES:
            raise ValueError(f"{count} combinations of values, expected at most {_MAX_CANDIDATES}")
        return {str(key): tuple(values) for key, values in value.items()}

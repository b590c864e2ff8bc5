"""The calls on a model: `sparsify`, `desparsify`, `disabled` and `status`."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

from surgery.adapters.files import AnyAdapter, calibration_of
from surgery.adapters.record import CalibrationRecord
from surgery.adapters.sources import open_adapter
from surgery.core.session import SessionStats
from surgery.describe import described
from surgery.engine import apply, current_surgery, desparsify, disabled
from surgery.errors import CalibrationError
from surgery.operations import CompileParts
from surgery.operations.cuda_graphs import Recordings
from surgery.operations.window_routing.bound import WindowRouter
from surgery.recipe import Recipe

if TYPE_CHECKING:
    from surgery.calibration.clips import ClipSource

__all__ = ["DEFAULT_RECIPE", "Status", "desparsify", "disabled", "sparsify", "status"]

M = TypeVar("M")
DEFAULT_RECIPE = "balanced"


@dataclass(frozen=True)
class Status:
    """What has been done to a model.

    sparse: whether it is under surgery; everything else is None or empty when it is not. enabled: False inside
    `disabled`. span: routed blocks `(entry, exit)`, `exit` being the dense block that merges. windows: stage-3
    windows of a frame. parameters_added: of the shortcut. adapter: where its weights came from. frames,
    windows_kept, keys_kept, queries_kept, dense_frames, widened_frames, restored_frames: of the session that ran last
    (fractions of stage-3 windows, of spatial memory keys and of query tokens of memory attention, averaged over tracked
    frames, None where the recipe has no such operation; reasons for dense frames, for frames of more windows than the
    budget and for objects' frames that read all memory, and how often). recorded_calls: under `cuda_graphs`, of every
    part how many calls were replayed, and how many ran as they are, by the reason. calibration: what was measured of
    this very recipe and shortcut, or None.
    """

    sparse: bool
    host: str | None = None
    enabled: bool = False
    recipe: Recipe | None = None
    operations: tuple[str, ...] = ()
    span: tuple[int, int] | None = None
    window: int | None = None
    windows: int | None = None
    parameters_added: int = 0
    adapter: str | None = None
    frames: int = 0
    windows_kept: float | None = None
    keys_kept: float | None = None
    queries_kept: float | None = None
    dense_frames: dict[str, int] | None = None
    widened_frames: dict[str, int] | None = None
    restored_frames: dict[str, int] | None = None
    recorded_calls: dict[str, dict[str, int]] | None = None
    calibration: CalibrationRecord | None = None

    def __str__(self) -> str:
        if self.recipe is None:
            return "stock model"
        lines = [f"{self.host} model under recipe {self.recipe.metadata.name!r}"]
        lines.append("operations: " + ", ".join(self.operations) + ("" if self.enabled else " (disabled)"))
        lines.append(described(self.recipe))
        if self.span:
            lines += [
                f"blocks {self.span[0]}..{self.span[1] - 1} routed over {self.windows} windows of {self.window}",
                f"parameters added: {self.parameters_added:,}; shortcut weights: {self.adapter or 'untrained'}",
            ]
        if self.calibration is not None:
            record, found = self.calibration, self.calibration.against_dense
            lines.append(
                f"calibrated ({record.fit}) on {len(record.fit_clips)} clips; on {len(record.held_out_clips)} others "
                f"J&F against the dense masks drops {found.drop:.4f} (95 %: {found.spread()}), "
                f"{found.worst_drop:.4f} on the worst; promised {record.max_drop:g} and "
                f"{record.max_clip_drop:g}" + ("" if record.kept else ": NOT KEPT")
            )
        if self.frames:
            shares = {"windows": self.windows_kept, "keys": self.keys_kept, "queries": self.queries_kept}
            kept = [f"{name} kept {share:.0%}" for name, share in shares.items() if share is not None]
            lines.append(f"last session: {self.frames} tracked frames; " + ", ".join(kept))
        if self.recorded_calls is not None:
            told = [f"{part} {why} {n}" for part, calls in self.recorded_calls.items() for why, n in calls.items()]
            lines.append("calls of parts: " + (", ".join(told) or "none yet"))
        return "\n".join(lines)


def sparsify(
    model: M, recipe: str | Path | Recipe | None = None, *, adapter: str | Path | AnyAdapter | None = None,
    force: bool = False, clips: Iterable[ClipSource] | None = None, progress: bool = True,
    compile: bool | str | CompileParts | None = None,
) -> M:  # fmt: skip
    """Make a video model of SAM 2 or SAM 3 sparse, in place. The same model, through the same calls, then skips what a
    frame does not need. Calling it again undoes the first surgery and applies the new one.

    Args:
        model: a `transformers` `Sam2VideoModel`, `Sam3TrackerVideoModel` or (without window routing) `Sam3VideoModel`,
            or a `sam2` `SAM2VideoPredictor` (also `...VOS`, before its first call). Do this before `torch.compile` and
            before `accelerate` dispatches blocks to devices.
        recipe: a built-in name (`list_recipes()`), a YAML path or a `Recipe`. Default: the adapter's own recipe, or
            "balanced" without an adapter.
        adapter: folder made by `save_adapter`, or a Hub id "user/name" (see `load_adapter`), with the fitted shortcut.
            Without one the shortcut is the identity.
        force: load an adapter although its fingerprint says it was made for other weights.
        clips: calibrate on these: fit the shortcut and choose the thresholds, as `surgery.calibrate` does
            with its defaults; at least two clips, no labels needed. Not together with `adapter`.
        progress: show a progress bar while calibrating.
        compile: torch.compile of the large parts, as the recipe operation `compile`. True: with the recipe's own
            settings or the defaults; a mode of torch.compile, such as "max-autotune", or the operation; False: not,
            whatever the recipe says; None: as the recipe says. Compiling happens on first use: see `warm_up`.

    Returns:
        `model` itself.

    Raises:
        UnsupportedModelError: the model is not one of these, or its structure cannot be routed.
        RecipeError, AdapterError, AdapterMismatchError: bad recipe or adapter.
        HubError: an adapter named by its Hub id could not be fetched.
        WeightsError: a weight the surgery relies on is not finite, or is out of range of the recipe's precision.
        ModelStateError: blocks already carry an instance `forward` (dispatched by accelerate or patched by others), or
            the recipe has a precision and the model is not in fp32, a module carries the surgery of another model, or
            this is called from inside a frame. Other threads' frames are waited for.
        CalibrationError: too few usable clips, or no setting keeps the recipe's promise.
        After any of these the model is as it was.
    """
    if clips is not None and adapter is not None:
        raise CalibrationError(
            "adapter and clips are both given; an adapter is calibrated already: give one of them, or load it "
            "first and call calibrate(model, clips)"
        )
    loaded = open_adapter(adapter) if isinstance(adapter, (str, Path)) else adapter
    default = loaded.recipe if loaded is not None else DEFAULT_RECIPE
    chosen = _with_compile(Recipe.load(recipe if recipe is not None else default), compile)
    if clips is None:
        return apply(model, chosen, loaded, force)
    from surgery.calibration import calibrate

    calibrate(model, clips, chosen, progress=progress)
    return model


def status(model: object) -> Status:
    """Describe what has been done to `model`, and what its last session kept."""
    surgery = current_surgery(model)
    if surgery is None or surgery.recipe is None:
        return Status(sparse=False)
    router, stats, recipe = surgery.find(WindowRouter), surgery.stats or SessionStats(), surgery.recipe
    recordings = surgery.find(Recordings)
    added = [bound.learned[2] for bound in surgery.bound if bound.learned is not None]
    return Status(
        sparse=True,
        host=surgery.host.name,
        enabled=surgery.enabled,
        recipe=recipe,
        operations=tuple(operation.type for operation in recipe.operations),
        span=(router.span.entry, router.span.exit) if router is not None else None,
        window=router.span.window if router is not None else None,
        windows=router.grid.count if router is not None else None,
        parameters_added=sum(parameter.numel() for module in added for parameter in module.parameters()),
        adapter=surgery.adapter,
        frames=stats.frames,
        windows_kept=stats.fraction("windows"),
        keys_kept=stats.fraction("keys"),
        queries_kept=stats.fraction("queries"),
        dense_frames=dict(stats.dense),
        widened_frames=dict(stats.widened),
        restored_frames=dict(stats.restored),
        recorded_calls={part: dict(calls) for part, calls in recordings.calls.items()} if recordings else None,
        calibration=calibration_of(model),
    )


def _with_compile(recipe: Recipe, compile: bool | str | CompileParts | None) -> Recipe:
    if compile is None:
        return recipe
    if compile is False:
        return recipe.without(CompileParts)
    if isinstance(compile, CompileParts):
        return recipe.with_operation(compile)
    compiled = recipe if recipe.find(CompileParts) is not None else recipe.with_operation(CompileParts())
    return compiled if compile is True else compiled.with_values({"compile.mode": compile})

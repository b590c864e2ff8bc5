"""What a row is about, and how much of windows and keys its frames kept."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from surgery.bench.pair import Pair
from surgery.bench.settings import Settings
from surgery.core.host import HostView
from surgery.operations import Precision


@dataclass(frozen=True)
class Kept:
    """Running totals of a session at one moment."""

    frames: int = 0
    windows_sum: float = 0.0
    calls: int = 0
    keys_sum: float = 0.0
    query_calls: int = 0
    queries_sum: float = 0.0

    @classmethod
    def of(cls, view: HostView) -> Kept:
        """Those of the session that ran last."""
        stats = view.binding.stats
        if stats is None:
            return cls()
        return cls(
            stats.frames, stats.windows_kept, stats.key_calls, stats.keys_kept, stats.query_calls, stats.queries_kept,
        )  # fmt: skip

    def since(self, before: Kept) -> Kept:
        """What has been added after `before`."""
        return Kept(
            self.frames - before.frames, self.windows_sum - before.windows_sum, self.calls - before.calls,
            self.keys_sum - before.keys_sum, self.query_calls - before.query_calls,
            self.queries_sum - before.queries_sum,
        )  # fmt: skip

    def windows(self, view: HostView, forced: tuple[int, ...] | None) -> dict[str, Any] | None:
        """Stage-3 windows computed, mean over tracked frames; None when the recipe routes none."""
        grid = view.binding.grid
        if view.binding.routing is None or grid is None or not self.frames:
            return None
        share = self.windows_sum / self.frames
        return {"computed": share * grid.count, "of": grid.count, "share": share, "forced": forced is not None}

    def keys(self, view: HostView) -> dict[str, Any] | None:
        """Spatial keys read per object and layer; `of` is a full memory bank. None when none are pruned."""
        if view.binding.retrieval is None or not self.calls:
            return None
        full = view.bank_size() * view.frame_tokens()
        share = self.keys_sum / self.calls
        return {"read": share * full, "of": full, "share": share}

    def queries(self, view: HostView) -> dict[str, Any] | None:
        """Tokens that were queries of memory attention, per object; None without query routing."""
        if view.binding.queries is None or not self.query_calls:
            return None
        tokens = view.frame_tokens()
        share = self.queries_sum / self.query_calls
        return {"computed": share * tokens, "of": tokens, "share": share}


def identity(pair: Pair, settings: Settings) -> dict[str, Any]:
    """What a row is about: settings, host, device and recipe."""
    recipe = pair.sparse.recipe
    own = pair.sparse.binding.precision
    return {
        "model": type(pair.sparse.model).__name__,
        "host": pair.sparse.name,
        "device": pair.device.type,
        "image_size": pair.sparse.image_size(),
        "precision": _label(settings, own) if own is not None else settings.precision,
        "sparse_precision": own.model_dump(exclude={"type"}, mode="json") if own is not None else None,
        "objects": settings.objects,
        "windows_share": settings.windows,
        "recipe": recipe.metadata.name if recipe is not None else None,
        "protocol": settings.protocol,
        "compile": settings.compile,
        "settings": settings.as_dict(),
    }


def _label(settings: Settings, own: Precision) -> str:
    """Both precisions, where the recipe has one of its own and the settings' is the stock model's."""
    kept = f", {' and '.join(own.keep_fp32)} fp32" if own.keep_fp32 else ""
    return f"stock {settings.precision}, sparse {own.dtype} by {own.cast}{kept}"

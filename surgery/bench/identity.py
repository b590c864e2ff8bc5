"""What a row is about, and how much of windows and keys its frames kept."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from surgery.bench.pair import Pair
from surgery.bench.settings import Settings
from surgery.core.host import HostView
from surgery.core.surgery import Surgery
from surgery.operations import Precision
from surgery.operations.window_routing.bound import WindowRouter


@dataclass(frozen=True)
class Kept:
    """Running totals of a session at one moment: by name of a share, its sum and the number of calls."""

    totals: dict[str, tuple[float, int]] = field(default_factory=dict)

    @classmethod
    def of(cls, surgery: Surgery) -> Kept:
        """Those of the session that ran last."""
        return cls(dict(surgery.stats.kept)) if surgery.stats is not None else cls()

    def since(self, before: Kept) -> Kept:
        """What has been added after `before`."""
        known = before.totals
        return Kept(
            {
                name: (total - known.get(name, (0.0, 0))[0], calls - known.get(name, (0.0, 0))[1])
                for name, (total, calls) in self.totals.items()
            }
        )

    def share(self, name: str) -> float | None:
        """Mean share; None where nothing was counted."""
        total, calls = self.totals.get(name, (0.0, 0))
        return total / calls if calls else None

    def windows(self, surgery: Surgery, forced: tuple[int, ...] | None) -> dict[str, Any] | None:
        """Stage-3 windows computed, mean over tracked frames; None when the recipe routes none."""
        router, share = surgery.find(WindowRouter), self.share("windows")
        if router is None or share is None:
            return None
        count = router.grid.count
        return {"computed": share * count, "of": count, "share": share, "forced": forced is not None}

    def keys(self, host: HostView) -> dict[str, Any] | None:
        """Spatial keys read per object and layer; `of` is a full memory bank. None when none are pruned."""
        share, full = self.share("keys"), host.bank_size() * host.frame_tokens()
        return None if share is None else {"read": share * full, "of": full, "share": share}

    def queries(self, host: HostView) -> dict[str, Any] | None:
        """Tokens that were queries of memory attention, per object; None without query routing."""
        share, tokens = self.share("queries"), host.frame_tokens()
        return None if share is None else {"computed": share * tokens, "of": tokens, "share": share}


def identity(pair: Pair, settings: Settings) -> dict[str, Any]:
    """What a row is about: settings, host, device and recipe."""
    recipe, host = pair.sparse.recipe, pair.sparse.host
    own = recipe.find(Precision) if recipe is not None else None
    return {
        "model": type(host.model).__name__,
        "host": host.name,
        "device": pair.device.type,
        "image_size": host.image_size(),
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

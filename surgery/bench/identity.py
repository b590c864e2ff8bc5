"""What a row is about, and how much of windows and keys its frames kept."""

from __future__ import annotations

from typing import Any

from surgery.bench.pair import Pair
from surgery.bench.settings import Settings
from surgery.core.session import SessionStats
from surgery.core.surgery import Surgery
from surgery.operations import Precision
from surgery.operations.window_routing.bound import WindowRouter


def totals(surgery: Surgery) -> SessionStats:
    """Of the session that ran last, as they are now."""
    return (surgery.stats or SessionStats()).copied()


def kept(surgery: Surgery, before: SessionStats, forced: bool) -> dict[str, dict[str, Any] | None]:
    """What was kept after `before`, means over frames: stage-3 windows, spatial keys per object and layer (of a full
    memory bank), tokens that were queries; None where no operation of the recipe leaves any out."""
    host, router, shares = surgery.host, surgery.find(WindowRouter), totals(surgery).since(before)
    tokens, windows = host.frame_tokens(), router.grid.count if router is not None else 0
    found: dict[str, dict[str, Any] | None] = {}
    for name, verb, whole in (
        ("windows", "computed", windows), ("keys", "read", host.bank_size() * tokens), ("queries", "computed", tokens),
    ):  # fmt: skip
        share = shares.get(name) if whole else None
        found[name] = None if share is None else {verb: share * whole, "of": whole, "share": share}
    if found["windows"] is not None:
        found["windows"]["forced"] = forced
    return found


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
        "compile": settings.compile,
        "settings": settings.model_dump(),
    }


def _label(settings: Settings, own: Precision) -> str:
    """Both precisions, where the recipe has one of its own and the settings' is the stock model's."""
    kept = f", {' and '.join(own.keep_fp32)} fp32" if own.keep_fp32 else ""
    return f"stock {settings.precision}, sparse {own.dtype} by {own.cast}{kept}"

"""What a reader should know first: what was done, how much faster it is, and what that cost."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from surgery.report.document import Document

Tile = tuple[str, str, str]


def tracked_twice(model: str, clips: str, recipe: str) -> str:
    """What was done; `clips` as in "3 clips of davis2017"."""
    return (
        f"{model} tracked {clips} twice: stock, and sparse after surgery (recipe {recipe}). Sparse skips "
        "image windows and memory keys that matter little. The weights are the same."
    )


def speed_tile(ratio: float, interval: Sequence[float], stock_ms: float, sparse_ms: float) -> Tile:
    """Speed: `ratio` is stock time over sparse time, with its 95 % interval; milliseconds are per frame."""
    detail = f"{stock_ms:.1f} → {sparse_ms:.1f} ms per frame"
    if len(interval) == 2:
        detail += f"; 95% interval {interval[0]:.2f}x to {interval[1]:.2f}x"
    return f"{ratio:.2f}x", "as fast as stock", detail


def quality_tile(change: float, interval: Sequence[float], stock: float, sparse: float) -> Tile:
    """Quality: J&F of both models as fractions, their change, and its 95 % interval (empty: none)."""
    detail = f"J&F {100 * stock:.1f} → {100 * sparse:.1f} of 100"
    if interval:
        detail += f"; 95% interval {100 * interval[0]:+.1f} to {100 * interval[1]:+.1f}"
    return _points(change), "of quality", detail


def work_tile(windows: float | None, keys: float | None) -> Tile:
    """Work that is left: fractions of windows computed and of memory keys read; None is all."""
    return _share(windows), "of windows computed", f"{_share(keys)} of memory keys read"


def eval_headline(document: Document, data: dict[str, Any]) -> None:
    """Of `surgery eval`: speed, quality and work; of one model alone, its score."""
    settings, summary = data["settings"], data["summary"]
    stock, sparse = summary.get("dense") or {}, summary.get("sparse") or {}
    count = summary["sequences"]
    clips = f"{count} clip{'s' * (count != 1)} of {settings.get('dataset') or 'own data'}"
    tiles = []
    speed, change = summary.get("speedup"), (summary.get("difference") or {}).get("j_and_f")
    if speed and None not in (stock.get("ms"), sparse.get("ms")):
        tiles.append(speed_tile(speed["mean"], (speed["low"], speed["high"]), stock["ms"], sparse["ms"]))
    if change and None not in (stock.get("j_and_f"), sparse.get("j_and_f")):
        interval = (change["low"], change["high"])
        tiles.append(quality_tile(change["mean"], interval, stock["j_and_f"], sparse["j_and_f"]))
    if stock and sparse:
        text = tracked_twice(settings["model"], clips, recipe_name(settings))
    else:
        score = (sparse or stock).get("j_and_f")
        if score is not None:
            tiles.append((f"{100 * score:.1f}", "J&F of 100", "the mean of all objects"))
        how = f"sparse after surgery (recipe {recipe_name(settings)})" if sparse else "stock"
        text = f"{settings['model']} tracked {clips}, {how}. No other model ran beside it."
    if sparse:
        tiles.append(work_tile(sparse.get("windows_kept"), sparse.get("keys_kept")))
    document.headline(text, tiles)


def bench_headline(document: Document, data: dict[str, Any]) -> None:
    """Of `surgery bench`: speed, of one case or from the slowest gain to the largest."""
    rows = data["rows"]
    if not rows:
        return
    models = ", ".join(dict.fromkeys(row["model"] for row in rows))
    devices = ", ".join(dict.fromkeys(row["device"] for row in rows))
    text = f"{models} was timed on {devices}: stock, and sparse after surgery. A bench measures no quality."
    ratios = [row["whole_frame_speedup"] for row in rows]
    if len(rows) == 1:
        tile = speed_tile(ratios[0], rows[0]["interval"], rows[0]["dense"]["median"], rows[0]["sparse"]["median"])
    else:
        tile = (f"{min(ratios):.2f}x to {max(ratios):.2f}x", "as fast as stock", f"{len(rows)} cases")
    document.headline(text, [tile])


def calibration_headline(document: Document, data: dict[str, Any]) -> None:
    """Of `surgery calibrate`: whether the promise holds, and the setting that was chosen."""
    tiles = []
    if data.get("kept") is not None:
        tiles.append(("Met" if data["kept"] else "Not met", "the promise", "on held-out clips"))
    chosen = next((row for row in data["candidates"] if row["chosen"]), None)
    if chosen is not None:
        if chosen.get("drop") is not None:
            tiles.append((_points(-chosen["drop"]), "of quality", "J&F against the stock model's own masks"))
        tiles.append(work_tile(chosen.get("windows_kept"), chosen.get("keys_kept")))
    roles = [clip["role"] for clip in data["clips"]]
    text = f"Settings were searched. Clips: {roles.count('fit')} to fit, {roles.count('held-out')} held out to measure."
    document.headline(text, tiles)


def recipe_name(settings: dict[str, Any]) -> str:
    """The name of a recipe in the settings of an evaluation, however it is written there."""
    recipe = settings.get("recipe")
    if isinstance(recipe, dict):
        metadata = recipe.get("metadata")
        recipe = metadata.get("name") if isinstance(metadata, dict) else recipe.get("name")
    return str(recipe or "none")


def _points(change: float) -> str:
    # Adding zero turns a rounded -0.0 into 0.0.
    return f"{round(100 * change, 1) + 0.0:+.1f} points"


def _share(fraction: float | None) -> str:
    return "all" if fraction is None else f"{fraction:.0%}"

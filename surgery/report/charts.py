"""What `charts.js` and `player.js` draw, as plain data."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

from surgery.report.page import at, plain

ARMS = {"dense": "stock", "sparse": "sparse"}
COLOURS = {"stock": 0, "sparse": 1, "windows computed": 1, "memory keys read": 2}
_PLAYED = ("sequence", "size", "fps", "grid", "cover", "tokens", "objects", "frames")


def lines(x: str, y: str, series: Iterable[tuple[str, Iterable[tuple[float, float | None]]]]) -> dict[str, Any]:
    """A line chart of (name, points); points without a value, and series without a point, are left out."""
    found = [(ARMS.get(name, name), [[*point] for point in points if point[1] is not None]) for name, points in series]
    return {
        "type": "lines",
        "x": {"label": x},
        "y": {"label": y, "zero": True},
        "series": [
            {"name": name, "colour": COLOURS.get(name, 3), "points": points} for name, points in found if points
        ],
    }


def latency_chart(row: dict[str, Any]) -> dict[str, Any]:
    """Time of every measured frame of a benchmark's case."""
    return lines("frame", "ms per frame", [(one["name"], enumerate(one["ms"])) for one in row["latency"]])


def drops_chart(data: dict[str, Any], key: str, what: str) -> dict[str, Any]:
    """Candidates of a calibration that were run, the chosen one as a series of its own."""
    series = []
    for name, chosen, colour in (("tried", False, 0), ("chosen", True, 1)):
        points = [
            [100 * row[key], 100 * row["drop"], plain(row["settings"])]
            + [None if end is None else 100 * end for end in (at(row, "interval.0"), at(row, "interval.1"))]
            for row in data["candidates"]
            if row["chosen"] is chosen and None not in (row.get(key), row.get("drop"))
        ]
        if points:
            series.append({"name": name, "colour": colour, "hollow": not chosen, "quiet": True, "points": points})
    y = {"label": "drop, points", "zero": True}
    return {"type": "points", "x": {"label": what}, "y": y, "series": series}


def trace_charts(trace: dict[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    """The share of windows and keys, and the time, of every frame of a trace."""
    frames, shares, grid = trace["frames"], [], trace.get("grid")
    if grid is not None:
        whole = grid[0] * grid[1]
        windows = [whole if frame.get("windows") is None else len(frame["windows"]) for frame in frames]
        kept = [(frame["index"], 100 * count / whole) for frame, count in zip(frames, windows, strict=True)]
        read = [(frame["index"], 100 * frame["keys_kept"]) for frame in frames if frame.get("keys_kept") is not None]
        shares = [("windows computed", kept), ("memory keys read", read)]
    times = [(arm, [(frame["index"], at(frame, f"ms.{arm}")) for frame in frames]) for arm in ARMS]
    return lines("frame", "%", shares), lines("frame", "ms", times)


def player(trace: dict[str, Any], pictures: Sequence[str | None]) -> dict[str, Any]:
    """A trace as the player takes it. pictures: data URIs, one per frame, or none."""
    return {**{key: trace.get(key) for key in _PLAYED}, "images": pictures}


def compromises(evals: list[dict[str, Any]]) -> list[tuple[str, str, dict[str, Any]]]:
    """Data set, machine and chart of quality against speed. Only runs on the same data and machine share a chart."""
    groups: dict[tuple[Any, ...], list[dict[str, Any]]] = {}
    for data in evals:
        machine = [at(data, f"machine.{key}") for key in ("cpu", "device", "threads")]
        groups.setdefault((data["settings"].get("dataset") or "own data", *machine), []).append(data)
    charts = []
    for (dataset, cpu, device, _), group in groups.items():
        series = [
            {"name": name, "hollow": arm == "dense", "colour": COLOURS[name], "points": _speed_and_quality(group, arm)}
            for arm, name in ARMS.items()
        ]
        axes = {"x": {"label": "frames per second"}, "y": {"label": "J&F, %"}}
        spec = {"type": "points", **axes, "series": [one for one in series if one["points"]]}
        if len(group) > 1 and spec["series"]:
            charts.append((dataset, ", ".join(filter(None, (cpu, device))), spec))
    return charts


def recipe_name(data: dict[str, Any]) -> str:
    """The name of an evaluation's recipe, however it is written there."""
    recipe = data["settings"].get("recipe")
    if isinstance(recipe, dict):
        recipe = at(recipe, "metadata.name") if isinstance(recipe.get("metadata"), dict) else recipe.get("name")
    return str(recipe or "none")


def _speed_and_quality(evals: list[dict[str, Any]], arm: str) -> list[list[Any]]:
    """Points of one arm, named by what differs: the model, the recipe or both."""
    names = [(data["settings"]["model"].rpartition("/")[2], recipe_name(data)) for data in evals]
    differing = [place for place in (0, 1) if len({name[place] for name in names}) > 1]
    points = []
    for data, name in zip(evals, names, strict=True):
        side = data["summary"].get(arm) or {}
        if side.get("ms") and side.get("j_and_f") is not None:
            words = ", ".join(name[place] for place in differing or (1,))
            points.append([1000 / side["ms"], 100 * side["j_and_f"], words, None, None])
    return points

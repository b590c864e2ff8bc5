"""What a report shows of one result file, by kind."""

from __future__ import annotations

import json
from typing import Any

from surgery.report.document import Document
from surgery.report.headline import bench_headline, calibration_headline, eval_headline, recipe_name
from surgery.report.read import Result

ARMS = {"dense": "stock", "sparse": "sparse"}
COLOURS = {"stock": 0, "sparse": 1, "windows computed": 1, "memory keys read": 2}
_UNITS = ("ms", "gflop", "gb_per_s")


def compromise(document: Document, evals: list[dict[str, Any]]) -> None:
    """Quality against speed of several evaluations. Only runs on the same data and machine share a chart."""
    groups: dict[tuple[Any, ...], list[dict[str, Any]]] = {}
    for data in evals:
        machine = data.get("machine") or {}
        same = (data["settings"].get("dataset") or "own data", machine.get("cpu"), machine.get("device"))
        groups.setdefault((*same, machine.get("threads")), []).append(data)
    for (dataset, *machine, _), group in groups.items():
        series = [
            {"name": name, "hollow": arm == "dense", "colour": COLOURS[name], "points": _speed_and_quality(group, arm)}
            for arm, name in ARMS.items()
        ]
        series = [one for one in series if one["points"]]
        if len(group) < 2 or not series:
            continue
        document.section(f"Quality and speed on {dataset}")
        document.text(f"Higher and further right is better. Measured on {', '.join(filter(None, machine))}.", "note")
        axes = {"x": {"label": "frames per second"}, "y": {"label": "J&F, %"}}
        document.chart("Every evaluation: stock and sparse.", {"type": "points", **axes, "series": series})


def _speed_and_quality(evals: list[dict[str, Any]], arm: str) -> list[list[Any]]:
    """Points of one arm, named by what differs: the model, the recipe or both."""
    names = [(data["settings"]["model"].rpartition("/")[2], recipe_name(data["settings"])) for data in evals]
    differing = [place for place in (0, 1) if len({name[place] for name in names}) > 1]
    points = []
    for data, name in zip(evals, names, strict=True):
        side = data["summary"].get(arm) or {}
        if side.get("ms") and side.get("j_and_f") is not None:
            words = ", ".join(name[place] for place in differing or (1,))
            points.append([1000 / side["ms"], 100 * side["j_and_f"], words, None, None])
    return points


def eval_section(document: Document, result: Result, lead: bool) -> None:
    """Scores of both arms, clips with the worst first, why frames were whole; lead: its headline comes before them."""
    settings, summary = result.data["settings"], result.data["summary"]
    document.section(f"Quality: {settings['model']}, recipe {recipe_name(settings)}")
    if lead:
        eval_headline(document, result.data)
    document.text(f"On {settings.get('dataset') or 'own data'}. From {result.path.name}.", "note")
    arms = [(name, summary[arm]) for arm, name in ARMS.items() if summary.get(arm)]
    document.table(
        "Means over objects; milliseconds are the median over all frames; a dash: all",
        [("run", ""), ("J&F", ".3f"), ("J", ".3f"), ("F", ".3f"), ("ms per frame", ".1f"), ("windows computed", ".0%"),
         ("memory keys read", ".0%")],
        [
            [name, *(side.get(key) for key in ("j_and_f", "j", "f", "ms")),
             side.get("windows_kept"), side.get("keys_kept")]
            for name, side in arms
        ],
    )  # fmt: skip
    rows = [_clip(row) for row in result.data["sequences"]]
    # Worst first: by the change where both arms ran, else by the score itself; clips without a score come last.
    by = 3 if any(row[3] is not None for row in rows) else 2 if any(row[2] is not None for row in rows) else 1
    rows.sort(key=lambda row: (row[by] is None, row[by] or 0.0))
    document.table(
        "Clips, worst first",
        [("clip", ""), ("stock J&F", ".3f"), ("sparse J&F", ".3f"), ("change, points", "+.2f"), ("frames", "d"),
         ("windows computed", ".0%"), ("memory keys read", ".0%"), ("stock ms", ".1f"), ("sparse ms", ".1f"),
         ("frames computed whole", "")],
        rows,
    )  # fmt: skip


def _clip(row: dict[str, Any]) -> list[Any]:
    dense, sparse = row.get("dense") or {}, row.get("sparse") or {}
    change = (row.get("difference") or {}).get("j_and_f")
    whole = sparse.get("dense_frames")
    reasons = ", ".join(f"{reason}: {count}" for reason, count in whole.items()) if isinstance(whole, dict) else None
    return [
        row["sequence"], dense.get("j_and_f"), sparse.get("j_and_f"), _points(change), row["frames"],
        row.get("windows_kept"), row.get("keys_kept"), dense.get("ms"), sparse.get("ms"), reasons or None,
    ]  # fmt: skip


def bench_section(document: Document, result: Result, lead: bool) -> None:
    """Cases, and for each its modules, latency and memory over time; lead: as in `eval_section`."""
    data = result.data
    rows, machine = data["rows"], data.get("machine") or {}
    document.section(f"Speed: {', '.join(dict.fromkeys(row['model'] for row in rows)) or 'no finished case'}")
    if lead:
        bench_headline(document, data)
    where = ", ".join(str(machine[key]) for key in ("cpu", "device") if machine.get(key))
    threads = machine.get("threads")
    count = "" if threads is None else f", {threads} thread{'s' * (threads != 1)}"
    document.text(f"{where}{count}. From {result.path.name}.", "note")
    for missing in data.get("not_measured") or ():
        document.text(f"{missing['device']}: {missing['reason']}.", "note")
    if not rows:
        return
    document.table(
        "Whole frames, milliseconds; faster: stock / sparse with its 95% interval; FLOPs: the ratio they predict",
        [("case", ""), ("stock", ".1f"), ("sparse", ".1f"), ("faster", ".2f|x"), ("low", ".2f|x"), ("high", ".2f|x"),
         ("FLOPs", ".2f|x"), ("measured / predicted", ".2f"), ("sparse p95", ".1f"), ("sparse p99", ".1f"),
         ("first frame", ".0f"), ("compile, s", ".1f"), ("windows", ".0f"), ("of", "d"), ("keys", ".0f"),
         ("peak MB", ".0f")],
        [_case_row(row) for row in rows],
    )  # fmt: skip
    cases = document.cases("Case", [_case_name(row) for row in rows])
    for row in rows:
        with cases:
            _case(document, row)


def _case_name(row: dict[str, Any]) -> str:
    kept = row.get("windows")
    share = f"{kept['share']:.0%} of windows" if kept else "all windows"
    if kept and row.get("windows_share") is None:
        share += " (routed)"
    objects = f"{row['objects']} object{'s' * (row['objects'] != 1)}"
    parts = [row["model"], row["precision"], objects, share, row["device"]]
    if row.get("long"):
        parts.append(f"{row['long']} frames, one model after the other")
    for key, usual in (("protocol", "surgery"), ("compile", "none")):
        if row.get(key) not in (None, usual):
            parts.append(f"{key} {row[key]}")
    return ", ".join([*parts, row["host"]])


def _case_row(row: dict[str, Any]) -> list[Any]:
    low, high = row["interval"] if len(row["interval"]) == 2 else (None, None)
    dense, sparse, kept, keys = row["dense"], row["sparse"], row.get("windows") or {}, row.get("keys") or {}
    return [
        _case_name(row), dense["median"], sparse["median"], row["whole_frame_speedup"], low, high, row.get("predicted"),
        row.get("measured_over_predicted"), sparse["p95"], sparse["p99"], sparse.get("first"), row.get("compile_s"),
        kept.get("computed"), kept.get("of"), keys.get("read"), row.get("peak_memory_mb"),
    ]  # fmt: skip


def _case(document: Document, row: dict[str, Any]) -> None:
    modules = row["modules"]
    document.raw('<div class="charts">')
    if modules:
        document.bars(
            "Where a frame's time goes, milliseconds. The rows add up to the frame.",
            [part["name"] for part in modules],
            [(name, COLOURS[name], [part[f"{arm}_ms"] for part in modules]) for arm, name in ARMS.items()],
        )
    document.raw("<div>")
    if any(one["ms"] for one in row["latency"]):
        document.chart(
            "Time of every measured frame.",
            _lines("frame", "ms per frame", [(one["name"], one.get("frame"), one["ms"]) for one in row["latency"]]),
        )
    memory = row.get("memory_over_time") or []
    if any(one["mb"] for one in memory):
        document.chart(
            f"Memory above the start of the run ({row.get('memory_kind') or 'kind unknown'}).",
            _lines("frame", "MB", [(one["name"], one["frame"], one["mb"]) for one in memory]),
        )
    document.raw("</div></div>")
    if modules:
        document.table(
            "Modules, without the modules inside them",
            [("module", ""), ("stock ms", ".2f"), ("sparse ms", ".2f"), ("stock GFLOP", ".2f"), ("sparse GFLOP", ".2f"),
             ("stock GB/s", ".1f"), ("sparse GB/s", ".1f")],
            [
                [part["name"], *(part.get(f"{arm}_{unit}") for unit in _UNITS for arm in ARMS)]
                for part in modules
            ],
        )  # fmt: skip


def _lines(x: str, y: str, series: list[tuple[str, list[int] | None, list[float]]]) -> dict[str, Any]:
    """A line chart; a value without a frame number stands at its place in the list."""
    return {
        "type": "lines",
        "x": {"label": x},
        "y": {"label": y, "zero": True},
        "series": [
            {
                "name": ARMS.get(name, name),
                "colour": COLOURS.get(ARMS.get(name, name), 3),
                "points": [list(pair) for pair in zip(frames or range(len(values)), values, strict=False)],
            }
            for name, frames, values in series
            if values
        ],
    }


def calibration_section(document: Document, result: Result, lead: bool) -> None:
    """Candidates against their drop, the clips, the loss and what is promised; lead: as in `eval_section`."""
    data = result.data
    document.section("Calibration")
    if lead:
        calibration_headline(document, data)
    if isinstance(data.get("promise"), dict):
        document.heading("Promise")
        document.facts([(name, _plain(value)) for name, value in data["promise"].items()])
    candidates = data["candidates"]
    document.raw('<div class="charts">')
    for key, what in (("windows_kept", "windows computed, %"), ("keys_kept", "memory keys read, %")):
        spec = _drops(candidates, key, what)
        if spec["series"]:
            document.chart(f"Candidates: {what.split(',')[0]} against drop, with their 95% intervals.", spec)
    losses = [[row["step"], row["loss"]] for row in data.get("loss") or ()]
    if losses:
        document.chart(
            "Loss of the shortcut while it was fitted.",
            {"type": "lines", "x": {"label": "step"}, "y": {"label": "loss", "zero": True},
             "series": [{"name": "loss", "colour": 2, "points": losses}]},
        )  # fmt: skip
    document.raw("</div>")
    order = sorted(candidates, key=lambda row: (row.get("drop") is None, row.get("drop") or 0.0))
    document.table(
        "Candidates; drop: 1 - J&F against the stock model's own masks, in points; a dash where only predicted",
        [("settings", ""), ("windows computed", ".0%"), ("memory keys read", ".0%"), ("predicted cost", ".3f"),
         ("drop", ".2f"), ("low", ".2f"), ("high", ".2f"), ("worst clip", ".2f"), ("run", ""), ("chosen", "")],
        [
            [
                _plain(row["settings"]), row.get("windows_kept"), row.get("keys_kept"), row.get("predicted_cost"),
                _points(row.get("drop")), *_ends(row.get("interval")), _points(row.get("worst_drop")),
                "yes" if row["run"] else "no", "yes" if row["chosen"] else "no",
            ]
            for row in order
        ],
    )  # fmt: skip
    clips = sorted(data["clips"], key=lambda row: (row.get("drop") is None, -(row.get("drop") or 0.0)))
    document.table(
        "Clips, worst first",
        [("clip", ""), ("role", ""), ("drop, points", ".2f")],
        [[row["name"], row["role"], _points(row.get("drop"))] for row in clips],
    )


def _drops(candidates: list[dict[str, Any]], key: str, what: str) -> dict[str, Any]:
    """Candidates that were run, the chosen one as a series of its own."""
    series = []
    for name, chosen, colour in (("tried", False, 0), ("chosen", True, 1)):
        points = [
            [100 * row[key], _points(row["drop"]), _plain(row["settings"]), *_ends(row.get("interval"))]
            for row in candidates
            if row["chosen"] is chosen and row.get(key) is not None and row.get("drop") is not None
        ]
        if points:
            series.append({"name": name, "colour": colour, "hollow": not chosen, "quiet": True, "points": points})
    y = {"label": "drop, points", "zero": True}
    return {"type": "points", "x": {"label": what}, "y": y, "series": series}


def _points(value: float | None) -> float | None:
    return None if value is None else 100 * value


def _ends(interval: list[float] | None) -> list[float | None]:
    return [100 * value for value in interval] if interval and len(interval) == 2 else [None, None]


def _plain(value: Any) -> str:
    """Settings as a person reads them: `score_gate 3, keep 0.05`."""
    if isinstance(value, dict):
        return ", ".join(f"{name} {_plain(inner)}" for name, inner in value.items())
    if isinstance(value, float):
        return f"{value:.4g}"
    return value if isinstance(value, str) else json.dumps(value)


def trace_part(document: Document, data: dict[str, Any], origin: str, pictures: list[str | None]) -> None:
    """A player, and windows, keys and time of every frame. origin: a sentence on where it is from."""
    frames, grid = data["frames"], data.get("grid")
    parts = ("sequence", "size", "fps", "grid", "cover", "tokens", "objects", "frames")
    key = document.player({**{key: data.get(key) for key in parts}, "images": pictures})
    words = f"{data['sequence']}, {len(frames)} frames of {data['size'][1]} x {data['size'][0]}. {origin}"
    document.text(words if pictures else f"{words} No frames were given: masks and windows only.", "note")
    document.raw('<div class="charts">')
    numbers = [frame["index"] for frame in frames]
    if grid is not None:
        count = grid[0] * grid[1]
        kept = [100.0 if frame.get("windows") is None else 100 * len(frame["windows"]) / count for frame in frames]
        series: list[tuple[str, list[int] | None, list[float]]] = [("windows computed", numbers, kept)]
        read = [(frame["index"], 100 * frame["keys_kept"]) for frame in frames if frame.get("keys_kept") is not None]
        if read:
            series.append(("memory keys read", [number for number, _ in read], [share for _, share in read]))
        document.chart(
            "Work left on every frame. Frames computed whole are at 100%.", _lines("frame", "%", series), follow=key
        )
    times: list[tuple[str, list[int] | None, list[float]]] = []
    for arm in ARMS:
        timed = [(frame["index"], frame["ms"][arm]) for frame in frames if (frame.get("ms") or {}).get(arm) is not None]
        if timed:
            times.append((arm, [number for number, _ in timed], [ms for _, ms in timed]))
    if times:
        document.chart("Time of every frame, prompts included.", _lines("frame", "ms", times), follow=key)
    document.raw("</div>")
    document.table(
        "All frames",
        [("frame", ""), ("windows computed", "d"), ("computed whole because", ""), ("memory keys read", ".0%"),
         ("stock ms", ".1f"), ("sparse ms", ".1f")],
        [
            [
                frame["name"], None if frame.get("windows") is None else len(frame["windows"]),
                frame.get("dense_reason"), frame.get("keys_kept"), *((frame.get("ms") or {}).get(arm) for arm in ARMS),
            ]
            for frame in frames
        ],
        folded=True,
    )  # fmt: skip

"""Pictures of a calibration: windows against fidelity, keys against fidelity, the loss of the fit."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from surgery.missing import require


def draw(report: dict[str, Any], folder: Path) -> list[Path]:
    """Draw what a calibration report (`CalibrationReport.as_dict()`) holds into PNG files; return their paths."""
    require("matplotlib")
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    run = [row for row in report["candidates"] if row["run"]]
    written = []
    for key, label in (("windows_kept", "stage-3 windows computed, %"), ("keys_kept", "memory keys read, %")):
        if len({row[key] for row in run}) > 1 or run:
            figure = Figure(figsize=(6.4, 4.2), dpi=140, layout="constrained")
            FigureCanvasAgg(figure)
            _curve(figure.subplots(), run, report, key, label)
            written.append(folder / f"{key.split('_')[0]}.png")
            figure.savefig(written[-1], metadata={"Software": None})
    if report["loss"]:
        figure = Figure(figsize=(6.4, 4.2), dpi=140, layout="constrained")
        FigureCanvasAgg(figure)
        _loss(figure.subplots(), report)
        written.append(folder / "loss.png")
        figure.savefig(written[-1], metadata={"Software": None})
    return written


def _curve(axes: Any, run: list[dict[str, Any]], report: dict[str, Any], key: str, label: str) -> None:
    for row in run:
        x = 100 * row[key]
        chosen = row["chosen"]
        colour = "#c2410c" if chosen else "#1d4ed8"
        ends = row["interval"]
        reach = None if ends is None else [[100 * (row["drop"] - ends[0])], [100 * (ends[1] - row["drop"])]]
        style = {"ms": 7 if chosen else 5, "color": colour, "ecolor": colour, "zorder": 3 if chosen else 2}
        axes.errorbar(x, 100 * row["drop"], yerr=reach, fmt="o", elinewidth=1, capsize=3, **style)
        axes.plot(x, 100 * row["worst_drop"], "_", ms=9, color=colour, zorder=2)
    promise = report["promise"]
    axes.axhline(100 * promise["max_drop"], color="#555", lw=1, ls="--")
    axes.axhline(100 * promise["max_clip_drop"], color="#999", lw=1, ls=":")
    top = max([100 * promise["max_clip_drop"], *(100 * row["worst_drop"] for row in run)])
    axes.set_ylim(min([0.0, *(100 * row["interval"][0] for row in run if row["interval"])]), 1.08 * top)
    axes.set_xlim(0, 103)
    right = axes.get_xlim()[1]
    for value, text in ((promise["max_drop"], "promised mean"), (promise["max_clip_drop"], "promised worst clip")):
        axes.annotate(text, (right, 100 * value), xytext=(-4, 3), textcoords="offset points", ha="right", fontsize=8)
    axes.set_xlabel(label)
    axes.set_ylabel("drop: 100 - J&F against the dense masks")
    dots = "mean and 95 % interval over held-out clips" if run[0]["interval"] else "one held-out clip, no interval"
    axes.set_title(f"Dots: {dots}; dashes: worst clip; orange: chosen", fontsize=8)
    axes.grid(alpha=0.25)


def _loss(axes: Any, report: dict[str, Any]) -> None:
    steps, losses = [row["step"] for row in report["loss"]], [row["loss"] for row in report["loss"]]
    axes.plot(steps, losses, color="#1d4ed8", lw=0.8, alpha=0.45, label="each step")
    window = max(1, len(losses) // 10)
    means = [
        sum(losses[max(0, at - window + 1) : at + 1]) / (at + 1 - max(0, at - window + 1)) for at in range(len(losses))
    ]
    axes.plot(steps, means, color="#c2410c", lw=1.6, label=f"mean of {window}")
    axes.set_yscale("log")
    axes.set_xlabel("step after the closed form")
    axes.set_ylabel("loss: error relative to the feature's variance")
    axes.legend(frameon=False, fontsize=8)
    axes.grid(alpha=0.25)

"""What recipes cost in quality, object by object: J&F against exact masks, the embedded model, adapters that ship.

    python -m benchmarks.held_out --workers 2                                  # held-out-demo.json
    python -m benchmarks.held_out --real CLIPS --recipes faithful balanced fast turbo     # held-out-real-demo.json
    python -m benchmarks.held_out --real CLIPS --fit blackswan rollerblade                # held-out-fitted-demo.json
    python -m benchmarks.held_out --model sam3 --recipes balanced          # held-out-sam3.json, the SAM 3 miniature
    python -m benchmarks.held_out --plot benchmarks/images/held-out.svg    # of the first two files

Synthetic clips are those of seeds that chose nothing: no weights, thresholds or recipes. Of real clips (one folder each
with `frames/` and `masks/`) only numbers are written. Mask prompts; the prompted frame is not scored. `--fit`: each
recipe as it is and calibrated on these clips (their first frames, without labels), measured on the others.
"""

from __future__ import annotations

import argparse
import json
import statistics
from collections.abc import Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks.demo_adapters import clip_of
from benchmarks.head import head
from benchmarks.miniatures import MINIATURES, ROOT, Miniature
from surgery import calibrate, load_adapter, sparsify, status
from surgery.calibration import CalibrationClip, gather_clips
from surgery.digests import weights_digest
from surgery.evaluation.bootstrap import mean_interval
from surgery.evaluation.metrics import boundary_f, region_j
from surgery.tracking import track
from surgery.video import labels_from_logits

FIRST = {"easy": 800_000, "medium": 810_000, "hard": 820_000}
"""First of the held-out seeds by difficulty: drawn for these figures and used for nothing else."""
RESULTS = ROOT / "benchmarks" / "results"
FILES = {"synthetic": "held-out-{}.json", "real": "held-out-real-{}.json", "fitted": "held-out-fitted-{}.json"}
LARGE = 0.2
"""Change of an object's J&F that is counted by itself."""
_models: dict[str, Any] = {}


def start(recipes: Sequence[str], name: str, host: str) -> None:
    """Load the stock model and one under each recipe."""
    torch.set_num_threads(1)
    miniature = MINIATURES[name]
    _models["dense"] = miniature.load(host)
    for recipe in recipes:
        _models[recipe] = miniature.load(host)
        load_adapter(_models[recipe], miniature.adapter(recipe))


def fit(
    clips: Sequence[CalibrationClip], recipes: Sequence[str], miniature: Miniature, host: str, frames: int
) -> dict[str, Any]:
    """Load the stock model, each recipe as it is and each calibrated on `clips`; what calibration says, by recipe."""
    _models["dense"], reports = miniature.load(host), {}
    for recipe in recipes:
        _models[recipe] = sparsify(miniature.load(host), recipe)
        mine = _models[f"{recipe}, calibrated"] = miniature.load(host)
        done = calibrate(mine, clips, recipe, if_missed="nearest", max_frames=frames)
        chosen = status(mine).recipe
        reports[recipe] = {"kept": done.kept, "recipe": chosen.to_dict() if chosen is not None else None}
    return reports


def synthetic(number: int, difficulty: Any, frames: int) -> dict[str, Any]:
    """Scores of one synthetic clip."""
    return {"difficulty": difficulty, **scored(clip_of(number, frames, difficulty))}


def scored(clip: CalibrationClip) -> dict[str, Any]:
    """Scores of one clip by the models of this process."""
    return score(_models, clip)


def score(models: Mapping[str, Any], clip: CalibrationClip) -> dict[str, Any]:
    """Mean J and F of every object, by arm, and what was kept."""
    assert clip.truth is not None
    row: dict[str, Any] = {"clip": clip.name}
    since = {prompt.obj_id: prompt.frame for prompt in reversed(clip.prompts)}
    for arm, model in models.items():
        found: dict[int, list[tuple[float, float]]] = {obj_id: [] for obj_id in since}
        for result in track(model, clip.video, clip.prompts):
            labels, truth = labels_from_logits(result.logits), clip.truth[result.index]
            for obj_id, first in since.items():
                if result.index > first:
                    mine, theirs = np.asarray(labels == obj_id), np.asarray(truth == obj_id)
                    found[obj_id].append((region_j(mine, theirs), boundary_f(mine, theirs)))
        now = status(model)
        objects = {obj_id: np.mean(values, axis=0) for obj_id, values in found.items() if values}
        row[arm] = {
            "j": {str(obj_id): float(pair[0]) for obj_id, pair in objects.items()},
            "f": {str(obj_id): float(pair[1]) for obj_id, pair in objects.items()},
            "windows_kept": now.windows_kept,
            "keys_kept": now.keys_kept,
            "dense_frames": now.dense_frames,
            "widened_frames": now.widened_frames,
            "restored_frames": now.restored_frames,
        }
    return row


def by_object(row: dict[str, Any], arm: str) -> list[float]:
    """J&F of every object of a clip."""
    return [(row[arm]["j"][each] + row[arm]["f"][each]) / 2 for each in row[arm]["j"]]


def plot(path: Path) -> None:
    """Draw every object of both files: what it loses or gains over what the dense model reaches, a panel a recipe."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    files = {name: RESULTS / FILES[name].format("demo") for name in ("synthetic", "real")}
    rows = {name: json.loads(file.read_text(encoding="utf-8"))["rows"] for name, file in files.items()}
    marks: dict[str, dict[str, Any]] = {
        "synthetic": {"s": 10, "alpha": 0.4, "color": "tab:blue"},
        "real": {"marker": "D", "color": "tab:red"},
    }
    with plt.rc_context({"svg.hashsalt": "surgery", "font.size": 8}):
        figure, axes = plt.subplots(1, 2, figsize=(7.2, 3.2), sharey=True, layout="constrained")
        for axis, recipe in zip(axes, ("balanced", "turbo"), strict=True):
            for name, clips in rows.items():
                dense = [value for row in clips for value in by_object(row, "dense")]
                mine = [value for row in clips for value in by_object(row, recipe)]
                change = [value - stock for value, stock in zip(mine, dense, strict=True)]
                label = f"{name}: {len(dense)} objects of {len(clips)} clips"
                axis.scatter(dense, change, label=label, **marks[name])
            axis.axhline(0, color="0.6", linewidth=0.8)
            axis.set_title(recipe)
            axis.set_xlabel("J&F of the dense model")
            axis.legend(loc="upper right")
        axes[0].set_ylabel("change of J&F under the recipe")
        figure.savefig(path, metadata={"Date": None} if path.suffix == ".svg" else None, dpi=150)
        plt.close(figure)


def summary(rows: Sequence[dict[str, Any]], recipe: str) -> dict[str, Any]:
    """Drop of J&F over clips with its interval, what was kept, and how many objects lose or gain much."""
    pairs = [(by_object(row, "dense"), by_object(row, recipe)) for row in rows]
    drops = [statistics.fmean(dense) - statistics.fmean(sparse) for dense, sparse in pairs]
    changes = [mine - stock for dense, sparse in pairs for stock, mine in zip(dense, sparse, strict=True)]
    kept = {
        name: statistics.fmean(values)
        for name in ("windows_kept", "keys_kept")
        if (values := [row[recipe][name] for row in rows if row[recipe][name] is not None])
    }
    return {
        "clips": len(rows),
        "objects": len(changes),
        "dense": statistics.fmean(statistics.fmean(dense) for dense, _ in pairs),
        "sparse": statistics.fmean(statistics.fmean(sparse) for _, sparse in pairs),
        "drop": statistics.fmean(drops),
        "interval": mean_interval(drops),
        **kept,
        "lose_much": sum(change < -LARGE for change in changes),
        "gain_much": sum(change > LARGE for change in changes),
        "median_change": statistics.median(changes),
    }


def _in_processes(given: argparse.Namespace, host: str, clips: Sequence[CalibrationClip]) -> list[dict[str, Any]]:
    """Scores of real clips, or else of synthetic ones, under the adapters that ship."""
    rows: list[dict[str, Any]] = []
    with ProcessPoolExecutor(
        given.workers, get_context("spawn"), initializer=start, initargs=(given.recipes, given.model, host)
    ) as pool:
        if clips:
            jobs = [pool.submit(scored, clip) for clip in clips if clip.truth is not None]
        else:
            jobs = [
                pool.submit(synthetic, FIRST[difficulty] + number, difficulty, given.frames)
                for number in range(given.clips)
                for difficulty in given.difficulties
            ]
        for job in jobs:
            rows.append(job.result())
            if len(rows) % 10 == 0:
                print(len(rows), {each: round(summary(rows, each)["drop"], 4) for each in given.recipes}, flush=True)
    return rows


def main(arguments: list[str] | None = None) -> None:
    """Measure and write."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.held_out", description=__doc__.splitlines()[0])
    parser.add_argument("--recipes", nargs="+", default=["balanced", "turbo"])
    parser.add_argument("--clips", type=int, default=100, help="synthetic clips of each difficulty")
    parser.add_argument("--frames", type=int, default=24, help="of a synthetic clip")
    parser.add_argument("--difficulties", nargs="+", default=list(FIRST), choices=list(FIRST))
    parser.add_argument("--real", type=Path, help="real clips instead")
    parser.add_argument("--fit", nargs="+", help="names of real clips to calibrate on; the others are measured")
    parser.add_argument("--model", default="demo", choices=list(MINIATURES))
    parser.add_argument("--host", help="default: the first that builds the model")
    parser.add_argument("--workers", type=int, default=1)
    parser.add_argument("--out", type=Path, help="default: benchmarks/results/held-out[-real]-MODEL.json")
    parser.add_argument("--plot", type=Path, help="draw what was measured, and measure nothing")
    given = parser.parse_args(arguments)
    if given.plot is not None:
        plot(given.plot)
        return
    torch.set_num_threads(1)
    miniature = MINIATURES[given.model]
    host = miniature.host(given.host)
    clips = gather_clips([given.real], None)[0] if given.real is not None else []
    kind, arms, reports = "synthetic" if given.real is None else "real", list(given.recipes), None
    if given.fit:
        chosen = [clip for clip in clips if clip.name in given.fit]
        kind, reports = "fitted", fit(chosen, given.recipes, miniature, host, given.frames)
        arms = [arm for arm in _models if arm != "dense"]
        rows = [scored(clip) for clip in clips if clip.name not in given.fit and clip.truth is not None]
    else:
        rows = _in_processes(given, host, clips)
    kinds = {"all": rows} | {
        each: [row for row in rows if row["difficulty"] == each] for each in given.difficulties if given.real is None
    }
    result = {
        **head("held-out clips", "held_out", arguments),
        "weights": weights_digest(miniature.load(host).state_dict()),
        "calibrated": reports,
        "summary": {each: {name: summary(some, each) for name, some in kinds.items()} for each in arms},
        "rows": rows,
    }
    print(json.dumps(result["summary"], indent=1))
    out = given.out or RESULTS / FILES[kind].format(miniature.name)
    out.write_text(json.dumps(result) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()

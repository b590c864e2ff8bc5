"""What each part of the method is worth, on the demo model: `python -m benchmarks.parts --clips 50`.

Every row runs the same held-out synthetic clips, prompted by masks on the first frame; J&F against ground truth. Routed
rows share one budget of windows and pruned rows one share of keys, so that rows differ in what is kept, not how much.
"""

from __future__ import annotations

import argparse
import copy
import json
import platform
import random
import statistics
import time
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any
from unittest.mock import patch

import torch
from torch import Tensor

import surgery.demo as demo
import surgery.operations.memory_retrieval.bound as retrieval
from surgery import Recipe, __version__, sparsify, status
from surgery.calibration import fit_shortcut
from surgery.demo.clips import HELD_OUT, make_clip
from surgery.demo.show import Score, prompt_for
from surgery.engine import require_surgery
from surgery.evaluation.bootstrap import mean_interval
from surgery.operations.window_routing.bound import require_router
from surgery.operations.window_routing.policy import Policy, RoutedFrame, by_evidence
from surgery.operations.window_routing.shortcut import Shortcut
from surgery.tracking import track
from surgery.video import open_video

BUDGET, KEEP, KEEP_CONDITIONING = 0.38, 0.1, 0.4
FIRST = 200_000  # calibration clips, as in demo_adapters.py


def routed(temporal: bool, rolling: int, **more: Any) -> list[str]:
    """Overrides of `balanced` for window routing alone, without a budget."""
    values = {
        "routing.skipped.temporal": str(temporal).lower(), "routing.rolling": rolling, "routing.budget": 1.0,
        "routing.fill": "false", "retrieval.keep": 1.0, "retrieval.keep_conditioning": 1.0, **more,
    }  # fmt: skip
    return [f"{key}={value}" for key, value in values.items()]


def budgeted(**more: Any) -> list[str]:
    """Overrides of `balanced` for window routing alone, with the budget."""
    values = {
        "routing.budget": BUDGET, "routing.fill": "true", "retrieval.keep": 1.0, "retrieval.keep_conditioning": 1.0,
        **more,
    }  # fmt: skip
    return [f"{key}={value}" for key, value in values.items()]


def pruned(**more: Any) -> list[str]:
    """Overrides of `memory-only`."""
    values = {
        "retrieval.keep": KEEP, "retrieval.keep_conditioning": KEEP_CONDITIONING, "retrieval.saliency": "object",
        "retrieval.warm_up": "false", **more,
    }  # fmt: skip
    return [f"{key}={value}" for key, value in values.items()]


ROWS: dict[str, tuple[str, list[str], str]] = {
    "published thresholds, identity shortcut": ("balanced", routed(False, 0, **{
        "routing.object.candidates": "all", "routing.object.score_gate": 5.0, "routing.refresh.start": "true",
        "routing.refresh.lost": "never", "routing.refresh.scene_cut": "null"}), "identity"),
    "mask windows, identity": ("balanced", routed(False, 0), "identity"),
    "mask windows, fitted": ("balanced", routed(False, 0), "level"),
    "mask windows, temporal, identity": ("balanced", routed(True, 0), "identity"),
    "mask windows, temporal, fitted": ("balanced", routed(True, 0), "temporal"),
    "mask windows, temporal, fitted, rolling 1": ("balanced", routed(True, 1), "temporal"),
    "mask windows, temporal, fitted, rolling 2": ("balanced", routed(True, 2), "temporal"),
    "budget, temporal, identity": ("balanced", budgeted(), "identity"),
    "budget, temporal, fitted": ("balanced", budgeted(), "temporal"),
    "random windows at the budget, temporal, fitted": ("balanced", budgeted(), "random windows"),
    "keys only: published (5 % after warm-up)": ("memory-only", pruned(**{
        "retrieval.keep": 0.05, "retrieval.keep_conditioning": 1.0, "retrieval.saliency": "mean",
        "retrieval.warm_up": "true"}), "identity"),
    "keys only: same share, published saliency": ("memory-only", pruned(**{"retrieval.saliency": "mean"}), "identity"),
    "keys only: what the object asks for": ("memory-only", pruned(), "identity"),
    "keys only: random keys": ("memory-only", pruned(), "random keys"),
    "both": ("balanced", budgeted(**{
        "retrieval.keep": KEEP, "retrieval.keep_conditioning": KEEP_CONDITIONING}), "temporal"),
}  # fmt: skip


def score(model: Any, clips: list[Any]) -> tuple[Score, list[float], float]:
    """Track every clip; J&F over all, per clip, and the mean share of tokens that were queries."""
    total, per_clip, queries = Score(), [], []
    for clip in clips:
        prompts = [prompt_for("mask", clip.labels[0] == label, label) for label in range(1, clip.visible.shape[1] + 1)]
        found = list(track(model, open_video(clip.frames), prompts))
        before, state = len(total.j), status(model)
        total.add(clip, found, state)
        per_clip.append((statistics.fmean(total.j[before:]) + statistics.fmean(total.f[before:])) / 2)
        if state.sparse:
            total.windows += [1.0] * (state.windows_kept is None)
            total.keys += [1.0] * (state.keys_kept is None)
            queries.append(1.0 if state.queries_kept is None else state.queries_kept)
    return total, per_clip, statistics.fmean(queries or [1.0])


def fitted(model: Any) -> dict[str, torch.Tensor]:
    """Weights of the shortcut fitted on the eight calibration clips of the shipped adapters."""
    from benchmarks.demo_adapters import clip_of

    clips = [clip_of(FIRST + number) for number in range(8)]
    for clip in clips:
        clip.video.num_frames = 24
    fit_shortcut(model, clips)
    return copy.deepcopy(shortcut_of(model).state_dict())


def shortcut_of(model: Any) -> Shortcut:
    """What stands in for the span of a model under surgery."""
    return require_router(require_surgery(model)).shortcut


@contextmanager
def at_random(kind: str, model: Any) -> Iterator[None]:
    """Inside, the model's windows or keys are as many as its recipe would choose, but drawn at random."""
    if kind == "random windows":
        require_router(require_surgery(model)).policy = random_windows(random.Random(0))
        yield
        return
    chosen, generator = retrieval.top_tokens, torch.Generator().manual_seed(0)

    def drawn(saliency: Tensor, keep: float) -> Tensor:
        return torch.randperm(len(saliency), generator=generator)[: len(chosen(saliency, keep))].sort().values

    with patch.object(retrieval, "top_tokens", drawn):
        yield


def random_windows(draw: random.Random) -> Policy:
    """Drawn at random, as many as the recipe's rules choose."""

    def policy(frame: RoutedFrame) -> tuple[list[int] | None, str | None]:
        windows, reason = by_evidence(frame)
        return (None if windows is None else sorted(draw.sample(range(frame.grid.count), len(windows)))), reason

    return policy


def main() -> None:
    """Run the rows and write the JSON."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--clips", type=int, default=50)
    parser.add_argument("--difficulty", default="medium")
    parser.add_argument("--rows", nargs="*", help="only rows whose name contains one of these")
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results" / "parts-demo.json")
    options = parser.parse_args()
    torch.set_num_threads(1)
    clips = [make_clip(HELD_OUT + number, 24, difficulty=options.difficulty) for number in range(options.clips)]
    stock = demo.load("sam2")
    base, base_clips, _ = score(stock, clips)
    dense = base.j_and_f()
    print(f"dense J&F {dense:.4f}", flush=True)
    weights: dict[str, dict[str, torch.Tensor]] = {}
    rows = []
    for name, (recipe, overrides, kind) in ROWS.items():
        if options.rows and not any(part in name for part in options.rows):
            continue
        model = sparsify(copy.deepcopy(stock), Recipe.load(recipe, overrides))
        wanted = {"random windows": "temporal", "random keys": "identity"}.get(kind, kind)
        if wanted != "identity":
            if wanted not in weights:
                weights[wanted] = fitted(model)
            shortcut_of(model).load_state_dict(weights[wanted])
        with at_random(kind, model) if kind.startswith("random") else nullcontext():
            found, per_clip, _ = score(model, clips)
        drops = [a - b for a, b in zip(base_clips, per_clip, strict=True)]
        rows.append({
            "name": name, "recipe": recipe, "overrides": overrides, "shortcut": kind, "j_and_f": found.j_and_f(),
            "drop": dense - found.j_and_f(), "interval_of_mean_clip_drop": mean_interval(drops),
            "windows_kept": statistics.fmean(found.windows), "keys_kept": statistics.fmean(found.keys),
        })  # fmt: skip
        row = rows[-1]
        print(
            f"{name:52} drop {row['drop']:+.4f} windows {row['windows_kept']:.3f} keys {row['keys_kept']:.3f}",
            flush=True,
        )
        _write(options, dense, rows)


def _write(options: argparse.Namespace, dense: float, rows: list[dict[str, Any]]) -> None:
    """Write what is measured so far; a run that is cut keeps its finished rows."""
    result = {
        "kind": "parts", "schema": 1,
        "command": f"python -m benchmarks.parts --clips {options.clips}",
        "date": time.strftime("%Y-%m-%d"), "machine": f"{platform.platform()}, {platform.machine()}",
        "versions": {"surgery": __version__, "torch": torch.__version__}, "clips": options.clips,
        "difficulty": options.difficulty, "dense_j_and_f": dense, "rows": rows,
    }  # fmt: skip
    options.out.write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()

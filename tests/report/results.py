"""Small result files of every kind, as their commands write them."""

from __future__ import annotations

from typing import Any

HOSTILE = '<img src=x onerror="window.hacked=1"></script><script>window.hacked=1</script>&amp;\''
MACHINE = {"platform": "Linux", "cpu": "Test CPU", "cores": 2, "threads": 1, "device": "cpu", "versions": {}}


def bench(name: str = "demo") -> dict[str, Any]:
    side = {"median": 20.0, "mean": 20.0, "p95": 22.0, "p99": 23.0, "first": 40.0, "frames": 3}
    part = {"name": f"encoder: {name}", "dense_ms": 10.0, "sparse_ms": 5.0, "dense_gflop": 2.0, "sparse_gflop": 1.0}
    row = {
        "model": name, "precision": "fp32", "device": "cpu", "host": "sam2", "objects": 1, "windows_share": 0.25,
        "recipe": "balanced", "whole_frame_speedup": 1.3, "interval": [1.2, 1.4], "predicted": 1.5,
        "measured_over_predicted": 0.87, "dense": side, "sparse": {**side, "median": 15.0},
        "windows": {"computed": 4.0, "of": 16, "share": 0.25, "forced": True},
        "keys": {"read": 500.0, "of": 1792, "share": 0.28}, "peak_memory_mb": 700.0, "compile_s": None,
        "modules": [part, {**part, "name": "host overhead", "dense_gb_per_s": None}],
        "latency": [{"name": "dense", "ms": [20.0, 21.0, 20.0]}, {"name": "sparse", "ms": [15.0, 15.5, 15.0]}],
    }  # fmt: skip
    long = {**row, "modules": [], "objects": 4, "predicted": None, "measured_over_predicted": None}
    return {
        "kind": "bench", "schema": 1, "command": f"surgery bench {name}", "date": "2026-11-21", "machine": MACHINE,
        "not_measured": [{"device": "cuda", "reason": "not measured: none on this machine"}],
        "rows": [row, long],
    }  # fmt: skip


def evaluation(name: str = "clip") -> dict[str, Any]:
    def side(score: float, ms: float) -> dict[str, Any]:
        return {"j_and_f": score, "j": score, "f": score, "ms": ms}

    def clip(title: str, change: float | None) -> dict[str, Any]:
        return {
            "sequence": title, "frames": 9, "dense": side(0.8, 30.0),
            "sparse": {**side(0.8 + (change or 0), 20.0), "dense_frames": {"scene cut": 2}},
            "difference": {"j_and_f": change}, "windows_kept": 0.6, "keys_kept": 0.4,
        }  # fmt: skip

    spread = {"mean": -0.02, "low": -0.04, "high": 0.0}
    return {
        "kind": "eval", "schema": 1, "command": "surgery eval", "date": "2026-11-21", "machine": MACHINE,
        "settings": {"model": "sam2.1-hiera-base-plus", "dataset": "davis2017", "recipe": {"name": "balanced"}},
        "sequences": [clip("good", 0.01), clip(name, -0.05), clip("unscored", None), clip("fair", -0.01)],
        "summary": {
            "sequences": 4, "dense": side(0.8, 30.0), "sparse": side(0.78, 20.0), "difference": {"j_and_f": spread},
            "speedup": {"mean": 1.5, "low": 1.4, "high": 1.6},
        },
    }  # fmt: skip


def calibration(name: str = "clip") -> dict[str, Any]:
    def candidate(share: float, drop: float | None, chosen: bool = False) -> dict[str, Any]:
        run = drop is not None
        return {
            "settings": {"score_gate": 5 * share, "note": name}, "windows_kept": share, "keys_kept": share / 2,
            "predicted_cost": share, "drop": drop, "worst_drop": drop, "interval": [0.0, 2 * drop] if run else None,
            "run": run, "chosen": chosen,
        }  # fmt: skip

    return {
        "kind": "calibration", "schema": 1, "date": "2026-11-21", "machine": MACHINE,
        "candidates": [candidate(0.3, None), candidate(0.6, 0.004), candidate(0.4, 0.01, chosen=True)],
        "clips": [{"name": "easy", "role": "fit", "drop": 0.001}, {"name": name, "role": "held-out", "drop": 0.05}],
        "promise": {"max_drop": 0.01}, "kept": True,
    }  # fmt: skip


def trace(name: str = "clip", frames: int = 4) -> dict[str, Any]:
    """Size 6 x 8, a grid of 2 x 2; the mask is row 1, and one pixel further on every frame."""
    made = []
    for index in range(frames):
        runs = [8 + index, 4, 36 - index]
        made.append(
            {
                "index": index, "name": f"{index:05d}", "windows": [0, 1, 2, 3] if index < 2 else [0, 3],
                "dense_reason": "first frame" if index < 2 else None, "keys_kept": 0.5 if index > 1 else None,
                "masks": {name: {"dense": runs, "sparse": runs}}, "ms": {"dense": 9.0 + index, "sparse": 6.0},
            }
        )  # fmt: skip
    return {
        "kind": "trace", "schema": 1, "sequence": name, "size": [6, 8], "fps": None, "grid": [2, 2], "cover": 1.0,
        "objects": [name], "frames": made,
    }  # fmt: skip

"""What `surgery track` says about a run: summary.json."""

from __future__ import annotations

import hashlib
import statistics
from typing import Any

import numpy as np

from surgery.video.masks import Labels
from surgery.video.prompts import BoxPrompt, MaskPrompt, Prompt


def head_of(model: Any, spec: str, path: str, video: Any, prompts: list[Prompt]) -> dict[str, Any]:
    """What is known of a run before its first frame."""
    import torch

    from surgery import __version__, status
    from surgery.hosts import view_of

    state = status(model)
    return {
        "surgery": __version__,
        "model": spec,
        "host": view_of(model).name,
        "device": str(next(model.parameters()).device),
        "torch": torch.__version__,
        "video": path,
        "size": list(video.size),
        "recipe": state.recipe.to_dict() if state.recipe is not None else None,
        "adapter": state.adapter,
        "prompts": [_prompt(prompt, video.name_of(prompt.frame)) for prompt in prompts],
    }


def row_of(result: Any, name: str, labels: Labels) -> dict[str, Any]:
    """One frame: how long the model took, what it computed, how many pixels each object has."""
    record = result.record
    return {
        "frame": result.index,
        "name": name,
        "ms": round(1000 * result.seconds, 3),
        "windows": None if record is None else len(record.windows),
        "dense": None if record is None else record.dense,
        "area": {str(obj_id): int(np.count_nonzero(labels == obj_id)) for obj_id in result.logits},
    }


def document(
    model: Any, head: dict[str, Any], complete: bool, frames: int, runs: list[dict[str, Any]],
    rows: list[dict[str, Any]],
) -> dict[str, Any]:  # fmt: skip
    """The summary.

    Args:
        complete: whether the end of the video, or of what was asked for, was reached. frames: masks in the folder.
        runs: one, and one more for every resumption. rows: of all frames that a run has told of; one that was killed
            could not.

    Returns:
        Plain data. `seconds` and `frames_per_second` are end to end, over all runs; `ms_per_frame` is the model alone;
        `windows_kept`, `keys_kept` and `dense_frames` are of the last run.
    """
    from surgery import status

    state = status(model)
    times = [row["ms"] for row in rows]
    seconds, tracked = sum(run["seconds"] for run in runs), sum(run["frames"] for run in runs)
    return {
        **head,
        "complete": complete,
        "frames": frames,
        "seconds": seconds,
        "frames_per_second": tracked / seconds,
        "ms_per_frame": {"median": statistics.median(times), "mean": statistics.fmean(times), "max": max(times)}
        if times
        else None,
        "windows_kept": state.windows_kept,
        "keys_kept": state.keys_kept,
        "dense_frames": state.dense_frames,
        "runs": runs,
        "per_frame": rows,
    }


def _prompt(prompt: Prompt, frame: str) -> dict[str, Any]:
    target = {"frame": frame, "object": prompt.obj_id}
    if isinstance(prompt, MaskPrompt):
        return {**target, "mask": f"sha256:{hashlib.sha256(np.packbits(prompt.mask).tobytes()).hexdigest()}"}
    if isinstance(prompt, BoxPrompt):
        return {**target, "box": [prompt.x0, prompt.y0, prompt.x1, prompt.y1]}
    return {**target, "points": [[*point, label] for point, label in zip(prompt.points, prompt.labels, strict=True)]}

"""What a player needs to show a sequence: masks as run lengths, routed windows, times. No pixels of the video."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from surgery.evaluation.truth import Mask
from surgery.session import FrameRecord


def run_lengths(mask: Mask) -> list[int]:
    """Run lengths of a bool [H, W] mask, row by row, background first (so the first may be 0)."""
    flat = mask.reshape(-1)
    changes = np.flatnonzero(flat[1:] != flat[:-1]) + 1
    borders = np.concatenate([[0], changes, [flat.size]])
    runs = np.diff(borders).tolist()
    return [0, *runs] if flat.size and flat[0] else runs


def mask_of(runs: list[int], size: tuple[int, int]) -> Mask:
    """The bool [H, W] mask of `run_lengths`."""
    values = np.arange(len(runs)) % 2 == 1
    return np.repeat(values, runs).reshape(size)


class Trace:
    """Collects one sequence frame by frame. Format: docs/evaluation.md.

    Args:
        sequence: name. size: (height, width). fps: or None. objects: names.
    """

    def __init__(self, sequence: str, size: tuple[int, int], fps: float | None, objects: list[str]) -> None:
        self.head = {"kind": "trace", "schema": 1, "sequence": sequence, "size": list(size), "fps": fps}
        self.objects = objects
        self.grid: list[int] | None = None
        self.cover = 1.0
        self.tokens: list[int] | None = None
        self.frames: list[dict[str, Any]] = []

    def add(
        self, index: int, name: str, masks: dict[str, dict[str, Mask]], ms: dict[str, float], prompted: bool,
        record: FrameRecord | None, kept: Mapping[str, float | None],
    ) -> None:  # fmt: skip
        """Add a frame.

        Args:
            masks: bool [H, W] by arm and object name. ms: by arm. prompted: whether an object was prompted here.
            record: how the sparse arm encoded the frame, if it routed. kept: `keys_kept` and `queries_kept` of this
                frame; absent or None where it read no memory, or nothing was pruned or routed there.
        """
        if record is not None:
            self.grid, self.cover = list(record.grid), record.cover
        objects: dict[str, dict[str, list[int]]] = {}
        for arm, found in masks.items():
            for thing, mask in found.items():
                objects.setdefault(thing, {})[arm] = run_lengths(mask)
        reason = record.dense if record is not None else ("prompted frame" if prompted else None)
        self.frames.append(
            {
                "index": index,
                "name": name,
                "windows": list(record.windows) if record is not None else None,
                "dense_reason": reason,
                "keys_kept": kept.get("keys_kept"),
                "queries_kept": kept.get("queries_kept"),
                "tokens_kept": None,
                "masks": objects,
                "ms": {arm: round(value, 3) for arm, value in ms.items()},
            }
        )

    def keep(self, index: int, ids: list[int], side: int) -> None:
        """Note which tokens of frame `index` memory attention will go on reading, once that is known.

        Args:
            ids: token indices, row by row on the `side` x `side` grid of memory.
        """
        self.tokens = [side, side]
        for frame in self.frames:
            if frame["index"] == index:
                frame["tokens_kept"] = ids

    def result(self) -> dict[str, Any]:
        """The finished trace as plain data."""
        return {
            **self.head,
            "grid": self.grid,
            "cover": self.cover,
            "tokens": self.tokens,
            "objects": self.objects,
            "frames": self.frames,
        }

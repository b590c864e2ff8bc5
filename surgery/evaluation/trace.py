"""What a player needs to show a sequence: masks as run lengths, routed windows, times. No pixels of the video."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from surgery.engine import current_surgery
from surgery.operations.memory_retrieval.bank import ObjectMemory
from surgery.tracking import TrackedFrame
from surgery.video.masks import Mask


def run_lengths(mask: Mask) -> list[int]:
    """Run lengths of a bool [H, W] mask, row by row, background first (so the first may be 0)."""
    flat = mask.reshape(-1)
    changes = np.flatnonzero(flat[1:] != flat[:-1]) + 1
    borders = np.concatenate([[0], changes, [flat.size]])
    runs = np.diff(borders).tolist()
    return [0, *runs] if flat.size and flat[0] else runs


class Trace:
    """Collects one sequence frame by frame. Format: docs/evaluation.md.

    Args:
        sequence: name. size: (height, width). fps: or None. objects: names. sparse: the model under surgery, if one
            tracks; what it reads is taken from it.
    """

    def __init__(
        self, sequence: str, size: tuple[int, int], fps: float | None, objects: list[str], sparse: Any = None
    ) -> None:
        self.head = {"kind": "trace", "schema": 1, "sequence": sequence, "size": list(size), "fps": fps}
        self.objects, self.sparse = objects, sparse
        self.grid: list[int] | None = None
        self.cover = 1.0
        self.tokens: list[int] | None = None
        self.frames: list[dict[str, Any]] = []
        self._totals = _totals(sparse)

    def add(
        self,
        index: int,
        name: str,
        masks: Mapping[str, Mapping[str, Mask]],
        results: Mapping[str, TrackedFrame],
        prompted: bool,
    ) -> None:
        """Add a frame, as soon as it is tracked: the sparse model is asked what it read since the last one.

        Args:
            masks: bool [H, W] by arm and object name. results: by arm. prompted: whether an object was prompted here.
        """
        record = results["sparse"].record if "sparse" in results else None
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
                **self._kept(),
                "tokens_kept": None,
                "masks": objects,
                "ms": {arm: round(1000 * result.seconds, 3) for arm, result in results.items()},
            }
        )
        # Which tokens of a frame are kept is decided when it is first read, one frame later.
        tokens = _tokens_kept(self.sparse, index - 1)
        if tokens is not None and len(self.frames) > 1:
            self.frames[-2]["tokens_kept"], side = tokens
            self.tokens = [side, side]

    def _kept(self) -> dict[str, float | None]:
        """`keys_kept` and `queries_kept` since the last frame; None where no memory was read."""
        before, self._totals = self._totals, _totals(self.sparse)
        kept: dict[str, float | None] = {}
        for name, (total, calls) in self._totals[1].items():
            total, calls = total - before[1][name][0], calls - before[1][name][1]
            # Another session's totals start anew.
            kept[name] = total / calls if self._totals[0] == before[0] and calls else None
        return kept

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


def _totals(model: Any) -> tuple[int, dict[str, tuple[float, int]]]:
    """Which session the model ran last, and its totals: fractions kept, and calls of memory attention they are over."""
    surgery = current_surgery(model) if model is not None else None
    stats = surgery.stats if surgery is not None else None
    kept = stats.kept if stats is not None else {}
    return id(stats), {f"{name}_kept": kept.get(name, (0.0, 0)) for name in ("keys", "queries")}


def _tokens_kept(model: Any, frame: int) -> tuple[list[int], int] | None:
    """Tokens of `frame` that the first layer of memory attention keeps, over all objects, and the side of their grid.

    None where the frame was not measured.
    """
    surgery = current_surgery(model) if model is not None else None
    if surgery is None:
        return None
    video = next((video for video in surgery.states if video.stats is surgery.stats), None)
    known = video.objects.items() if video is not None else ()
    memories = [states.get(ObjectMemory) for (_, reverse), states in known if not reverse]
    found = [each.frames[frame][0] for each in memories if isinstance(each, ObjectMemory) and frame in each.frames]
    if not found:
        return None
    return sorted({token for ids in found for token in ids.tolist()}), surgery.host.frame_side()

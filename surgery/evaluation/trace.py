"""What a player needs to show a sequence: masks as run lengths, routed windows, times. No pixels of the video."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from surgery.core.session import SessionStats
from surgery.core.surgery import Surgery
from surgery.engine import current_surgery
from surgery.operations.memory_retrieval.bank import ObjectMemory
from surgery.tracking import TrackedFrame
from surgery.video.masks import Mask

Masks = Mapping[str, Mapping[str, Mask]]
"""Of one frame: bool [H, W] by arm and object name."""


def run_lengths(mask: Mask) -> list[int]:
    """Run lengths of a bool [H, W] mask, row by row, background first (so the first may be 0)."""
    flat = mask.reshape(-1)
    changes = np.flatnonzero(flat[1:] != flat[:-1]) + 1
    borders = np.concatenate([[0], changes, [flat.size]])
    runs = np.diff(borders).tolist()
    return [0, *runs] if flat.size and flat[0] else runs


class Trace:
    """Collects one sequence frame by frame in `data`. Format: docs/evaluation.md.

    Args:
        sequence: name. size: (height, width). fps: or None. objects: names. sparse: the model under surgery, if one
            tracks; what it reads is taken from it.
    """

    def __init__(
        self, sequence: str, size: tuple[int, int], fps: float | None, objects: list[str], sparse: Any = None
    ) -> None:
        self.surgery = current_surgery(sparse) if sparse is not None else None
        self.frames: list[dict[str, Any]] = []
        head = {"kind": "trace", "schema": 1, "sequence": sequence, "size": list(size), "fps": fps}
        shown = {"grid": None, "cover": 1.0, "tokens": None, "objects": objects, "frames": self.frames}
        self.data: dict[str, Any] = {**head, **shown}
        self._before: tuple[SessionStats | None, SessionStats] = None, SessionStats()
        self._kept()

    def add(self, index: int, name: str, masks: Masks, results: Mapping[str, TrackedFrame], prompted: bool) -> None:
        """Add a frame, as soon as it is tracked: the sparse model is asked what it read since the last one.

        Args:
            masks: of the frame. results: by arm. prompted: whether an object was prompted here.
        """
        record = results["sparse"].record if "sparse" in results else None
        if record is not None:
            self.data |= {"grid": list(record.grid), "cover": record.cover}
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
                "widened_reason": record.widened if record is not None else None,
                **self._kept(),
                "tokens_kept": None,
                "masks": objects,
                "ms": {arm: round(1000 * result.seconds, 3) for arm, result in results.items()},
            }
        )
        # Which tokens of a frame are kept is decided when it is first read, one frame later.
        if self.surgery is not None and len(self.frames) > 1:
            tokens = self.frames[-2]["tokens_kept"] = _tokens_kept(self.surgery, index - 1)
            if tokens is not None:
                self.data["tokens"] = [self.surgery.host.frame_side()] * 2

    def _kept(self) -> dict[str, float | str | None]:
        """`keys_kept` and `queries_kept` since the last call, None where no memory was read, and why all of it was."""
        # Another session's totals start anew.
        stats = self.surgery.stats if self.surgery is not None else None
        now = (stats or SessionStats()).copied()
        (session, before), self._before = self._before, (stats, now)
        shares = now.since(before) if session is stats else {}
        restored = next(iter(now.restored - before.restored), None) if session is stats else None
        return {**{f"{name}_kept": shares.get(name) for name in ("keys", "queries")}, "restored_reason": restored}


def _tokens_kept(surgery: Surgery, frame: int) -> list[int] | None:
    """Tokens of `frame` that the first layer of memory attention keeps, over all objects, if measured."""
    known = [video.objects.items() for video in surgery.states if video.stats is surgery.stats]
    memories = [states.get(ObjectMemory) for (_, reverse), states in (known[0] if known else ()) if not reverse]
    found = [each.frames.get(frame) for each in memories if isinstance(each, ObjectMemory)]
    kept = [each.tokens[0].tolist() for each in found if each is not None]
    return sorted({token for tokens in kept for token in tokens}) if kept else None

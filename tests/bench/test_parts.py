"""Spans, counters, figures and the folder of finished cases, each alone."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from surgery.bench import BenchmarkError, Settings, figures
from surgery.bench.clip import LoopingClip
from surgery.bench.probe import Meter, Probe
from surgery.bench.settings import digest
from surgery.bench.store import CaseStore, write_whole


class Ticks(Meter):
    def __init__(self) -> None:
        self.now = 0

    def mark(self) -> int:
        return self.now

    def between(self, start: int, end: int) -> float:
        return end - start


def test_a_span_holds_what_the_spans_inside_it_do_not() -> None:
    ticks = Ticks()
    probe = Probe(ticks)
    probe.enter("frame")
    ticks.now += 1
    for _ in range(2):
        probe.enter("encoder")
        ticks.now += 10
        probe.enter("stage")
        ticks.now += 100
        probe.leave()
        probe.leave()
    ticks.now += 2
    probe.leave()
    assert not probe.totals
    probe.settle()
    assert dict(probe.totals) == {"frame": 3, "encoder": 20, "stage": 200}


def test_speedup_is_the_ratio_of_median_frame_times() -> None:
    stock, sparse = [2.0, 4.0, 90.0], [1.0, 1.0, 3.0]
    ratio, interval = figures.speedup((stock, sparse))
    assert ratio == pytest.approx(4)
    assert interval is not None and 4 / 3 <= interval[0] <= 4 <= interval[1] <= 90
    both, apart = figures.speedup((stock, sparse), ([6.0], [2.0]))
    assert both == pytest.approx(np.median([*stock, 6]) / np.median([*sparse, 2]))
    assert apart is not None and apart[0] == pytest.approx(3)  # clips are drawn, not frames: the second alone
    assert figures.speedup(([3.0], [2.0])) == (1.5, None)
    for wrong in ([], [([], [])], [([1.0], [0.0])], [([1.0, 2.0], [1.0])]):
        with pytest.raises(ValueError):
            figures.speedup(*wrong)


def test_the_clip_has_no_cut_at_any_length() -> None:
    clip = LoopingClip(64, 100, 3, torch.device("cpu"))
    steps = [(clip[index + 1] - clip[index]).abs().mean() for index in range(60)]
    assert max(steps) < 0.4
    assert list(clip.masks) == [1, 2, 3] and all(mask.any() for mask in clip.masks.values())
    assert not (clip.masks[1] & clip.masks[2]).any()


def test_a_digest_names_its_settings_and_nothing_else() -> None:
    one, other = Settings(frames=3), Settings(frames=4)
    assert digest(one.model_dump(), "a") == digest(Settings(frames=3).model_dump(), "a")
    assert len({digest(one.model_dump(), "a"), digest(other.model_dump(), "a"), digest(one.model_dump(), "b")}) == 3


def test_a_case_is_kept_whole_and_a_strange_file_is_refused(tmp_path: Path) -> None:
    store = CaseStore(tmp_path / "out")
    assert store.get("k") is None
    store.put("k", {"a": 1})
    assert store.get("k") == {"a": 1}
    (store.cases / "other.json").write_text((store.cases / "k.json").read_text())
    with pytest.raises(BenchmarkError, match=r"other\.json: not the case"):
        store.get("other")
    (store.cases / "k.json").write_text("{")
    with pytest.raises(BenchmarkError, match="not JSON"):
        store.get("k")
    write_whole(tmp_path / "x.json", [1])
    assert json.loads((tmp_path / "x.json").read_text()) == [1]
    assert [path.name for path in tmp_path.iterdir() if path.name.startswith(".")] == []
    (tmp_path / "file").write_text("")
    with pytest.raises(BenchmarkError, match="results' folder"):
        CaseStore(tmp_path / "file")

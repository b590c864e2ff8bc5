"""What a calibration says while it works: every stage ends."""

from __future__ import annotations

import io
from typing import Any

import pytest
from rich.console import Console
from rich.progress import Progress

import surgery.demo as demo
from surgery.calibration import calibrate
from surgery.errors import CalibrationError
from surgery.progress import Bars, Counter
from tests.calibration.test_calibrate import clip_of, recipe


def test_every_stage_ends(capsys: pytest.CaptureFixture[str], monkeypatch: Any) -> None:
    seen: list[tuple[str, int, int]] = []
    call = Bars.__call__

    def note(self: Bars, stage: str, done: int, total: int) -> None:
        seen.append((stage, done, total))
        call(self, stage, done, total)

    monkeypatch.setattr(Bars, "__call__", note)
    calibrate(demo.load(host="sam2"), [clip_of(0, 5), clip_of(1, 5)], recipe(), runs=3)
    last = {stage: (done, total) for stage, done, total in seen}
    assert all(done == total for done, total in last.values()), last
    assert all(done <= total for _, done, total in seen)
    assert {stage: total for stage, (_, total) in last.items() if not stage.startswith("real")} == {
        "reading clips": 2, "looking for objects": 0, "dense masks": 10, "closed form": 5, "records": 10,
    }  # fmt: skip
    lines = capsys.readouterr().err.splitlines()
    assert any(line.startswith("closed form: 5/5") for line in lines)


def test_a_stage_that_stops_early_is_full_on_a_terminal_and_in_lines() -> None:
    text = io.StringIO()
    bars = Bars(Progress(console=Console(file=text), disable=True))
    count = Counter(bars, "real runs [8]", 12)
    for _ in range(5):
        count()
    assert text.getvalue() == "real runs [8]\n"
    count.finish()
    assert text.getvalue().splitlines()[1].startswith("real runs [8]: 5/5")
    assert Counter(bars, "none", 0).done == 0 and "none" not in text.getvalue()


def test_a_folder_that_is_no_clip_names_the_layouts_that_work(tmp_path: Any) -> None:
    (tmp_path / "data" / "train" / "videos").mkdir(parents=True)
    (tmp_path / "data" / "notes.txt").write_text("x")
    for folder in (tmp_path / "data", tmp_path / "data" / "train" / "videos"):
        with pytest.raises(CalibrationError, match="JPEGImages/NAME/") as caught:
            calibrate(demo.load(host="sam2"), [folder], recipe(), progress=False)
        assert "frames/ and masks/" in str(caught.value)

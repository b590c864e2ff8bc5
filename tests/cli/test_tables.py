"""Tables of figures at any width: whole, whether as a table or in lines."""

from __future__ import annotations

from typing import Any

import pytest
from rich.console import Console

from surgery.cli import bench, common


@pytest.fixture(params=[40, 80, 200])
def width(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> int:
    console = Console(width=request.param)
    for module in (bench, common):
        monkeypatch.setattr(module, "out", console)
    return int(request.param)


def test_figures_are_never_cut(width: int, capsys: pytest.CaptureFixture[str]) -> None:
    name = "a [/b] clip with a name that is far longer than any terminal is wide, as data sets have them, 0001"
    rows = [[name, "dense", *(f"{number}.125" for number in range(7))], ["", "sparse", *("-" * 7)]]
    common.print_table(("", "", *(f"title {number}" for number in range(7))), rows)
    shown = capsys.readouterr().out
    assert "…" not in shown and name in shown
    assert all(f"{number}.125" in shown and f"title {number}" in shown for number in range(7))
    assert len(shown.splitlines()) == 3, "a line a row, which the terminal folds"


def test_a_table_that_fits_is_one(width: int, capsys: pytest.CaptureFixture[str]) -> None:
    common.print_table(("part", "ms"), [["encoder", "1.5"], ["rest", "22.0"]])
    assert capsys.readouterr().out.split() == ["part", "ms", "encoder", "1.5", "rest", "22.0"]


def test_a_bench_row_is_whole(width: int, capsys: pytest.CaptureFixture[str], tmp_path: Any) -> None:
    side = {"median": 123456.7, "p95": 234567.8}
    row = {
        "objects": 16, "windows": {"share": 0.3125, "forced": False}, "dense": side, "sparse": side,
        "precision": "fp32",
        "settings": {"precision": "bf16"}, "sparse_precision": {"dtype": "fp16"}, "whole_frame_speedup": 12.345,
        "interval": [11.111, 13.333], "predicted": 14.444, "measured_over_predicted": 0.8547, "peak_memory_mb": 98765.4,
        "modules": [],
    }  # fmt: skip
    facts = {"cpu": "a processor", "threads": 2, "device": "cpu"}
    bench._print({"machine": facts, "rows": [row, {**row, "interval": []}], "not_measured": []}, tmp_path)
    shown = capsys.readouterr().out
    assert "…" not in shown
    for figure in ("123456.7", "234567.8", "12.35x", "11.11-13.33", "one pass", "14.44x", "0.85", "98765", "bf16/fp16"):
        assert figure in shown

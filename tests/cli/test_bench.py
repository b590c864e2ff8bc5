"""`surgery bench`: the document it writes, and that stopping it loses the running case only."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from surgery.cli.main import main

SHORT = ("--frames", "2", "--warm", "1", "--module-frames", "0")


def invoke(*arguments: str, code: int = 0) -> Result:
    result = CliRunner().invoke(main, ["bench", *arguments])
    assert result.exit_code == code, (result.output, result.exception)
    return result


def test_cases_are_a_grid_and_are_not_measured_twice(tmp_path: Path) -> None:
    out = ("--out", str(tmp_path), "--device", "cpu")
    first = json.loads(invoke("demo", "--windows", "0.25,routed", "--objects", "1,2", *SHORT, *out, "--json").stdout)
    assert first == json.loads((tmp_path / "bench.json").read_text())
    assert (first["kind"], first["schema"], first["complete"], first["cases"]) == ("bench", 1, True, 4)
    assert [(row["model"], row["objects"], row["windows_share"]) for row in first["rows"]] == [
        ("demo", 1, 0.25), ("demo", 1, None), ("demo", 2, 0.25), ("demo", 2, None),
    ]  # fmt: skip
    assert set(first["machine"]) == {"platform", "cpu", "cores", "threads", "device", "versions"}
    assert {missing["device"] for missing in first["not_measured"]} == {"cuda", "mps"}
    assert all("not measured" in missing["reason"] for missing in first["not_measured"])
    assert len(list((tmp_path / "cases").iterdir())) == 4
    again = json.loads(invoke("demo", "--windows", "0.25", "--objects", "2", *SHORT, *out, "--json").stdout)
    assert again["rows"] == [first["rows"][2]]
    other = json.loads(invoke("demo", "--windows", "0.25", *SHORT, "--seed", "1", *out, "--json").stdout)
    assert other["rows"][0] != first["rows"][0]
    assert len(list((tmp_path / "cases").iterdir())) == 5
    assert "0.25" in other["command"] or "surgery" in other["command"]


def test_the_table_names_modules_and_what_was_not_measured(tmp_path: Path) -> None:
    shown = invoke(
        "demo", "--frames", "2", "--warm", "8", "--module-frames", "1", "--out", str(tmp_path), "--device", "cpu"
    ).stdout
    for word in ("encoder: stage 3", "host overhead", "GFLOP", "cuda: not measured"):
        assert word in shown


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--windows", "2"), "less than or equal to 1"),
        (("--precision", "fp8"), "'fp32', 'bf16' or 'fp16'"),
        (("--recipe", "balance"), "balanced"),
    ],
)
def test_wrong_options_are_one_error(tmp_path: Path, arguments: tuple[str, ...], message: str) -> None:
    assert message in invoke("demo", *arguments, "--out", str(tmp_path / "o"), code=1).stderr
    assert not (tmp_path / "o").exists()
    assert "whole number" in invoke("demo", "--objects", "x", code=2).stderr


@pytest.mark.skipif(not hasattr(signal, "SIGKILL"), reason="POSIX signals")
def test_a_killed_run_goes_on_with_the_case_it_was_in(tmp_path: Path) -> None:
    command = [
        sys.executable, "-m", "surgery.cli.main", "bench", "demo", "--device", "cpu", "--threads", "1", "--windows",
        "0.25,0.5,routed", "--frames", "12", "--warm", "2", "--module-frames", "0", "--out", str(tmp_path), "--json",
    ]  # fmt: skip
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    running = subprocess.Popen(command, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    cases = tmp_path / "cases"
    deadline = time.monotonic() + 120
    while not list(cases.glob("*.json")):
        assert running.poll() is None and time.monotonic() < deadline, "no case was finished"
        time.sleep(0.02)
    running.send_signal(signal.SIGKILL)
    running.wait()
    (kept,) = cases.glob("*.json")
    stamp = kept.stat().st_mtime_ns
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
    document = json.loads(done.stdout)
    assert document["complete"] and len(document["rows"]) == 3
    assert kept.stat().st_mtime_ns == stamp
    assert document["rows"][0] == json.loads(kept.read_text())["row"]

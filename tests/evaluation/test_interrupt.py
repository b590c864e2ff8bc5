"""A run that is interrupted or killed loses at most the running sequence, and the next one mixes nothing."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from surgery import DatasetError, evaluate
from surgery.demo import load
from surgery.evaluation.store import RunStore, write_text
from tests.evaluation.trees import folder_tree

NAMES, FRAMES = ("a", "b"), 8


def start(root: Path, out: Path) -> subprocess.Popen[bytes]:
    command = [
        sys.executable, "-m", "surgery.cli.main", "eval", "demo", str(root), "--dataset", "folder", "--out", str(out),
        "--host", "sam2", "--recipe", "balanced", "--dense-too", "--threads", "1",
    ]  # fmt: skip
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}

    def heed() -> None:
        # A suite that was started in the background ignores SIGINT, and its children would as well.
        signal.signal(signal.SIGINT, signal.default_int_handler)

    return subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, preexec_fn=heed)


def wait_for_the_second_sequence(process: subprocess.Popen[bytes], out: Path) -> None:
    deadline = time.monotonic() + 120
    while time.monotonic() < deadline:
        if process.poll() is not None:
            raise AssertionError(process.communicate()[0].decode())
        if (out / "runs").is_dir() and any((out / "runs").glob("*/partial/*/b/*.png")):
            return
        time.sleep(0.005)
    raise AssertionError("the second sequence never started")


def rows(scores: Any) -> list[dict[str, Any]]:
    """Everything but times."""
    return [
        {
            **{name: value for name, value in row.items() if name != "ms"},
            **{
                arm: {name: value for name, value in row[arm].items() if name not in ("ms", "frame_ms")}
                for arm in ("dense", "sparse")
            },
        }
        for row in scores.sequences
    ]


@pytest.mark.parametrize("how", [signal.SIGINT, signal.SIGKILL])
def test_interrupt_and_go_on(tmp_path: Path, how: signal.Signals) -> None:
    root, out = folder_tree(tmp_path / "clips", NAMES, FRAMES), tmp_path / "out"
    process = start(root, out)
    try:
        wait_for_the_second_sequence(process, out)
        process.send_signal(how)
        text = process.communicate(timeout=60)[0].decode()
    finally:
        process.kill()
    assert process.returncode != 0
    assert "Traceback" not in text
    (folder,) = (out / "runs").iterdir()
    assert [path.name for path in (folder / "sequences").iterdir()] == ["a.json"]
    assert not (folder / "predictions/dense/b").exists()
    assert not (out / "eval.json").exists()

    model = load(host="sam2")
    settings: dict[str, Any] = {"recipe": "balanced", "dense_too": True, "name": "demo"}
    seen: dict[str, int] = {}

    def progress(done: int, total: int, sequence: str) -> None:
        assert total == FRAMES
        seen[sequence] = seen.get(sequence, -1) + 1

    again = evaluate(model, "folder", root, out=out, progress=progress, **settings)
    assert out / "runs" / again.head["key"] == folder
    assert seen == {"b": FRAMES}
    # Another recipe in the same folder reads nothing of this one.
    other = evaluate(model, "folder", root, out=out, recipe="fast", dense_too=True, name="demo", sequences=["a"])
    assert other.head["key"] != again.head["key"]
    assert rows(other) == rows(
        evaluate(model, "folder", root, recipe="fast", dense_too=True, name="demo", sequences=["a"])
    )
    assert rows(again) == rows(evaluate(model, "folder", root, out=tmp_path / "fresh", **settings))
    for arm in ("dense", "sparse"):
        for path in (tmp_path / "fresh").rglob(f"predictions/{arm}/*/*.png"):
            twin = folder / "predictions" / arm / path.parent.name / path.name
            assert twin.read_bytes() == path.read_bytes()
    assert not list(folder.rglob(".*.part")) and not list((folder / "partial").rglob("*.png"))


def test_two_runs_do_not_share_a_folder(tmp_path: Path) -> None:
    settings = {"recipe": "balanced"}
    first = RunStore(tmp_path, settings)
    with pytest.raises(DatasetError, match="another process is writing this run"):
        RunStore(tmp_path, settings)
    other = RunStore(tmp_path, {"recipe": "fast"})
    assert other.key != first.key
    first.close()
    RunStore(tmp_path, settings).close()


def test_a_folder_with_other_settings_under_the_same_name_is_refused(tmp_path: Path) -> None:
    store = RunStore(tmp_path, {"recipe": "balanced"})
    store.close()
    (store.folder / "settings.json").write_text('{"recipe": "fast"}')
    with pytest.raises(DatasetError, match="other settings than this run's"):
        RunStore(tmp_path, {"recipe": "balanced"})


@pytest.mark.parametrize("content", ["{", "[]", "{}", '{"row": []}', '{"row": {"digest": "d"}}'])
def test_a_file_that_is_no_result_of_this_run_counts_as_none(tmp_path: Path, content: str) -> None:
    store = RunStore(tmp_path, {"recipe": "balanced"})
    write_text(store.folder / "sequences" / "clip.json", content)
    assert store.finished("clip", "d", [], record=False) is None
    store.close()

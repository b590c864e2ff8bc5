"""kill -9 during a save, and two processes that save to one folder: always a whole adapter, old or new."""

from __future__ import annotations

import os
import random
import shutil
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import surgery
from surgery import AdapterError
from surgery.adapters import folder as folder_module
from surgery.adapters import read_adapter
from tests.adapters.folders import content, fitted
from tests.hosts.drive import make

pytestmark = pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")


@pytest.fixture(scope="module")
def two() -> tuple[Any, Any]:
    """Two models under different recipes."""
    other = make("sam2")
    surgery.sparsify(other.model, "fast")
    return fitted("sam2").model, other.model


def child(work: Callable[[], Any]) -> int:
    """Run `work` in a forked process; returns its id."""
    pid = os.fork()
    if pid:
        return pid
    try:
        work()
        os._exit(0)
    except BaseException as error:
        os.write(2, f"{type(error).__name__}: {error}\n".encode())
        os._exit(1)


def died_by(pid: int) -> int:
    """The signal that ended a process, 0 when it ended well, -1 otherwise."""
    _, status = os.waitpid(pid, 0)
    return os.WTERMSIG(status) if os.WIFSIGNALED(status) else -os.WEXITSTATUS(status)


def kill_oneself_at(turn: int, after: bool) -> None:
    """SIGKILL this process at the `turn`-th step of a save that changes the disk, before or after the step."""
    count = 0

    def wrap(module: Any, name: str) -> None:
        original = getattr(module, name)

        def step(*args: Any, **kwargs: Any) -> Any:
            nonlocal count
            count += 1
            if count == turn and not after:
                os.kill(os.getpid(), signal.SIGKILL)
            mine = count
            try:
                return original(*args, **kwargs)
            finally:
                if mine == turn and after:
                    os.kill(os.getpid(), signal.SIGKILL)

        setattr(module, name, step)

    for name in ("mkdir", "fsync", "chmod", "rename", "unlink", "rmdir"):
        wrap(os, name)
    wrap(folder_module, "_exchange")
    wrap(shutil, "rmtree")


@pytest.mark.parametrize("exists", [True, False], ids=["replacing", "new"])
@pytest.mark.parametrize("after", [False, True], ids=["before", "after"])
def test_killed_at_every_step_of_a_save(exists: bool, after: bool, two: tuple[Any, Any], tmp_path: Path) -> None:
    """Whatever the step, the adapter at the path is the old one or the new one, byte for byte."""
    old, new = (content(surgery.save_adapter(model, tmp_path / name)) for name, model in zip("ab", two, strict=True))
    seen = set()
    for turn in range(1, 40):
        target = tmp_path / f"t{turn}" / "adapter"
        if exists:
            surgery.save_adapter(two[0], target)
        else:
            target.parent.mkdir()

        def work(turn: int = turn, target: Path = target) -> None:
            kill_oneself_at(turn, after)
            surgery.save_adapter(two[1], target)

        ended = died_by(child(work))
        if ended == 0:
            break
        assert ended == signal.SIGKILL
        found = content(target) if target.exists() else None
        assert found in (old if exists else None, new)
        seen.add(found == new)
        surgery.save_adapter(two[1], target)
        assert content(target) == new, "the next save works, whatever was left"
    else:
        pytest.fail("the save never ended")
    assert turn > 6
    assert seen == {True, False}, "some kills came before the swap and some after"


def test_killed_at_random_moments(two: tuple[Any, Any], tmp_path: Path) -> None:
    old, new = (content(surgery.save_adapter(model, tmp_path / name)) for name, model in zip("ab", two, strict=True))
    target, draw = tmp_path / "adapter", random.Random(0)
    surgery.save_adapter(two[0], target)

    def work() -> None:
        while True:
            folder_module.write_folder(target, old)
            folder_module.write_folder(target, new)

    for _ in range(25):
        pid = child(work)
        time.sleep(draw.uniform(0.001, 0.03))
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)
        assert content(target) in (old, new)
        read_adapter(target)


def test_two_processes_saving_to_one_folder(two: tuple[Any, Any], tmp_path: Path) -> None:
    old, new = (content(surgery.save_adapter(model, tmp_path / name)) for name, model in zip("ab", two, strict=True))
    for start in ("absent", "there"):
        target = tmp_path / start / "adapter"
        if start == "there":
            surgery.save_adapter(two[0], target)

        def work(files: dict[str, bytes], target: Path = target) -> None:
            for _ in range(30):
                folder_module.write_folder(target, files)

        writers = [child(lambda files=files: work(files)) for files in (old, new)]  # type: ignore[misc]
        assert [died_by(pid) for pid in writers] == [0, 0]
        assert content(target) in (old, new)
        assert [path.name for path in target.parent.iterdir()] == ["adapter"], "nothing temporary is left"


def test_a_reader_never_sees_a_mixture_of_two_versions(two: tuple[Any, Any], tmp_path: Path) -> None:
    versions = [content(surgery.save_adapter(model, tmp_path / name)) for name, model in zip("ab", two, strict=True)]
    target = surgery.save_adapter(two[0], tmp_path / "adapter")

    def work() -> None:
        while True:
            for files in versions:
                folder_module.write_folder(target, files)
                time.sleep(0.03)  # a writer that never pauses leaves no moment in which four files can be read

    pid, seen = child(work), set()
    try:
        for _ in range(60):
            adapter = read_adapter(target)
            fitted_one = bool(adapter.tensors["up_project.weight"].any())
            assert fitted_one == (adapter.recipe.metadata.name == "balanced")
            seen.add(fitted_one)
    finally:
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)
    assert seen == {True, False}


def test_leftovers_of_killed_saves_are_removed_later(two: tuple[Any, Any], tmp_path: Path) -> None:
    target = tmp_path / "adapter"
    fresh, stale = tmp_path / ".adapter.1.partial", tmp_path / ".adapter.2.partial"
    fresh.mkdir()
    stale.mkdir()
    before, now = folder_module._STALE_SECONDS, time.time()
    try:
        folder_module._STALE_SECONDS = -1.0  # the time of a folder's last change cannot be set back
        surgery.save_adapter(two[0], target)
    finally:
        folder_module._STALE_SECONDS = before
    assert not fresh.exists() and not stale.exists()
    fresh.mkdir()
    surgery.save_adapter(two[0], target)
    assert fresh.exists(), f"another save may be using it (made after {now})"


def test_where_folders_cannot_be_exchanged_two_renames_do(
    two: tuple[Any, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(folder_module, "_exchange", lambda *_: False)
    target = surgery.save_adapter(two[0], tmp_path / "adapter")
    before = content(target)
    rename, calls = os.rename, []

    def failing(one: Any, other: Any) -> None:
        calls.append(one)
        if len(calls) == 3:
            raise OSError(5, "Input/output error")
        rename(one, other)

    with monkeypatch.context() as patch:
        patch.setattr(os, "rename", failing)
        with pytest.raises(AdapterError, match="cannot be written"):
            surgery.save_adapter(two[1], target)
    assert content(target) == before
    surgery.save_adapter(two[1], target)
    assert content(target) != before
    assert [path.name for path in tmp_path.iterdir()] == ["adapter"]


@pytest.mark.skipif(sys.platform != "linux", reason="one system call there")
def test_folders_are_exchanged_in_one_call_here(tmp_path: Path) -> None:
    for name in "ab":
        (tmp_path / name).mkdir()
        (tmp_path / name / name).touch()
    assert folder_module._exchange(tmp_path / "a", tmp_path / "b")
    assert [path.name for path in (tmp_path / "a").iterdir()] == ["b"]
    with pytest.raises(OSError):
        folder_module._exchange(tmp_path / "a", tmp_path / "none")

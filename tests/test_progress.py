"""What long work shows of itself: bars on a terminal, plain lines elsewhere, and nothing where it is silenced."""

from __future__ import annotations

import io

import pytest
from rich.console import Console
from rich.progress import Progress

from surgery import progress
from surgery.progress import Bars, Counter, progress_bar

STRANGE = "[b]a[/x] :smile: [red]"


def plain(file: io.StringIO, now: list[float]) -> Bars:
    """Bars where there is no terminal, at a time that the test sets."""
    return Bars(Progress(console=Console(file=file), disable=True, get_time=lambda: now[0]))


def test_plain_lines_come_now_and_then(monkeypatch: pytest.MonkeyPatch) -> None:
    now = [0.0]
    monkeypatch.setattr(progress.time, "monotonic", lambda: now[0])

    def lines(total: int | None, frames: int, seconds: float) -> list[str]:
        file = io.StringIO()
        with plain(file, now).stage(STRANGE, total) as step:
            for _ in range(frames):
                now[0] += seconds
                step()
        return file.getvalue().splitlines()

    assert lines(10, 10, 0.1) == [STRANGE, f"{STRANGE}: 10/10, 0:00:01"]
    assert lines(10, 5, 0.2) == [STRANGE, f"{STRANGE}: 5/5, 0:00:01"], "fewer than declared"
    assert len(lines(10, 40, 1.0)) < 5, "more than declared"
    assert lines(1000, 400, 1.0)[1] == f"{STRANGE}: 30/1000, 0:00:30, 0:16:10 left"
    assert lines(None, 100, 30.0)[:2] == [STRANGE, f"{STRANGE}: 1, 0:00:30"]
    assert lines(None, 0, 1.0) == [STRANGE]
    assert lines(0, 0, 1.0) == []


def test_an_interrupt_ends_a_stage_without_a_word() -> None:
    file = io.StringIO()
    bars = plain(file, [0.0])

    def run() -> None:
        with bars.stage("tracking", 10) as step:
            step()
            raise KeyboardInterrupt

    for _ in range(2):
        with pytest.raises(KeyboardInterrupt):
            run()
    assert file.getvalue().splitlines() == ["tracking"] * 2


def on_a_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FORCE_COLOR", "1")
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv("COLUMNS", "120")


def test_bars_on_a_terminal(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    on_a_terminal(monkeypatch)
    with progress_bar(True) as bars:
        assert bars._progress is not None
        with bars.stage(STRANGE, 10) as step:
            step()
            (task,) = bars._progress.tasks
            assert (task.completed, task.total) == (1, 10)
            bars._progress.refresh()
        assert not bars._progress.tasks
        count = Counter(bars, "reading clips", 2)
        bars("reading clips", 1, 2, "shown instead")
        (task,) = bars._progress.tasks
        assert (task.description, task.completed, task.total) == ("shown instead", 1, 2)
        count.finish()
        Counter(bars, "reading clips", 3)
        assert [task.total for task in bars._progress.tasks] == [3], "a stage that comes again has one bar"
        bars.say("a line above [/y]")
    shown = capsys.readouterr()
    assert STRANGE in shown.err and "a line above [/y]" in shown.err and shown.out == ""
    assert shown.err.endswith("\x1b[2K"), "bars are gone at the end"


def test_an_interrupt_leaves_the_terminal_as_it_was(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    on_a_terminal(monkeypatch)

    def run() -> None:
        with progress_bar(True) as bars, bars.stage("tracking", 3) as step:
            step()
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run()
    shown = capsys.readouterr().err
    assert shown.count("\x1b[?25l") == shown.count("\x1b[?25h") == 1, "the cursor is back"


def test_silence(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    on_a_terminal(monkeypatch)
    with progress_bar(False) as bars, bars.stage("tracking", 3) as step:
        step()
        bars("dense masks", 1, 2)
        bars.say("nothing")
    assert capsys.readouterr() == ("", "")


def test_a_dumb_terminal_gets_lines(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    on_a_terminal(monkeypatch)
    monkeypatch.setenv("TERM", "dumb")
    with progress_bar(True) as bars, bars.stage("tracking", 2) as step:
        step()
        step()
    assert [line.split(",")[0] for line in capsys.readouterr().err.splitlines()] == ["tracking", "tracking: 2/2"]

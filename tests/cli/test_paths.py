"""Names and paths as users have them: brackets, files where folders should be, names no file system takes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner, Result
from PIL import Image

from surgery.adapters import open_adapter
from surgery.cli import common
from surgery.cli.main import main
from surgery.errors import SurgeryError
from surgery.evaluation import open_dataset
from surgery.loading import load_model
from surgery.recipe import Recipe
from surgery.report.build import write_report
from surgery.video import load_mask_prompts, open_video, write_label_png

LONG = "n" * 300
STRANGE = "[b]a[/x] :smile: [red]"


def invoke(*arguments: str) -> Result:
    return CliRunner().invoke(main, list(arguments))


@pytest.fixture
def clip(tmp_path: Path) -> Path:
    folder = tmp_path / "frames"
    folder.mkdir()
    for number in range(2):
        Image.fromarray(np.full((48, 64, 3), 60 * number, np.uint8)).save(folder / f"{number}.jpg")
    return folder


def commands(clip: Path) -> dict[str, list[str]]:
    """Every command that writes, with `OUT` where the path goes."""
    return {
        "track": ["track", str(clip), "--model", "demo", "--box", "5,5,40,40", "--out", "OUT"],
        "eval": ["eval", "demo", str(clip), "--dataset", "folder", "--out", "OUT"],
        "bench": ["bench", "demo", "--out", "OUT"],
        "demo": ["demo", "--out", "OUT"],
        "demo-clips": ["demo-clips", "--out", "OUT"],
        "calibrate": ["calibrate", "demo", "--clips", str(clip), "--out", "OUT"],
        "report folder": ["calibrate", "demo", "--clips", str(clip), "--out", "fresh", "--report", "OUT"],
        "fit": ["fit", "demo", "--clips", str(clip), "--out", "OUT"],
        "report": ["report", str(clip), "--out", "OUT"],
        "pull": ["pull", "user/name", "--out", "OUT"],
        "import-published": ["import-published", __file__, "--out", "OUT"],
    }


@pytest.mark.parametrize("command", commands(Path()))
def test_what_cannot_be_written_is_refused_before_the_work(clip: Path, tmp_path: Path, command: str) -> None:
    (tmp_path / "FILE").touch()
    for path, message in ((tmp_path / "FILE" / "x" / "y", "is a file, expected a folder"), (tmp_path / LONG, "name")):
        done = invoke(*(str(path) if word == "OUT" else word for word in commands(clip)[command]))
        assert done.exit_code == 2 and isinstance(done.exception, SystemExit), (done.output, done.exception)
        assert message in done.stderr
    assert sorted(path.name for path in tmp_path.iterdir()) == ["FILE", "frames"]


@pytest.mark.parametrize("path", [LONG, "FILE/x"], ids=["long", "under a file"])
def test_what_cannot_be_read_is_one_line(
    clip: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, path: str
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("FILE").touch()
    track = ["track", str(clip), "--model", "demo", "--out", "out", "--box", "5,5,40,40"]
    for arguments in (
        ["track", path, "--model", "demo", "--box", "5,5,40,40", "--out", "out"],
        [*track, "--mask", path],
        [*track, "--mask", f"{path}@0"],
        [*track, "--recipe", path],
        [*track, "--recipe", f"{path}.yaml"],
        [*track, "--adapter", path],
        ["track", str(clip), "--model", path, "--out", "out", "--box", "5,5,40,40"],
        ["eval", "demo", path, "--dataset", "davis2017", "--out", "out"],
        ["eval", "demo", path, "--dataset", "folder", "--out", "out"],
        ["calibrate", "demo", "--clips", path, "--out", "out"],
        ["bench", "demo", "--adapter", path, "--out", "out"],
        ["inspect", "demo", "--adapter", path],
        ["report", path, "--out", "report.html"],
        ["verify", path],
        ["push", path, "user/name"],
        ["import-published", path, "--out", "out"],
        ["recipes", f"{path}.yaml"],
    ):
        done = invoke(*arguments)
        assert done.exit_code in (1, 2) and isinstance(done.exception, SystemExit), (arguments, done.exception)
        assert path[:40] in done.output.replace("\n", ""), (arguments, done.output)


@pytest.mark.parametrize("path", [LONG, "FILE/x"], ids=["long", "under a file"])
def test_in_python_it_is_an_error_of_ours(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, path: str) -> None:
    monkeypatch.chdir(tmp_path)
    Path("FILE").touch()
    calls: list[Any] = [
        open_video, load_mask_prompts, open_adapter, load_model,
        lambda path: Recipe.load(f"{path}.yaml"),
        lambda path: open_dataset("folder", path), lambda path: open_dataset("davis2017", path),
        lambda path: write_report([path], "report.html"),
        lambda path: write_label_png(f"{path}.png", np.zeros((2, 2), np.uint8)),
    ]  # fmt: skip
    for call in calls:
        with pytest.raises(SurgeryError):
            call(path)


@pytest.mark.parametrize("frame", ["²", "٣", "9" * 5000, "", "-1", "x"])
def test_what_is_no_frame_number_belongs_to_the_name(clip: Path, tmp_path: Path, frame: str) -> None:
    done = invoke("track", str(clip), "--model", "demo", "--out", str(tmp_path / "o"), "--mask", f"m.png@{frame}")
    assert done.exit_code == 1 and "m.png@" in done.stderr and isinstance(done.exception, SystemExit)


def test_names_with_brackets_are_printed_as_they_are(clip: Path, tmp_path: Path) -> None:
    """Markup would take parts of the name away, and `[/x]` ended the command after all of its work."""
    video, folder = clip.rename(tmp_path / "[b]a[-x] :smile: [red]"), tmp_path / "o[/x]ut :cat:"
    done = invoke(
        "track", str(video), "--model", "demo", "--host", "sam2", "--recipe", "none", "--box", "5,5,40,40",
        "--no-overlay", "--out", str(folder),
    )  # fmt: skip
    assert done.exit_code == 0, (done.output, done.exception)
    assert f"{folder}/masks" in done.stdout and (folder / "summary.json").is_file()
    failed = invoke("track", str(tmp_path / "no[/x]ne"), "--model", "demo", "--box", "1,1,2,2", "--out", "unmade")
    assert failed.exit_code == 1 and "no[/x]ne" in failed.stderr


@pytest.mark.parametrize("command", [["inspect", STRANGE], ["verify", STRANGE], ["recipes", STRANGE]], ids=str)
def test_errors_repeat_names_as_they_are(command: list[str]) -> None:
    done = invoke(*command)
    assert done.exit_code == 1 and isinstance(done.exception, SystemExit)
    assert STRANGE in (done.stdout + done.stderr).replace("\n", " ")


def test_nothing_that_is_printed_is_markup(capsys: pytest.CaptureFixture[str]) -> None:
    from rich.table import Table

    for console in (common.out, common.err):
        with console.capture() as caught:
            console.print(STRANGE, soft_wrap=True)
            table = Table("column [/x]", caption="caption [/y]")
            table.add_row(STRANGE)
            console.print(table)
        shown = caught.get()
        assert shown.count(STRANGE) == 2 and "[/x]" in shown and "[/y]" in shown
        with console.capture() as caught:
            console.print(common.noted(STRANGE, "[/z]"))
        assert caught.get().count(STRANGE) == 1

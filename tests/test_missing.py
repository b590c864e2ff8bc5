"""What works without the extras, and what is said where one of their libraries is missing."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner

import surgery
from surgery import missing
from surgery.calibration import calibrate
from surgery.cli.main import main
from surgery.errors import MissingLibraryError
from surgery.hosts import hosts
from surgery.loading import load_model
from surgery.missing import first_present, require
from surgery.video import open_video, write_video
from tests.test_packaging import declared

ROOT = Path(__file__).resolve().parent.parent
LIBRARIES = missing.LIBRARIES | {host.name: host.loader.library for host in hosts()}
OPTIONAL = ("av", "matplotlib", "scipy", "rich", "click", "ray")


def without(*names: str) -> str:
    """The start of a script in which these libraries are not installed."""
    return f"import sys\nsys.modules.update(dict.fromkeys({[*names]!r}))\n"


def run(code: str, *arguments: str, cwd: Path = ROOT) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", code, *arguments], cwd=cwd, capture_output=True, text=True, check=False
    )


@pytest.fixture
def absent(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """Make libraries look as if they were not installed."""

    def hide(*names: str) -> None:
        for name in names:
            monkeypatch.setitem(sys.modules, LIBRARIES[name].module, None)

    return hide


def test_all_but_the_command_line_imports_without_the_extras() -> None:
    code = without(*OPTIONAL) + (
        "import importlib, pkgutil, surgery\n"
        "for name in surgery.__all__: getattr(surgery, name)\n"
        "found = [m.name for m in pkgutil.walk_packages(surgery.__path__, 'surgery.') if '.cli' not in m.name]\n"
        "for name in found: importlib.import_module(name)\n"
        "print(len(found))"
    )
    done = run(code)
    assert done.returncode == 0, done.stderr
    assert int(done.stdout) > 80


def test_sparsify_save_and_load_need_no_extra(tmp_path: Path) -> None:
    code = without(*OPTIONAL) + (
        "from surgery import demo, desparsify, load_adapter, save_adapter, sparsify, status\n"
        "model = sparsify(demo.build('transformers'), 'faithful')\n"
        "save_adapter(model, sys.argv[1])\n"
        "print(status(load_adapter(desparsify(model), sys.argv[1])).sparse)"
    )
    done = run(code, str(tmp_path / "adapter"))
    assert (done.returncode, done.stdout) == (0, "True\n"), done.stderr


@pytest.mark.parametrize("name", LIBRARIES)
def test_a_missing_library_is_named_with_its_use_and_its_installation(name: str, absent: Callable[..., None]) -> None:
    library = LIBRARIES[name]
    pytest.importorskip(library.name)  # Ray is no part of the development setup
    require(library)
    absent(name)
    with pytest.raises(MissingLibraryError) as caught:
        require("scipy" if name != "scipy" else "rich", library)
    text = str(caught.value)
    assert library.use in text and library.command in text
    if library.extra is not None:
        assert f'pip install ".[{library.extra}]"' in text
        assert library.name in declared(library.extra), "the extra does not name the library"
        assert library.name not in declared(None), "the library is no extra: it always comes along"
    # `pip install surgery...` would fetch a stranger's package.
    assert not re.search(r"pip install\W+(sam-)?surgery", text)


def test_calls_say_what_is_missing_before_they_work(absent: Callable[..., None], tmp_path: Path) -> None:
    frames = np.zeros((3, 32, 32, 3), np.uint8)
    write_video(tmp_path / "a.mp4", frames, 12.0)
    absent("av", "scipy")
    model = object()
    calls: dict[str, list[Callable[[], Any]]] = {
        "av": [lambda: open_video(tmp_path / "a.mp4"), lambda: write_video(tmp_path / "b.mp4", frames, 12.0)],
        "scipy": [lambda: calibrate(model, ["a", "b"])],
    }
    for name, each in calls.items():
        for call in each:
            with pytest.raises(MissingLibraryError, match=f"needs {name},"):
                call()
    assert not (tmp_path / "b.mp4").exists()


def test_the_command_line_prints_the_message_whole(absent: Callable[..., None], tmp_path: Path) -> None:
    absent("av")
    (tmp_path / "a.mp4").write_bytes(b"0")
    result = CliRunner().invoke(
        main, ["track", str(tmp_path / "a.mp4"), "--model", "demo", "--box", "1,2,3,4", "--out", "o"]
    )
    assert result.exit_code == 1
    assert 'pip install ".[video]"' in result.stderr


def test_the_command_line_without_its_libraries_is_one_line() -> None:
    done = run(without("click") + "from surgery.cli import run\nrun()")
    assert done.returncode == 1 and done.stdout == ""
    assert done.stderr.startswith("error: the command line needs click") and done.stderr.count("\n") == 1


@pytest.mark.parametrize(("missing", "there"), [("sam2", "transformers"), ("transformers", "sam2")])
class TestHosts:
    def test_the_embedded_model_takes_the_host_that_is_there(
        self, missing: str, there: str, absent: Callable[..., None], tmp_path: Path
    ) -> None:
        absent(missing)
        assert surgery.status(surgery.sparsify(load_model("demo", device="cpu"))).host == there
        arguments = ["demo", "--clips", "1", "--frames", "2", "--out", str(tmp_path), "--json"]
        result = CliRunner().invoke(main, arguments)
        assert result.exit_code == 0, result.output
        assert json.loads((tmp_path / "summary.json").read_text())["host"] == there

    def test_a_host_asked_for_and_missing_is_named(self, missing: str, there: str, absent: Callable[..., None]) -> None:
        absent(missing)
        for spec in ("demo", "random:tiny"):
            with pytest.raises(MissingLibraryError, match=f"needs {missing},"):
                load_model(spec, host=missing, device="cpu")


def test_without_any_host_both_are_named(absent: Callable[..., None]) -> None:
    absent("sam2", "transformers")
    for spec in ("demo", "random:tiny"):
        with pytest.raises(MissingLibraryError) as caught:
            load_model(spec, device="cpu")
        assert all(LIBRARIES[name].command in str(caught.value) for name in ("sam2", "transformers"))
    with pytest.raises(MissingLibraryError, match="needs transformers"):
        load_model("facebook/sam2.1-hiera-tiny", device="cpu")
    with pytest.raises(MissingLibraryError, match="needs sam2"):
        load_model("a.yaml+b.pt", device="cpu")
    assert first_present([LIBRARIES["scipy"], LIBRARIES["rich"]]) == LIBRARIES["scipy"]

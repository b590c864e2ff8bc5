"""What a stranger gets: the wheel, the make targets, the CI script."""

from __future__ import annotations

import importlib.util
import os
import re
import shutil
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent


def declared(extra: str | None) -> set[str]:
    """Names of the libraries that an extra installs, with those of the extras it takes in; None: the core."""
    text = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
    (block,) = re.findall(rf"^{extra or 'dependencies'} = \[(.*?)\]$", text, re.M | re.S)
    found: set[str] = set()
    for name, taken in re.findall(r'"([\w-]+)(?:\[([\w,]+)\])?[^"]*"', block):
        found |= set().union(*map(declared, taken.split(","))) if taken else {name}
    return found


def _make(*arguments: str, cwd: Path = ROOT, **environment: str) -> subprocess.CompletedProcess[str]:
    # MAKEFLAGS and its kin: this test may itself run under make.
    kept = {key: value for key, value in os.environ.items() if key not in ("MAKEFLAGS", "MFLAGS", "MAKELEVEL", "ARGS")}
    return subprocess.run(
        ["make", *arguments], cwd=cwd, env={**kept, **environment}, capture_output=True, text=True, check=False
    )


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> zipfile.ZipFile:
    if importlib.util.find_spec("hatchling") is None or importlib.util.find_spec("pip") is None:
        pytest.skip("needs hatchling and pip: make setup installs them")
    folder = tmp_path_factory.mktemp("wheel")
    command = [sys.executable, "-m", "pip", "wheel", ".", "--no-deps", "--no-build-isolation", "--wheel-dir", folder]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    (path,) = folder.glob("*.whl")
    return zipfile.ZipFile(path)


def test_the_wheel_holds_the_package_and_its_recipes_and_nothing_else(wheel: zipfile.ZipFile) -> None:
    names = set(wheel.namelist())
    recipes = {f"surgery/_recipes/{path.name}" for path in (ROOT / "recipes").glob("*.yaml")}
    assert recipes, "no recipe in the source"
    assert recipes <= names
    assert {path.relative_to(ROOT).as_posix() for path in (ROOT / "surgery").rglob("*.py")} <= names
    tops = {name.split("/")[0] for name in names}
    assert tops == {"surgery", next(top for top in tops if top.endswith(".dist-info"))}
    assert not [name for name in names if "test" in Path(name).name or name.endswith((".pyc", ".so"))]


def test_the_wheel_is_typed_and_holds_what_ships(wheel: zipfile.ZipFile) -> None:
    names = set(wheel.namelist())
    assert {"surgery/py.typed", "surgery/demo/weights.safetensors"} <= names
    pages = {path.relative_to(ROOT).as_posix() for path in ROOT.glob("surgery/report/*/*.*") if path.suffix != ".pyc"}
    assert "surgery/report/templates/page.html.j2" in pages and pages <= names
    adapters = {f"surgery/_adapters/{path.relative_to(ROOT / 'adapters')}" for path in ROOT.glob("adapters/*/*")}
    assert adapters and adapters <= names


def test_the_wheel_names_its_licence_and_its_command(wheel: zipfile.ZipFile) -> None:
    (metadata,) = (name for name in wheel.namelist() if name.endswith(".dist-info/METADATA"))
    text = wheel.read(metadata).decode()
    assert "License-Expression: Apache-2.0" in text
    assert "Name: sam-surgery" in text
    assert "Requires-Dist: sam2" not in text  # its build needs torch: it must never be pulled in by `pip install`
    assert wheel.read(metadata.replace("METADATA", "licenses/LICENSE")) == (ROOT / "LICENSE").read_bytes()
    assert b"surgery = surgery.cli:run" in wheel.read(metadata.replace("METADATA", "entry_points.txt"))


def test_the_source_distribution_is_what_the_wheel_is_built_from(tmp_path: Path) -> None:
    pytest.importorskip("hatchling")
    command = [sys.executable, "-m", "hatchling", "build", "--target", "sdist", "--directory", str(tmp_path)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    (path,) = tmp_path.glob("sam_surgery-*.tar.gz")
    with tarfile.open(path) as archive:
        tops = {name.split("/")[1] for name in archive.getnames()}
    assert {"surgery", "recipes", "adapters", "README.md", "LICENSE", "pyproject.toml"} <= tops
    assert not tops & {"tests", "benchmarks", "docs"}


@pytest.mark.skipif(shutil.which("make") is None, reason="make is not installed")
class TestMake:
    @pytest.mark.parametrize(
        ("target", "command"),
        [("demo", ".venv/bin/surgery demo"), ("test", ".venv/bin/python -m pytest"), ("lint", "-m mypy")],
    )
    def test_each_target_sets_up_first(self, target: str, command: str) -> None:
        done = _make("-n", target)
        assert done.returncode == 0, done.stderr
        setup, own = done.stdout.find("-m pip install"), done.stdout.find(command)
        assert 0 <= setup < own

    def test_arguments_reach_the_command(self) -> None:
        assert '-m pytest -n 2 -k "a or b"' in _make("-n", "test", 'ARGS=-k "a or b"').stdout

    @pytest.fixture
    def bare(self, tmp_path: Path) -> Path:
        """A tree with nothing but what decides the set-up."""
        for name in ("Makefile", "pyproject.toml"):
            shutil.copy(ROOT / name, tmp_path)
        return tmp_path

    @staticmethod
    def _python(folder: Path, body: str) -> str:
        path = folder / "fake-python"
        path.write_text(f"#!/bin/sh\n{body}\n")
        path.chmod(0o755)
        return str(path)

    @pytest.mark.parametrize(
        ("body", "message"),
        [
            ('case "$*" in *version_info*) exit 1;; -V) echo Python 3.9.1;; esac', "is Python 3.9.1; 3.10 or later"),
            ('case "$*" in *ensurepip*) exit 1;; esac', "apt-get install python3-venv"),
        ],
    )
    def test_an_unfit_python_is_named_and_leaves_nothing(self, bare: Path, body: str, message: str) -> None:
        done = _make("test", f"PYTHON={self._python(bare, body)}", cwd=bare)
        assert done.returncode != 0
        assert message in done.stderr
        assert not (bare / ".venv").exists()

    def test_a_missing_python_is_named(self, bare: Path) -> None:
        done = _make("setup", "PYTHON=no-such-python", cwd=bare)
        assert done.returncode != 0
        assert "'no-such-python' is not here" in done.stderr

    def test_the_stamp_appears_only_at_the_end_and_makes_setup_a_no_op(self, bare: Path) -> None:
        """A stand-in for .venv/bin/python logs pip's calls, and fails in the import check while `broken` exists."""
        (bare / ".venv/bin").mkdir(parents=True)
        python = bare / ".venv/bin/python"
        python.write_text(
            '#!/bin/sh\ncase "$*" in\n'
            "*'pip --version'*) exit 0;;\n"
            "*'pip install'*) echo \"$*\" >>pip.log;;\n"
            "*'import torch'*) test ! -e broken;;\n"
            f'*) exec "{sys.executable}" "$@";;\nesac\n'
        )
        python.chmod(0o755)
        stamp, log = bare / ".venv/.setup-done", bare / "pip.log"

        (bare / "broken").touch()
        assert "not finished" in _make("setup", cwd=bare).stderr
        assert not stamp.exists()
        (bare / "broken").unlink()
        log.unlink()
        assert _make("setup", cwd=bare).returncode == 0
        torch, sam2, own = log.read_text().splitlines()
        assert re.search(r"setuptools wheel .* torch torchvision$", torch)
        assert sam2.endswith("sam2==1.1.0")
        assert own.endswith("-e .[dev]")

        log.unlink()
        done = _make("setup", cwd=bare)
        assert (done.returncode, done.stdout, log.exists()) == (0, "", False)
        with (bare / "pyproject.toml").open("a") as file:
            file.write("\n# changed\n")
        assert _make("setup", cwd=bare).returncode == 0
        assert log.exists()


def test_ci_runs_the_readmes_own_commands() -> None:
    script = ROOT / ".ci/run"
    assert os.access(script, os.X_OK)
    text = script.read_text(encoding="utf-8")
    assert "set -euo pipefail" in text
    assert re.search(r"^make lint$", text, re.M)
    assert re.search(r"^make test$", text, re.M)
    assert re.search(r"^\.venv/bin/python \.ci/new_user\.py$", text, re.M) and (ROOT / ".ci/new_user.py").is_file()
    assert subprocess.run(["bash", "-n", script], check=False).returncode == 0


def test_pre_commit_pins_the_ruff_that_make_lint_runs() -> None:
    (pinned,) = re.findall(r'"ruff==([\d.]+)"', (ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    hooks = set(re.findall(r"ruff==([\d.]+)", (ROOT / ".pre-commit-config.yaml").read_text(encoding="utf-8")))
    assert hooks == {pinned}

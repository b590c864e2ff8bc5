"""What a stored result depends on: all of our code, and every weight."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
from click.testing import CliRunner

from surgery import digests, evaluate
from surgery.cli.main import main
from surgery.demo import load
from surgery.digests import code_digest, weights_digest
from tests.evaluation.trees import folder_tree


@pytest.fixture
def copied(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of the package's code that the digest is taken of."""
    target = tmp_path / "package"
    for path in digests.PACKAGE.rglob("*.py"):
        place = target / path.relative_to(digests.PACKAGE)
        place.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(path, place)
    before = code_digest()
    monkeypatch.setattr(digests, "PACKAGE", target)
    assert code_digest() == before
    return target


def change(path: Path) -> None:
    path.write_text(path.read_text(encoding="utf-8") + "# changed\n", encoding="utf-8")


def test_a_change_in_any_file_changes_the_digest(copied: Path) -> None:
    found = [code_digest()]
    for path in sorted(copied.rglob("*.py")):
        change(path)
        found.append(code_digest())
    (copied / "added.py").touch()
    found.append(code_digest())
    assert len(set(found)) == len(found) > 100


def test_results_of_other_code_are_not_read(copied: Path, tmp_path: Path) -> None:
    """`eval` and `bench` both ask for the digest; `core/engine.py` is a file that decides masks."""
    root = folder_tree(tmp_path / "clips", ("a",), 2)
    bench = ["bench", "demo", "--frames", "2", "--warm", "0", "--module-frames", "0", "--device", "cpu", "--json"]

    def keys() -> tuple[object, int]:
        done = CliRunner().invoke(main, [*bench, "--out", str(tmp_path / "bench")])
        assert done.exit_code == 0 and json.loads(done.stdout)["complete"], done.output
        scores = evaluate(load(host="sam2"), "folder", root, recipe="balanced", out=tmp_path / "eval")
        return scores.head["key"], len(list((tmp_path / "bench" / "cases").iterdir()))

    first, again = keys(), keys()
    assert first == again and first[1] == 1
    change(copied / "core" / "engine.py")
    other = keys()
    assert other[0] != first[0] and other[1] == 2


def test_a_change_of_any_weight_changes_the_digest() -> None:
    model = torch.nn.Linear(200, 3)
    before = weights_digest(model.state_dict())
    with torch.no_grad():
        model.weight[2, 199] += 1
    assert weights_digest(model.state_dict()) != before
    assert weights_digest({}) != weights_digest({"a": torch.zeros(0)}) != weights_digest({"b": torch.zeros(0)})

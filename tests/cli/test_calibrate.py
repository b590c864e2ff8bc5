"""`surgery calibrate` and `surgery fit` from the command line."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from surgery.adapters import read_adapter
from surgery.cli.main import main
from surgery.demo.clips import make_clip, write_davis
from surgery.operations import SparseMemoryRetrieval


@pytest.fixture(scope="module")
def clips(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("clips")
    write_davis([make_clip(900_000_000 + n, 6, difficulty="easy", objects=1) for n in range(2)], folder)
    return folder


def surgery(*arguments: str) -> Result:
    return CliRunner().invoke(main, list(arguments))


def recipe_file(folder: Path, **calibration: object) -> str:
    from surgery.recipe import Recipe

    data = Recipe.load("fast").to_dict()
    data["calibration"] = {"search": {"routing.budget": [0.25, 0.5]}, **calibration}
    path = folder / "mine.yaml"
    path.write_text(Recipe.from_dict(data).to_yaml())
    return str(path)


def test_calibrate_writes_adapter_and_report(clips: Path, tmp_path: Path) -> None:
    recipe = recipe_file(tmp_path, max_drop=0.9, max_clip_drop=0.99)
    out = tmp_path / "adapter"
    done = surgery(
        "calibrate", "demo", "--recipe", recipe, "--clips", str(clips), "--out", str(out), "--runs", "1", "--json"
    )
    assert done.exit_code == 0, done.output
    found = json.loads(done.stdout)
    assert found["kind"] == "calibration"
    assert found["kept"] is True
    record = read_adapter(out).config.calibration
    assert record is not None
    assert record.against_dense.drop == pytest.approx(found["record"]["against_dense"]["drop"])
    assert "| against dense masks |" in (tmp_path / "adapter-report" / "calibration.md").read_text()


def test_a_missed_promise_fails_with_a_report_and_no_adapter(clips: Path, tmp_path: Path) -> None:
    recipe = recipe_file(tmp_path, max_drop=1e-9, max_clip_drop=1e-9)
    out = tmp_path / "adapter"
    done = surgery("calibrate", "demo", "--recipe", recipe, "--clips", str(clips), "--out", str(out), "--runs", "1")
    assert done.exit_code == 1
    assert "no setting keeps the promise" in done.stderr
    assert not out.exists()
    assert (tmp_path / "adapter-report" / "calibration.json").is_file()


def test_fit_writes_an_adapter_of_the_recipe_as_it_stands(clips: Path, tmp_path: Path) -> None:
    recipe = recipe_file(tmp_path)
    done = surgery("fit", "demo", "--recipe", recipe, "--clips", str(clips), "--out", str(tmp_path / "a"))
    assert done.exit_code == 0, done.output
    assert "closed form explains" in done.stdout
    adapter = read_adapter(tmp_path / "a")
    assert adapter.config.calibration is None
    assert any(bool(value.any()) for name, value in adapter.tensors.items() if "up_project" in name)


def test_the_out_folder_is_looked_at_before_the_work(clips: Path, tmp_path: Path) -> None:
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.tex").write_text("years of work")
    for command in ("fit", "calibrate"):
        done = surgery(command, "demo", "--clips", str(clips), "--out", str(tmp_path / "mine"))
        assert done.exit_code == 1
        assert "not an adapter" in done.stderr
    done = surgery("fit", "demo", "--clips", str(tmp_path / "nowhere"), "--out", str(tmp_path / "a"))
    assert done.exit_code == 1
    assert "no such file" in done.stderr


def test_a_recipe_without_routing_is_calibrated_into_a_recipe(clips: Path, tmp_path: Path) -> None:
    from surgery.recipe import Recipe

    data = Recipe.load("memory-only").to_dict()
    data["operations"][0]["warm_up"] = False  # the clips are shorter than the bank
    data["calibration"] = {"max_drop": 0.9, "max_clip_drop": 0.99, "search": {"retrieval.keep": [0.2, 0.5]}}
    (tmp_path / "keys.yaml").write_text(Recipe.from_dict(data).to_yaml())
    done = surgery(
        "calibrate", "demo", "--recipe", str(tmp_path / "keys.yaml"), "--clips", str(clips), "--out",
        str(tmp_path / "out"), "--runs", "1",
    )  # fmt: skip
    assert done.exit_code == 0, done.output
    found = Recipe.load(tmp_path / "out" / "recipe.yaml").find(SparseMemoryRetrieval)
    assert found is not None and found.keep == 0.2

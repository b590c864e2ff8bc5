"""The commands on SAM 3's tracker, saved as users have it: by folder, the tracker alone or with the text model."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from surgery.adapters import read_adapter
from surgery.cli.main import main
from surgery.demo.clips import make_clip, write_davis
from surgery.recipe import Recipe
from tests.evaluation.trees import folder_tree
from tests.hosts.drive import SAM3, sam3_small


def invoke(*arguments: str, code: int = 0) -> Result:
    result = CliRunner().invoke(main, list(arguments))
    assert result.exit_code == code, (result.output, result.exception)
    return result


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> str:
    folder = tmp_path_factory.mktemp("saved") / "model"
    sam3_small().save_pretrained(folder)
    return str(folder)


def test_inspect_counts_nine_windows() -> None:
    facts = json.loads(invoke("inspect", "random:sam3-small", "--json").stdout)
    assert (facts["host"], facts["image_size"]) == (SAM3, 252)
    assert facts["windows"] == {"rows": 3, "columns": 3, "side": 6, "count": 9}
    own, stock = facts["gflop_per_frame"]
    assert (own["windows"], own["at_most"]) == (3, False), "balanced: a third of 9"
    assert own["encoder"] < stock["encoder"] and own["ratio"] > 1
    roles = [block["role"] for block in facts["blocks"]]
    assert roles == ["routed"] * 7 + ["merge"]
    shown = invoke("recipes").stdout
    (line,) = (line for line in shown.splitlines() if line.startswith("turbo"))
    assert "SAM\u00a02" in line and "SAM\u00a03" not in line


def test_track_and_eval(saved: str, tmp_path: Path) -> None:
    (folder,) = write_davis([make_clip(900_000_000, 5, difficulty="easy", objects=1)], tmp_path / "davis")
    out = tmp_path / "run"
    invoke("track", str(folder), "--model", saved, "--recipe", "fast", "--box", "60,60,150,150", "--out", str(out))
    summary = json.loads((out / "summary.json").read_text())
    assert (summary["host"], summary["frames"]) == (SAM3, 5) and summary["windows_kept"] < 1
    root = folder_tree(tmp_path / "clips", ("a",))
    found = invoke(
        "eval", saved, str(root), "--dataset", "folder", "--recipe", "fast", "--dense-too", "--out",
        str(tmp_path / "eval"), "--json",
    )  # fmt: skip
    assert set(json.loads(found.stdout)["summary"]) >= {"dense", "sparse"}


def test_bench_divides_the_frame(saved: str, tmp_path: Path) -> None:
    arguments = ("--windows", "0.34", "--frames", "2", "--warm", "1", "--module-frames", "1", "--device", "cpu")
    (row,) = json.loads(invoke("bench", saved, *arguments, "--out", str(tmp_path), "--json").stdout)["rows"]
    assert row["windows"]["computed"] == pytest.approx(3) and row["host"] == SAM3
    assert {"encoder: stage 1", "memory attention: layer 1"} <= {part["name"] for part in row["modules"]}


def test_calibration_chooses_the_kind_of_globals(saved: str, tmp_path: Path) -> None:
    clips = [make_clip(900_000_000 + n, 5, difficulty="easy", objects=1) for n in range(2)]
    write_davis(clips, tmp_path / "clips")
    data = Recipe.load("balanced").to_dict()
    search = {"routing.stages.globals": ["packed", "cached", "dense"]}
    data["calibration"] = {"max_drop": 0.99, "max_clip_drop": 0.999, "search": search}
    (tmp_path / "mine.yaml").write_text(Recipe.from_dict(data).to_yaml())
    done = invoke(
        "calibrate", saved, "--recipe", str(tmp_path / "mine.yaml"), "--clips", str(tmp_path / "clips"), "--out",
        str(tmp_path / "adapter"), "--runs", "3", "--json",
    )  # fmt: skip
    assert json.loads(done.stdout)["kept"] is True
    adapter = read_adapter(tmp_path / "adapter")
    assert adapter.config.family == "SAM 3" and adapter.config.entry_block == 0
    assert adapter.recipe.operations[0].stages.globals == "packed", "the cheapest that keeps this promise"

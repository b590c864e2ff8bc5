"""`surgery eval`: table, JSON, files, errors."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from surgery.cli.eval import CONVENTIONS, DATASETS
from surgery.cli.main import main
from surgery.evaluation import CONVENTIONS as KNOWN_CONVENTIONS
from surgery.evaluation import DATASETS as KNOWN_DATASETS
from tests.evaluation.trees import davis_tree, folder_tree


def invoke(*arguments: str, code: int = 0) -> Result:
    result = CliRunner().invoke(main, ["eval", *arguments])
    assert result.exit_code == code, (result.output, result.exception)
    return result


def test_the_choices_are_those_of_the_library() -> None:
    assert set(DATASETS) == set(KNOWN_DATASETS)
    assert set(CONVENTIONS) == set(KNOWN_CONVENTIONS)


def test_dense_and_sparse_side_by_side(tmp_path: Path) -> None:
    root, out = folder_tree(tmp_path / "clips"), tmp_path / "out"
    arguments = ["demo", str(root), "--dataset", "folder", "--recipe", "balanced", "--dense-too", "--out", str(out)]
    shown = invoke(*arguments, "--set", "routing.score_gate=3")
    assert "95 % interval" in shown.output
    scores = json.loads((out / "eval.json").read_text())
    assert scores["settings"]["model"] == "demo"
    operations = scores["settings"]["recipe"]["operations"]
    assert operations[0]["object"]["score_gate"] == 3
    assert f"{scores['summary']['sparse']['j_and_f']:.3f}" in shown.output
    assert [row["sequence"] for row in scores["sequences"]] == ["a", "b"]
    again = invoke(*arguments, "--set", "routing.score_gate=3", "--json")
    assert json.loads(again.stdout)["sequences"] == scores["sequences"]


def test_the_ratio_one_sequence_and_traces_are_said(tmp_path: Path) -> None:
    name = "a_sequence_whose_name_is_longer_than_most"
    root, out = folder_tree(tmp_path / "clips", (name,)), tmp_path / "out"
    result = CliRunner(env={"COLUMNS": "80"}).invoke(
        main, ["eval", "demo", str(root), "--dataset", "folder", "--compare", "--record", "--out", str(out)]
    )
    assert result.exit_code == 0, result.output
    scores = json.loads((out / "eval.json").read_text())
    speed = scores["summary"]["speedup"]
    shown = " ".join(result.stdout.split())
    assert (
        f"{speed['mean']:.2f} times as fast as stock, 95 % interval {speed['low']:.2f} to {speed['high']:.2f}" in shown
    )
    assert f"median {scores['summary']['dense']['ms']:.1f} -> {scores['summary']['sparse']['ms']:.1f} ms" in shown
    assert "one sequence gives no interval" in shown and "nan" not in shown
    assert scores["summary"]["difference"]["j_and_f"] is None
    assert (out / scores["traces"] / f"{name}.json").is_file()
    assert str(out / scores["traces"]) in result.stdout
    assert "…" not in result.stdout and name in shown
    assert f"{scores['sequences'][0]['sparse']['j_and_f']:.3f}" in shown


def test_drift_free_fidelity_is_written_and_said(tmp_path: Path) -> None:
    root, out = folder_tree(tmp_path / "clips", frames=10), tmp_path / "out"
    folder_tree(root, ("short",), 4)
    arguments = ["demo", str(root), "--dataset", "folder", "--recipe", "balanced", "--drift-free", "--out", str(out)]
    shown = " ".join(invoke(*arguments).output.split())
    scores = json.loads((out / "eval.json").read_text())
    rows = {row["sequence"]: row["drift_free"] for row in scores["sequences"]}
    assert [each["steps"] for each in rows["a"]] == [1, 4, 8] and rows["short"] == []
    after = scores["summary"]["drift_free"]
    assert [(each["steps"], each["comparisons"]) for each in after] == [(1, 2), (4, 2), (8, 2)]
    assert after[2]["masks"] == pytest.approx((rows["a"][2]["masks"] + rows["b"][2]["masks"]) / 2)
    assert f"8 sparse frames from the dense state: J&F of the dense masks {after[2]['masks']:.3f}" in shown
    assert "2 comparisons" in shown
    again = invoke(*arguments, "--json")
    assert json.loads(again.stdout)["sequences"] == scores["sequences"]
    refused = invoke(
        "demo", str(root), "--dataset", "folder", "--recipe", "none", "--drift-free", "--out", str(out), code=1
    )
    assert "expected a recipe or an adapter" in " ".join(refused.output.split())


def test_stock_alone_and_chosen_sequences(tmp_path: Path) -> None:
    root, out = davis_tree(tmp_path / "davis"), tmp_path / "out"
    result = invoke(
        "demo", str(root), "--dataset", "davis2017", "--recipe", "none", "--sequences", "swan", "--max-frames", "4",
        "--host", "transformers", "--out", str(out), "--json",
    )  # fmt: skip
    scores = json.loads(result.stdout)
    assert scores["settings"]["arms"] == ["dense"] and scores["settings"]["recipe"] is None
    assert scores["settings"]["host"] == "transformers"
    (row,) = scores["sequences"]
    assert (row["sequence"], row["frames"]) == ("swan", 4)
    text = invoke(
        "demo", str(root), "--dataset", "davis2017", "--recipe", "none", "--sequences", "swan", "--max-frames", "4",
        "--host", "transformers", "--out", str(out),
    ).output  # fmt: skip
    assert "not for comparing" in text


@pytest.mark.parametrize(
    ("arguments", "code", "says"),
    [
        (["--dataset", "folder", "--sequences", "z"], 1, "no sequence 'z'"),
        (["--dataset", "folder", "--split", "val"], 1, "has no splits"),
        (["--dataset", "mose"], 1, "no JPEGImages folder"),
        (["--dataset", "davis"], 2, "davis2017"),
        (["--dataset", "folder", "--recipe", "none", "--set", "routing.score_gate=3"], 2, "takes no --set"),
        (["--dataset", "folder", "--recipe", "balnced"], 1, "did you mean 'balanced'"),
    ],
)
def test_errors_are_one_line(tmp_path: Path, arguments: list[str], code: int, says: str) -> None:
    root = folder_tree(tmp_path / "clips")
    result = invoke("demo", str(root), *arguments, "--out", str(tmp_path / "out"), code=code)
    assert says in result.output
    assert "Traceback" not in result.output
    assert not (tmp_path / "out").exists()


def test_sparse_alone_is_the_sparse_arm_of_both(tmp_path: Path) -> None:
    root = folder_tree(tmp_path / "clips", ("a",))
    shared = ["demo", str(root), "--dataset", "folder", "--recipe", "fast", "--json"]
    alone = json.loads(invoke(*shared, "--out", str(tmp_path / "one")).stdout)
    both = json.loads(invoke(*shared, "--dense-too", "--out", str(tmp_path / "two")).stdout)
    assert alone["settings"]["arms"] == ["sparse"] and both["settings"]["arms"] == ["dense", "sparse"]
    assert alone["settings"]["weights"]["sparse"] == both["settings"]["weights"]["sparse"]
    assert alone["sequences"][0]["sparse"]["objects"] == both["sequences"][0]["sparse"]["objects"]

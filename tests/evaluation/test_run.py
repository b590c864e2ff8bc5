"""`evaluate` end to end on tiny data sets with the demo model: scores, predictions, resuming, traces."""

from __future__ import annotations

import csv
import json
import math
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import surgery
from surgery import DatasetError, evaluate, sparsify, status
from surgery.demo import load
from surgery.evaluation import open_dataset
from surgery.evaluation.sequence_run import Asked, SequenceRun
from surgery.evaluation.trace import run_lengths
from surgery.tracking import TrackedFrame
from surgery.video import read_label_png
from tests.evaluation import packages
from tests.evaluation.trees import (
    SIZE,
    davis_tree,
    folder_tree,
    labels_at,
    mask_of,
    meta_tree,
    mose_tree,
    sav_tree,
    write_frame,
    write_mask,
)


@pytest.fixture(scope="module")
def model() -> Any:
    return load(host="transformers")


class Ran:
    """Which sequences were run, and how many frames."""

    def __init__(self) -> None:
        self.frames: dict[str, int] = {}

    def __call__(self, done: int, total: int, sequence: str) -> None:
        assert 0 <= done <= total
        self.frames.setdefault(sequence, -1)
        self.frames[sequence] += 1


def check_against(
    package: Callable[[Path, Path], packages.Found], scores: surgery.evaluation.Scores, truth: Path, out: Path
) -> None:
    """The reported scores are those the package finds in the files we wrote."""
    values = {}
    for row in scores.sequences:
        for arm in scores.arms:
            place = out / scores.head["predictions"][arm] / row["sequence"]
            found = package(truth / row["sequence"], place)
            ours = {name: (thing["j"], thing["f"]) for name, thing in row[arm]["objects"].items()}
            assert ours.keys() == found.keys()
            for name in ours:
                assert ours[name] == pytest.approx(found[name], abs=1e-6)
                values[row["sequence"], arm, name] = np.mean(found[name])
    for arm in scores.arms:
        expected = np.mean([value for (_, which, _), value in values.items() if which == arm])
        assert scores.summary[arm]["j_and_f"] == pytest.approx(expected, abs=1e-6)


@pytest.mark.parametrize("host", ["sam2", "transformers"])
def test_davis_scores_are_what_the_package_finds_in_the_predictions(tmp_path: Path, host: str) -> None:
    root, out = davis_tree(tmp_path / "davis"), tmp_path / "out"
    stock = load(host=host)  # type: ignore[arg-type]
    scores = evaluate(stock, "davis2017", root, recipe="balanced", dense_too=True, out=out)
    assert not status(stock).sparse
    check_against(packages.davis2017, scores, root / "Annotations/480p", out)
    prompted = read_label_png(out / scores.head["predictions"]["dense"] / "bear" / "00000.png")
    assert (prompted == labels_at(0, {1: 0, 2: 0})).mean() > 0.95
    assert scores.summary["alternating"]


def test_vos_benchmark_scores_with_an_object_that_appears_later(tmp_path: Path, model: Any) -> None:
    root, out = folder_tree(tmp_path / "clips", frames=6), tmp_path / "out"
    scores = evaluate(model, "folder", root, out=out)
    assert scores.arms == ["dense"]
    for name in ("a", "b"):  # the packages want the masks of a sequence in one folder
        shutil.copytree(root / name / "masks", tmp_path / "truth" / name)
    check_against(packages.vos_benchmark, scores, tmp_path / "truth", out)
    first = read_label_png(out / scores.head["predictions"]["dense"] / "b" / "00000.png")
    assert set(np.unique(first)) == {0, 1}  # object 2 is prompted on frame 1


def test_sav_scores_and_overlapping_predictions(tmp_path: Path, model: Any) -> None:
    root, out = sav_tree(tmp_path / "sav"), tmp_path / "out"
    scores = evaluate(model, "sav", root, out=out)
    check_against(packages.sav, scores, root / "Annotations_6fps", out)
    place = out / scores.head["predictions"]["dense"] / "sav_000001"
    assert sorted(entry.name for entry in place.iterdir()) == ["000", "001"]
    assert len(list((place / "000").iterdir())) == 13
    assert not read_label_png(place / "001" / "00003.png").any()  # before its prompt


@pytest.mark.parametrize(("layout", "tree"), [("sav", sav_tree), ("folder", folder_tree)])
def test_masks_overlap_only_where_the_truth_may(tmp_path: Path, layout: str, tree: Callable[[Path], Path]) -> None:
    one = SequenceRun(Asked(open_dataset(layout, tree(tmp_path)).sequences[-1], None, "vos-benchmark", 0.008), {})
    logits = {1: np.full(SIZE, 3.0, np.float32), 2: np.full(SIZE, 5.0, np.float32)}
    masks = list(one._masks(TrackedFrame(0, np.zeros((*SIZE, 3), np.uint8), logits, 0.0, None)).values())
    assert [bool(mask.all()) for mask in masks] == [layout == "sav", True]
    assert (masks[0] & masks[1]).any() == (layout == "sav")


def test_without_public_truth_there_are_predictions_and_no_scores(tmp_path: Path, model: Any) -> None:
    root, out = meta_tree(tmp_path / "yt", "ytvos", "valid", full=False), tmp_path / "out"
    scores = evaluate(model, "ytvos", root, recipe="balanced", dense_too=True, out=out)
    assert scores.summary["sparse"]["j_and_f"] is None
    assert scores.summary["difference"]["j_and_f"] is None
    assert {item["object"] for item in scores.not_scored} == {"1", "2"}
    place = out / scores.head["predictions"]["sparse"] / "vid"
    assert place.parent.name == "Annotations"
    assert sorted(path.stem for path in place.iterdir()) == [f"{5 * index:05d}" for index in range(6)]
    assert 2 in read_label_png(place / "00010.png")
    mose = evaluate(model, "mose", mose_tree(tmp_path / "mose", "valid"))
    assert mose.sequences[0]["dense"]["j"] is None
    assert json.loads(json.dumps(mose.as_dict())) == mose.as_dict()


def test_lvos_and_ytvos_with_truth(tmp_path: Path, model: Any) -> None:
    lvos = evaluate(model, "lvos", meta_tree(tmp_path / "lvos", "lvos", "valid", full=True))
    counts = {name: thing["frames"] for name, thing in lvos.sequences[0]["dense"]["objects"].items()}
    assert counts == {"1": 5, "2": 3}
    ytvos = evaluate(model, "ytvos", meta_tree(tmp_path / "yt", "ytvos", "train", full=True), split="train")
    counts = {name: thing["frames"] for name, thing in ytvos.sequences[0]["dense"]["objects"].items()}
    assert counts == {"1": 5, "2": 3}


def test_exact_recipe_makes_no_difference(tmp_path: Path, model: Any) -> None:
    root, out = folder_tree(tmp_path / "clips"), tmp_path / "out"
    scores = evaluate(model, "folder", root, recipe="exact", dense_too=True, out=out)
    difference = scores.summary["difference"]["j_and_f"]
    assert (difference["mean"], difference["low"], difference["high"], difference["sequences"]) == (0, 0, 0, 2)
    places = [out / scores.head["predictions"][arm] for arm in scores.arms]
    for path in places[0].rglob("*.png"):
        assert path.read_bytes() == (places[1] / path.relative_to(places[0])).read_bytes()


def test_a_sparse_model_is_taken_as_it_is(tmp_path: Path, model: Any) -> None:
    root = folder_tree(tmp_path / "clips", ("a",))
    ours = sparsify(load(host="transformers"), "fast")
    scores = evaluate(ours, "folder", root, dense_too=True)
    assert scores.head["settings"]["recipe"]["metadata"]["name"] == "fast"
    assert status(ours).sparse
    stock = evaluate(model, "folder", root)
    assert scores.sequences[0]["dense"]["j"] == stock.sequences[0]["dense"]["j"]
    alone = evaluate(ours, "folder", root)
    assert alone.arms == ["sparse"] and not alone.summary["alternating"]
    assert alone.sequences[0]["sparse"]["j"] == scores.sequences[0]["sparse"]["j"]
    assert "speedup" not in alone.summary and "difference" not in alone.sequences[0]


def test_the_written_format(tmp_path: Path, model: Any) -> None:
    root, out = folder_tree(tmp_path / "clips", frames=6), tmp_path / "out"
    scores = evaluate(
        model, "folder", root, recipe="balanced", dense_too=True, out=out, name="demo", command="surgery eval demo"
    )
    written = json.loads((out / "eval.json").read_text())
    assert written == json.loads(json.dumps(scores.as_dict()))
    assert (written["kind"], written["schema"], written["command"]) == ("eval", 1, "surgery eval demo")
    assert {"platform", "cpu", "cores", "device", "versions"} <= written["machine"].keys()
    assert {"key", "date", "settings", "dataset_root", "predictions", "summary", "not_scored"} <= written.keys()
    row = written["sequences"][0]
    assert row["windows_kept"] == row["sparse"]["windows_kept"] and 0 < row["windows_kept"] <= 1
    assert 0 < row["keys_kept"] <= 1
    assert row["ms"]["alternating"] and row["ms"]["dense"] > 0
    assert row["difference"]["j"] == pytest.approx(row["sparse"]["j"] - row["dense"]["j"])
    stock, sparse = (
        np.median([ms for one in written["sequences"] for ms in one[arm]["frame_ms"]]) for arm in ("dense", "sparse")
    )
    assert [written["summary"][arm]["ms"] for arm in ("dense", "sparse")] == [stock, sparse]
    assert written["summary"]["speedup"]["mean"] == pytest.approx(stock / sparse)
    assert written["summary"]["difference"]["j"]["sequences"] == 2
    assert written["traces"] is None
    table = list(csv.DictReader((out / "eval.csv").open()))
    assert [line["level"] for line in table].count("object") == 2 * 4
    last = next(line for line in table if line["level"] == "summary" and line["arm"] == "sparse")
    assert math.isclose(float(last["j_and_f"]), written["summary"]["sparse"]["j_and_f"])


def test_finished_sequences_are_not_run_again(tmp_path: Path, model: Any) -> None:
    root, out = folder_tree(tmp_path / "clips"), tmp_path / "out"
    first, again, part = Ran(), Ran(), Ran()
    scores = evaluate(model, "folder", root, sequences=["a"], out=out, progress=first)
    assert first.frames == {"a": 5}
    both = evaluate(model, "folder", root, out=out, progress=again)
    assert again.frames == {"b": 5}
    assert both.sequences[0] == scores.sequences[0]
    shutil.rmtree(out / both.head["predictions"]["dense"] / "a")
    evaluate(model, "folder", root, out=out, progress=part)
    assert part.frames == {"a": 5}  # its masks were gone


def test_stale_results_are_never_read(tmp_path: Path, model: Any) -> None:
    root, out = folder_tree(tmp_path / "clips"), tmp_path / "out"

    def ran(model: Any = model, **changed: Any) -> tuple[str, set[str]]:
        seen = Ran()
        scores = evaluate(model, "folder", root, out=out, progress=seen, **changed)
        return scores.head["key"], set(seen.frames)

    key, everything = ran()
    assert everything == {"a", "b"} and ran() == (key, set())
    keys = {key}
    other = load(host="transformers")
    with torch.no_grad():
        next(other.parameters()).view(-1)[0] += 1e-3
    changes: list[dict[str, Any]] = [
        {"model": other},
        {"model": load(host="sam2")},
        {"recipe": "balanced"},
        {"recipe": surgery.Recipe.load("balanced", ["routing.score_gate=3"])},
        {"max_frames": 4},
        {"convention": "davis2017"},
        {"tolerance": 0.02},
        {"record": True},
        {"recipe": "balanced", "dense_too": True},
    ]
    for change in changes:
        other_key, seen = ran(**change)
        assert seen == {"a", "b"}, change
        keys.add(other_key)
    assert len(keys) == 1 + len(changes)
    write_mask(root / "b/masks/00003.png", labels_at(2, {1: 0, 2: 1}))
    assert ran() == (key, {"b"})  # another truth, for one sequence
    result = out / "runs" / key / "sequences" / "a.json"
    result.write_text(result.read_text()[:50])
    assert ran() == (key, {"a"})


def test_a_trace_holds_the_masks_that_were_written(tmp_path: Path, model: Any) -> None:
    root, out = folder_tree(tmp_path / "clips", ("x", "b"), frames=6), tmp_path / "out"
    scores = evaluate(model, "folder", root, recipe="balanced", dense_too=True, out=out, record=True)
    trace = json.loads((out / "runs" / scores.head["key"] / "traces" / "b.json").read_text())
    assert (trace["kind"], trace["schema"], trace["sequence"], trace["size"]) == ("trace", 1, "b", list(SIZE))
    assert trace["grid"] == [4, 4] and trace["objects"] == ["1", "2"]
    assert [frame["index"] for frame in trace["frames"]] == list(range(6))
    for frame in trace["frames"]:
        for name, arms in frame["masks"].items():
            for arm, runs in arms.items():
                assert sum(runs) == SIZE[0] * SIZE[1]
                place = out / scores.head["predictions"][arm] / "b" / f"{frame['name']}.png"
                assert (mask_of(runs, SIZE) == (read_label_png(place) == int(name))).all()
    prompted, tracked = trace["frames"][0], trace["frames"][5]
    assert (prompted["windows"], prompted["dense_reason"]) == (None, "prompted frame")
    assert set(tracked["windows"]) <= set(range(16)) and 0 < tracked["keys_kept"] <= 1
    assert tracked["queries_kept"] is None
    assert set(trace["frames"][0]["masks"]) == {"1"} and set(tracked["masks"]) == {"1", "2"}
    assert trace["tokens"] == [16, 16]
    kept = [frame["tokens_kept"] for frame in trace["frames"]]
    assert kept[-1] is None, "the last frame is never read"
    assert kept[3] == sorted(set(kept[3])) and 0 < len(kept[3]) < 256 and kept[3][0] >= 0 and kept[3][-1] < 256
    dense = [frame for frame in trace["frames"] if frame["dense_reason"] not in (None, "prompted frame")]
    assert all(len(frame["windows"]) == 16 for frame in dense)
    # Frame 1 prompts object 2 while object 1 is tracked: a dense frame that the session counts.
    kept = [1.0] + [len(frame["windows"]) / 16 for frame in trace["frames"][2:]]
    row = next(row for row in scores.sequences if row["sequence"] == "b")
    assert np.mean(kept) == pytest.approx(row["windows_kept"])
    assert evaluate(model, "folder", root, recipe="balanced", dense_too=True, out=out, record=True).sequences


def test_run_lengths_round_trip() -> None:
    random = np.random.default_rng(0)
    for shape in ((1, 1), (3, 5), (7, 2)):
        for share in (0.0, 0.5, 1.0):
            mask = random.random(shape) < share
            runs = run_lengths(mask)
            assert (mask_of(runs, shape) == mask).all() and all(run > 0 for run in runs[1:])


def test_bad_arguments(tmp_path: Path, model: Any) -> None:
    root = folder_tree(tmp_path / "clips")
    for arguments, says in [
        ({"convention": "davis"}, "did you mean 'davis2017'"),
        ({"max_frames": 0}, "max_frames 0, expected at least 1"),
        ({"tolerance": 8}, "tolerance 8, expected a share"),
        ({"record": True}, "record writes files"),
        ({"sequences": ["c"]}, "no sequence 'c'"),
        ({"convention": "lvos"}, "has no frame range"),
    ]:
        with pytest.raises(DatasetError, match=says):
            evaluate(model, "folder", root, **arguments)  # type: ignore[arg-type]
    with pytest.raises(DatasetError, match="without a root"):
        evaluate(model, "folder")
    (root / "a/frames/00003.jpg").write_bytes(b"\xff\xd8\xff broken")
    with pytest.raises(DatasetError, match=r"00003.jpg"):
        evaluate(model, "folder", root)
    write_frame(root / "a/frames/00003.jpg", labels_at(3, {1: 0})[:-2])
    with pytest.raises(DatasetError, match=r"00003.jpg: 46x64 pixels.*expected 48x64"):
        evaluate(model, "folder", root)
    blocked = tmp_path / "file"
    blocked.write_text("")
    with pytest.raises(DatasetError, match="cannot be written"):
        evaluate(model, "folder", root, out=blocked)

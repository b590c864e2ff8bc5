"""The matrix script in miniature: its rows, its file, its tables, and the page that holds them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from benchmarks import speed
from benchmarks.arms import Arms
from benchmarks.matrix import Matrix, read_matrix
from benchmarks.tables import SECTIONS, filled, limits, plot, sections, speed_table
from surgery.bench import BenchmarkError, Settings
from surgery.core.parts import PARTS
from surgery.operations import CompileParts
from surgery.operations.compile import Compilation
from surgery.operations.window_routing.bound import WindowRouter
from surgery.recipe import Recipe
from tests.hosts.drive import make

ROOT = Path(__file__).resolve().parents[2]
TILES = ROOT / "benchmarks" / "recipes" / "tiles-queries.yaml"
HOSTS = ("sam2", "transformers")
QUICK = Settings(frames=2, warm=8, module_frames=1)


def measured(host: str, settings: Settings = QUICK, shares: tuple[float, ...] = (0.25, 0.5)) -> dict[float, Any]:
    recipes = [Recipe.load("published-large"), Recipe.load(TILES)]
    found: dict[float, Any] = {}
    Arms(make(host).model, recipes, settings).run(shares, lambda share, rows: found.update({share: rows}))
    return found


@pytest.mark.parametrize("host", HOSTS)
def test_every_share_of_every_arm_is_a_row(host: str) -> None:
    found = measured(host)
    assert list(found) == [0.25, 0.5]
    for share, rows in found.items():
        assert [row["recipe"] for row in rows] == ["published-large", "tiles-queries"]
        for row in rows:
            assert (row["host"], row["baseline"], row["windows_share"]) == (host, "stock", share)
            assert row["windows"]["share"] == pytest.approx(share)
            assert row["interval"][0] <= row["whole_frame_speedup"] <= row["interval"][1]
            assert row["predicted"] > 1
            assert row["measured_over_predicted"] == pytest.approx(row["whole_frame_speedup"] / row["predicted"])
            assert [len(series["ms"]) for series in row["latency"]] == [2, 2]
            assert 0 < row["keys"]["share"] < 0.5
        published, tiles = rows
        assert published["queries"] is None
        # 16 windows: those forced and one that waited longest, in buckets of 4 of the 256 tokens.
        assert tiles["queries"]["share"] == pytest.approx(share + 1 / 16)
        assert tiles["predicted"] > published["predicted"]
        names = {part["name"]: part for part in tiles["modules"]}
        assert names["sparse query routing"]["sparse_ms"] > 0 == names["sparse query routing"]["dense_ms"]
        assert names["sparse window routing"]["sparse_ms"] > 0
    assert found[0.25][0]["predicted"] > found[0.5][0]["predicted"]
    assert found[0.25][0]["latency"][0] == found[0.25][1]["latency"][0], "all arms share the stock frames"


def test_arms_refuse_what_they_cannot_do() -> None:
    model = make("sam2").model
    with pytest.raises(BenchmarkError, match="shares from run"):
        Arms(model, [Recipe.load("fast")], Settings(windows=0.5))
    with pytest.raises(BenchmarkError, match="use bf16"):
        Arms(model, [Recipe.load("fast")], Settings(precision="fp16"))
    with pytest.raises(BenchmarkError, match=r"windows 1\.5"):
        Arms(model, [Recipe.load("fast")], QUICK).run([1.5], lambda *_: None)


def test_the_script_forces_windows_and_wants_recipes_that_route_some(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "speed.json"
    assert speed.main(["--miniature", "--recipes", "fast,memory-only", "--out", str(out)]) == 2
    assert "'memory-only' routes no windows" in capsys.readouterr().err and not out.exists()


def test_the_script_resumes_and_keeps_every_finished_share(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "speed.json"
    common = ["--miniature", "--hosts", "sam2", "--device", "cpu", "--recipes", "fast", "--out", str(out)]
    common += ["--precision", "bf16", "--objects", "2"]
    assert speed.main([*common, "--shares", "0.25"]) == 0
    first = read_matrix(out)
    assert {"command", "machine", "date", "not_measured"} <= set(first)
    (row,) = first["rows"]
    for name in (
        "model",
        "precision",
        "device",
        "whole_frame_speedup",
        "objects",
        "compile",
        "case",
        "code",
        "command",
    ):
        assert name in row
    assert (row["model"], row["precision"], row["device"], row["objects"]) == ("demo", "bf16", "cpu", 2)
    assert speed.main([*common, "--shares", "0.25,0.5"]) == 0
    second = read_matrix(out)["rows"]
    assert second[0] == row and [one["windows_share"] for one in second] == [0.25, 0.5]
    assert "| demo | sam2 | stock | bf16 |" in capsys.readouterr().out
    monkeypatch.setattr(torch, "get_num_threads", lambda: 99)
    assert speed.main([*common, "--shares", "0.125"]) == 2
    assert "threads differ" in capsys.readouterr().err


def test_the_compiling_predictor_is_the_baseline(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch, "compile", lambda function, **_: function)
    out = tmp_path / "speed.json"
    arguments = ["--miniature", "--device", "cpu", "--recipes", "fast", "--shares", "0.25", "--out", str(out)]
    assert speed.main([*arguments, "--baseline", "vos"]) == 0
    (row,) = read_matrix(out)["rows"]
    assert (row["host"], row["baseline"]) == ("sam2", "vos")
    assert row["predicted"] > 1
    assert speed.main([*arguments, "--baseline", "vos", "--hosts", "transformers"]) == 2


def test_stock_and_sparse_arms_are_compiled_by_the_same_operation(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch, "compile", lambda function, **_: function)
    settings = QUICK.model_copy(update={"compile": "all"})
    found: list[Any] = []
    arms = Arms(make("sam2").model, [Recipe.load("fast")], settings)
    compilations: list[Any] = [surgery.find(Compilation) for surgery in arms.surgeries if surgery is not None]
    assert [each.settings for each in compilations] == [CompileParts(), CompileParts()]
    assert arms.surgeries[0] is not None and arms.surgeries[0].find(WindowRouter) is None
    arms.run([0.25], lambda _, rows: found.extend(rows))
    assert [set(each.spent) for each in compilations] == [set(PARTS)] * 2
    assert all(spent.kinds > 0 for each in compilations for spent in each.spent.values())
    assert found[0]["compile"] == "all" and "compile" not in found[0]["operations"] and found[0]["predicted"] > 1


def test_a_strange_file_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "speed.json"
    good = {"kind": "speed", "schema": 1, "machine": {}, "rows": []}
    for content, message in (
        (json.dumps({**good, "kind": "bench"}), "kind: Input should be 'speed', got 'bench'"),
        (json.dumps({**good, "rows": [{"case": "x"}]}), r"rows\[0\]\.code: missing"),
        ('{"kind": "speed", "schema": 1}', "machine: missing; rows: missing"),
        ("{", "not JSON"),
    ):
        path.write_text(content)
        with pytest.raises(BenchmarkError, match=message):
            Matrix(path, torch.device("cpu"), "")
    with pytest.raises(BenchmarkError, match="cannot be read"):
        read_matrix(tmp_path / "absent.json")


def row(**changes: Any) -> dict[str, Any]:
    side = {"median": 100.0, "p95": 110.0}
    part = {"dense_ms": 60.0, "sparse_ms": 20.0, "dense_gflop": 8.0, "sparse_gflop": 2.0}
    return {
        "model": "random:large", "host": "sam2", "baseline": "stock", "device": "cpu", "precision": "fp32",
        "compile": "none", "objects": 1, "recipe": "fast", "windows": {"share": 0.25}, "queries": None,
        "keys": {"share": 0.1}, "windows_share": 0.25, "whole_frame_speedup": 1.5, "interval": [1.4, 1.6],
        "predicted": 2.0, "measured_over_predicted": 0.75, "dense": side, "sparse": side, "settings": {"precision": ""},
        "modules": [{"name": "encoder: stage 3", **part}, {"name": "shortcut", **dict.fromkeys(part, 0.0)}],
        "date": "d", **changes,
    }  # fmt: skip


def test_tables_say_what_the_rows_say() -> None:
    rows = [row(windows_share=0.5, windows={"share": 0.5}, whole_frame_speedup=1.2), row()]
    lines = speed_table(rows).splitlines()
    assert len(lines) == 4 and len({line.count("|") for line in lines}) == 1
    assert lines[2].startswith(
        "| large | sam2 | stock | fp32 | none | 1 | `fast` | 25 % | all | 10 % | 1.50x | 1.40 to"
    )
    text = limits(rows)
    assert "25 % of the windows" in text and "50 %" not in text
    assert "| encoder: stage 3 | 60.0 | 20.0 | 100% | 3.00x | 4.00x |" in text
    sizes = limits([row(model=f"random:{size}") for size in ("base-plus", "large", "tiny", "small")])
    assert [line.split(",")[0] for line in sizes.splitlines() if "of the windows" in line] == ["tiny", "large"]
    facts = {"cpu": "c", "device": "cpu", "threads": 1, "cores": 2, "versions": {"torch": "2"}}
    made = sections([("f.json", {"machine": facts, "rows": rows})])
    assert tuple(made) == SECTIONS and "`f.json`" in made["speed-cpu"] and made["speed-cuda"].startswith("Not measured")


def test_a_plot_is_drawn(tmp_path: Path) -> None:
    path = tmp_path / "speed.svg"
    with pytest.raises(BenchmarkError, match="nothing to draw"):
        plot([], path)
    plot([("f", {"rows": [row(), row(windows={"share": 0.5}), row(model="random:tiny")]})], path)
    assert "<svg" in path.read_text()


def test_the_page_holds_the_rows_of_the_committed_files() -> None:
    files = [(f"benchmarks/results/{path.name}", read_matrix(path)) for path in speed.matrices(speed.RESULTS)]
    page = (ROOT / "benchmarks" / "README.md").read_text(encoding="utf-8")
    assert filled(page, sections(files)) == page, "run: python -m benchmarks.speed --page benchmarks/README.md"
    with pytest.raises(BenchmarkError, match="lacks the markers"):
        filled("no markers", sections(files))

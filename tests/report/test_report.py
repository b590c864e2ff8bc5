"""The page as text: what it contains, that it is one file, and that a wrong file is one clear error."""

from __future__ import annotations

import json
import re
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner
from PIL import Image

from surgery.cli.main import main
from surgery.evaluation.trace import run_lengths
from surgery.report.build import write_report
from surgery.report.read import ReportError, read_result
from tests.report.results import HOSTILE, bench, calibration, evaluation, trace

KINDS = {"bench": bench, "eval": evaluation, "calibration": calibration, "trace": trace}


def save(folder: Path, data: Any, name: str = "result.json") -> Path:
    path = folder / name
    path.write_text(json.dumps(data))
    return path


def page_of(folder: Path, *results: Any, **options: Any) -> str:
    files = [save(folder, data, f"{number}.json") for number, data in enumerate(results)]
    return write_report(files, folder / "report.html", **options).read_text(encoding="utf-8")


class Cells(HTMLParser):
    """Texts of the cells, table by table."""

    def __init__(self) -> None:
        super().__init__()
        self.tables: dict[str, list[list[str]]] = {}
        self._rows: list[list[str]] = []
        self._caption: list[str] | None = None
        self.tags: list[str] = []

    def handle_starttag(self, tag: str, attrs: Any) -> None:
        self.tags.append(tag)
        if tag in ("figcaption", "summary"):
            self._caption = []
        elif tag == "tr":
            self._rows.append([])
        elif tag in ("td", "th"):
            self._rows[-1].append("")

    def handle_endtag(self, tag: str) -> None:
        if tag in ("figcaption", "summary"):
            self._rows = self.tables.setdefault("".join(self._caption or ()), [])
            self._caption = None

    def handle_data(self, data: str) -> None:
        if self._caption is not None:
            self._caption.append(data)
        elif self._rows and self._rows[-1]:
            self._rows[-1][-1] += data


def cells(page: str) -> dict[str, list[list[str]]]:
    parser = Cells()
    parser.feed(page)
    return parser.tables


def test_every_kind_is_on_one_page_that_needs_nothing_else(tmp_path: Path) -> None:
    page = page_of(tmp_path, bench(), evaluation(), calibration(), trace())
    outside = [
        url for url in re.findall(r"""(?:src|href)=["']?([^"'>\s]+)""", page) if not url.startswith(("#", "data:"))
    ]
    assert outside == []
    assert not re.search(r"@import|url\(|fetch\(|XMLHttpRequest|import\(", page)
    for words in (
        "Stock and sparse side by side",
        "Quality: sam2.1-hiera-base-plus, recipe balanced",
        "Speed: demo",
        "Calibration",
        "not measured",
    ):
        assert words in page
    assert list(tmp_path.glob(".report*")) == []


def test_worst_clips_come_first_and_unscored_last(tmp_path: Path) -> None:
    tables = cells(page_of(tmp_path, evaluation("bad"), calibration("bad")))
    both = tables["Clips, worst first"]
    clips = [row[0] for row in both if row[0] != "clip"]
    assert clips == ["bad", "fair", "good", "unscored", "bad", "easy"]


def test_hostile_names_are_text_everywhere(tmp_path: Path) -> None:
    page = page_of(tmp_path, bench(HOSTILE), evaluation(HOSTILE), calibration(HOSTILE), trace(HOSTILE), title=HOSTILE)
    assert page.count("<script") == page.count("</script>") == 2
    assert "<img" not in page
    parser = Cells()
    parser.feed(page)
    assert "img" not in parser.tags
    data = re.search(r'id="data">(.*?)</script>', page, re.S)
    assert data is not None
    assert HOSTILE in [one["objects"][0] for one in json.loads(data[1]).values() if "objects" in one]


def test_frames_are_embedded_small_and_found_by_name(tmp_path: Path) -> None:
    folder = tmp_path / "frames" / "clip"
    folder.mkdir(parents=True)
    for number in range(3):
        Image.fromarray(np.full((60, 1000, 3), 80 * number, np.uint8)).save(folder / f"{number:05d}.jpg")
    page = page_of(tmp_path, trace(), frames=tmp_path / "frames")
    assert page.count("data:image/jpeg;base64,") == 3
    assert page_of(tmp_path, trace(), frames=folder).count("data:image/jpeg;base64,") == 3
    with pytest.raises(ReportError, match="no picture of"):
        page_of(tmp_path, trace("other"), frames=tmp_path)
    with pytest.raises(ReportError, match="not a plain file name"):
        page_of(tmp_path, trace("../frames"), frames=tmp_path)
    with pytest.raises(ReportError, match="no trace"):
        page_of(tmp_path, bench(), frames=folder)
    with pytest.raises(ReportError, match="not a folder"):
        page_of(tmp_path, trace(), frames=tmp_path / "nowhere")
    (folder / "00000.jpg").write_text("no picture")
    with pytest.raises(ReportError, match=r"00000\.jpg: not a picture"):
        page_of(tmp_path, trace(), frames=folder)


def test_run_lengths_of_a_real_mask_are_accepted(tmp_path: Path) -> None:
    mask = np.random.default_rng(0).random((6, 8)) > 0.5
    data = trace()
    data["frames"][0]["masks"]["clip"]["sparse"] = run_lengths(mask)
    assert read_result(save(tmp_path, data)).kind == "trace"


def change(data: dict[str, Any], key: str, value: Any) -> dict[str, Any]:
    """A copy with one value replaced, or removed when it is `...`; `key` is a path such as rows.0.model."""
    made = json.loads(json.dumps(data))
    *parents, last = key.split(".")
    at: Any = made
    for part in parents:
        at = at[int(part) if isinstance(at, list) else part]
    place = int(last) if isinstance(at, list) else last
    if value is ...:
        del at[place]
    else:
        at[place] = value
    return made


@pytest.mark.parametrize(
    ("kind", "key", "value", "message"),
    [
        ("bench", "rows.0.model", ..., "rows[0].model: missing"),
        ("bench", "rows.1.dense.median", "20", "rows[1].dense.median: Input should be a valid number, got '20'"),
        ("bench", "rows.0.objects", True, "rows[0].objects: Input should be a valid integer, got True"),
        ("bench", "rows", {}, "rows: Input should be a valid list, got {}"),
        ("bench", "rows.0.latency.0.ms.1", None, "rows[0].latency[0].ms[1]: Input should be a valid number, got None"),
        ("eval", "summary", ..., "summary: missing"),
        ("eval", "summary.sparse.windows_kept", "all", "summary.sparse.windows_kept: Input should be a valid number"),
        ("trace", "fps", "30", "fps: Input should be a valid number, got '30'"),
        ("eval", "sequences.2.sequence", 3, "sequences[2].sequence: Input should be a valid string, got 3"),
        ("trace", "frames.0.tokens_kept", [0], "frames[0].tokens_kept: 0 is not in the grid None"),
        ("trace", "tokens", [16], "tokens: List should have at least 2 items after validation, not 1, got [16]"),
        ("calibration", "candidates.0.run", 1, "candidates[0].run: Input should be a valid boolean, got 1"),
        ("calibration", "clips.0.role", ..., "clips[0].role: missing"),
        (
            "trace",
            "frames.1.masks.clip.dense",
            [1, 2],
            "frames[1].masks.clip.dense: lengths add up to 3, not 48",
        ),
        ("trace", "frames.1.windows", [9], "frames[1].windows: 9 is not in the grid"),
        ("trace", "size", [6], "size: List should have at least 2 items"),
        ("trace", "frames", [], "frames: List should have at least 1 item"),
        ("trace", "objects", [], "no such object"),
        ("trace", "frames.0.masks.clip", {"sparse": [1, -1]}, "masks.clip.sparse[1]: Input should be greater than or"),
        (
            "trace",
            "frames.0.masks.clip",
            {"other": [48]},
            "masks.clip.other.[key]: Input should be 'dense' or 'sparse'",
        ),
        ("bench", "kind", "bensh", "did you mean 'bench'"),
        ("bench", "kind", ..., "kind: missing"),
        ("bench", "schema", 2, "schema: Input should be 1, got 2"),
    ],
)
def test_a_wrong_file_is_named_with_its_key(tmp_path: Path, kind: str, key: str, value: Any, message: str) -> None:
    path = save(tmp_path, change(KINDS[kind](), key, value))
    with pytest.raises(ReportError) as caught:
        write_report([path], tmp_path / "report.html")
    assert str(caught.value).startswith(f"{path}: ")
    assert message in str(caught.value)
    assert not (tmp_path / "report.html").exists()


@pytest.mark.parametrize(
    ("text", "message"), [("{", "not JSON"), ("[]", r"expected an object, got \[\]"), ('{"kind": NaN}', "NaN")]
)
def test_what_is_not_json_is_refused(tmp_path: Path, text: str, message: str) -> None:
    path = tmp_path / "broken.json"
    path.write_text(text)
    with pytest.raises(ReportError, match=message):
        read_result(path)
    with pytest.raises(ReportError, match="cannot be read"):
        read_result(tmp_path / "absent.json")
    with pytest.raises(ReportError, match="no result file"):
        write_report([], tmp_path / "report.html")
    with pytest.raises(ReportError, match="cannot be written"):
        write_report([save(tmp_path, bench())], tmp_path / "no" / "folder.html")


def test_the_outcome_comes_first_then_the_player(tmp_path: Path) -> None:
    page = page_of(tmp_path, trace(), bench(), calibration(), evaluation())
    marks = ["tracked 4 clips of davis2017 twice", "<strong>1.50x</strong>", "<strong>-2.0 points</strong>",
             'class="player"', "<table", "was timed on"]  # fmt: skip
    places = [page.index(mark) for mark in marks]
    assert places == sorted(places)
    assert [page.count(mark) for mark in marks[:3]] == [1, 1, 1]


@pytest.mark.parametrize(
    ("result", "shown"),
    [
        (bench(), ["1.30x to 1.30x", "2 cases", "measures no quality"]),
        (calibration(), ["Met", "-1.0 points", "40%", "1 to fit, 1 held out"]),
        (trace(), ["side by side"]),
    ],
)
def test_every_kind_says_what_came_out(tmp_path: Path, result: Any, shown: list[str]) -> None:
    page = page_of(tmp_path, result)
    assert [words for words in shown if words not in page] == []


def test_one_model_alone_claims_no_gain(tmp_path: Path) -> None:
    data = evaluation()
    for key in ("dense", "difference", "speedup"):
        del data["summary"][key]
    page = page_of(tmp_path, data)
    assert "No other model ran beside it." in page and "<strong>78.0</strong>" in page
    assert "as fast as stock" not in page


def test_only_runs_on_the_same_data_and_machine_share_a_chart(tmp_path: Path) -> None:
    def charts(*results: Any) -> int:
        return page_of(tmp_path, *results).count("Every evaluation: stock and sparse.</figcaption>")

    other = change(evaluation(), "machine.cpu", "another CPU")
    assert charts(evaluation()) == charts(evaluation(), other) == 0
    assert charts(evaluation(), other, evaluation()) == 1
    assert "A100" not in page_of(tmp_path, evaluation(), bench(), evaluation())


def test_the_command(tmp_path: Path) -> None:
    path = save(tmp_path, bench())
    done = CliRunner().invoke(main, ["report", str(path), "--out", str(tmp_path / "r.html")])
    assert done.exit_code == 0 and "r.html" in done.output
    failed = CliRunner().invoke(main, ["report", str(tmp_path / "nothing.json")])
    assert failed.exit_code == 1 and "nothing.json: cannot be read" in failed.stderr

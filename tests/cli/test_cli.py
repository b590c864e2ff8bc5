"""The command line, end to end on small models: outputs on disk, JSON on stdout, one clear error each."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner, Result

from surgery.cli.main import main
from surgery.video import read_label_png, write_label_png, write_video
from surgery.video.frames import open_video
from tests.conftest import shared


def invoke(*arguments: str, code: int = 0) -> Result:
    result = CliRunner().invoke(main, list(arguments))
    assert result.exit_code == code, (result.output, result.exception)
    return result


def clip(frames: int = 10, size: tuple[int, int] = (90, 120)) -> np.ndarray:
    pixels = np.full((frames, *size, 3), 40, dtype=np.uint8)
    for number in range(frames):
        pixels[number, 30:60, 20 + 4 * number : 50 + 4 * number] = (230, 90, 20)
    return pixels


@pytest.fixture
def mp4(tmp_path: Path) -> Path:
    path = tmp_path / "clip.mp4"
    write_video(path, clip(), 12.0)
    return path


@pytest.mark.parametrize("host", ["sam2", "transformers"])
@pytest.mark.parametrize("recipe", ["balanced", "none"])
def test_track_writes_masks_overlay_and_summary(tmp_path: Path, mp4: Path, host: str, recipe: str) -> None:
    out = tmp_path / "out"
    result = invoke(
        "track", str(mp4), "--model", "demo", "--host", host, "--recipe", recipe, "--box", "20,30,50,60",
        "--point", "90,15@3#2", "--out", str(out), "--show-windows", "--json",
    )  # fmt: skip
    summary = json.loads(result.stdout)
    assert summary == json.loads((out / "summary.json").read_text())
    assert summary["frames"] == 10
    assert summary["host"] == host
    masks = sorted((out / "masks").glob("*.png"))
    assert [path.name for path in masks] == [f"{number:05d}.png" for number in range(10)]
    assert read_label_png(masks[0]).shape == (90, 120)
    overlay = open_video(out / "overlay.mp4")
    legend = overlay.size[0] - 90
    assert (overlay.size[1], sum(1 for _ in overlay)) == (120, 10) and 15 < legend < 60
    assert [set(row["area"]) for row in summary["per_frame"]] == [{"1"}] * 3 + [{"1", "2"}] * 7
    if recipe == "none":
        assert summary["recipe"] is None
        assert summary["windows_kept"] is None
    else:
        assert summary["recipe"]["metadata"]["name"] == "balanced"
        assert summary["keys_kept"] is not None
        assert all(row["windows"] for row in summary["per_frame"][4:])


def test_both_hosts_write_nearly_the_same_masks(tmp_path: Path, mp4: Path) -> None:

    labels = np.zeros((90, 120), dtype=np.uint8)
    labels[30:60, 20:50], labels[5:25, 80:110] = 1, 2
    write_label_png(tmp_path / "first.png", labels)
    written = []
    for host in ("sam2", "transformers"):
        out = tmp_path / host
        mask = str(tmp_path / "first.png")
        arguments = ["--model", "demo", "--host", host, "--recipe", "balanced", "--mask", mask]
        invoke("track", str(mp4), *arguments, "--out", str(out))
        written.append(np.stack([read_label_png(path) for path in sorted((out / "masks").glob("*.png"))]))
    assert (written[0] == written[1]).mean() > 0.995
    assert set(np.unique(written[0][0])) == {0, 1, 2}


def test_prompt_on_a_later_frame_starts_there(tmp_path: Path, mp4: Path) -> None:
    for host in ("sam2", "transformers"):
        out = tmp_path / host
        invoke("track", str(mp4), "--model", "demo", "--host", host, "--box", "20,30,50,60@4", "--out", str(out))
        assert len(list((out / "masks").glob("*.png"))) == 6


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--model", "demo"], "no prompt"),
        (["--model", "demo", "--box", "1,2,3"], "box"),
        (["--model", "demo", "--box", "20,30,500,60"], "500"),
        (["--model", "demo", "--point", "20,30@99"], "frame"),
        (["--model", "demo", "--mask", "nowhere.png"], "no mask file"),
        (["--model", "facebok", "--box", "20,30,50,60"], "is not a model"),
        (["--model", "random:huge", "--box", "20,30,50,60"], "unknown size"),
        (["--model", "demo", "--recipe", "balancd", "--box", "20,30,50,60"], "did you mean 'balanced'"),
        (["--model", "demo", "--recipe", "fast", "--set", "routing.rollin=2", "--box", "20,30,50,60"], "'rolling'"),
        (["--model", "demo", "--adapter", "nowhere", "--box", "20,30,50,60"], "no adapter folder"),
    ],
)
def test_bad_input_is_one_clear_error(tmp_path: Path, mp4: Path, arguments: list[str], message: str) -> None:
    out = tmp_path / "out"
    result = invoke("track", str(mp4), *arguments, "--out", str(out), code=1)
    assert message in result.stderr.replace("\n", " ")
    assert result.stderr.count("error:") == 1
    assert "Traceback" not in result.output
    assert not out.exists()


def test_broken_video_and_occupied_folder(tmp_path: Path, mp4: Path) -> None:
    (tmp_path / "broken.mp4").write_bytes(b"not a video" * 100)
    box = ("--model", "demo", "--box", "20,30,50,60")
    assert (
        "broken.mp4" in invoke("track", str(tmp_path / "broken.mp4"), *box, "--out", str(tmp_path / "o"), code=1).stderr
    )
    occupied = invoke("track", str(mp4), *box, "--out", str(tmp_path), code=1).stderr
    assert all(part in occupied for part in ("not empty", "--resume", "--overwrite"))


def test_inspect_counts_what_is_known(monkeypatch: pytest.MonkeyPatch) -> None:
    facts = json.loads(invoke("inspect", "random:tiny", "--json").stdout)
    assert facts["windows"] == {"rows": 5, "columns": 5, "side": 14, "count": 25}
    assert facts["parameters_added"] == 148_800
    own, stock = facts["gflop_per_frame"]
    assert (own["what"], own["windows"], own["at_most"]) == ("recipe", 6, False), "26 % of 25"
    assert own["ratio"] > 1.3 and facts["does"].startswith("26 % of the windows")
    assert stock["encoder"] == pytest.approx(290.8, abs=0.1)
    assert stock["memory_attention"] == pytest.approx(605.6, abs=0.1)
    roles = [block["role"] for block in facts["blocks"]]
    assert roles == ["dense"] * 4 + ["routed"] * 5 + ["merge"] + ["dense"] * 2
    shown = invoke("inspect", "demo", "--recipe", "memory-only").stdout
    assert "memory-only" in shown and "no windows routed" in shown and "…" not in shown


def test_inspect_counts_at_the_recipes_own_point() -> None:
    rows = json.loads(invoke("inspect", "demo", "--json").stdout)["gflop_per_frame"]
    assert [(row["what"], row["windows"]) for row in rows] == [("recipe", 4), ("stock", None)]
    assert rows[0]["ratio"] > 1 == rows[1]["ratio"]
    first = invoke("inspect", "demo", "--recipe", "turbo").stdout.splitlines()[1]
    assert first.startswith("recipe, 4 of 16 windows: ") and "times fewer" in first
    whole = json.loads(invoke("inspect", "demo", "--recipe", "published-large", "--json").stdout)["gflop_per_frame"][0]
    assert (whole["windows"], whole["at_most"]) == (16, True), "the object decides"


def test_recipes_are_listed_and_printed() -> None:
    names = json.loads(invoke("recipes", "--json").stdout)
    published = {"published-base-plus", "published-large", "published-everything"}
    pictures = {"everything-exact", "everything-grid", "everything"}
    tuned = {"faithful", "balanced", "fast", "turbo", "cpu", "streaming"}
    assert set(names) == {"exact", "memory-only"} | tuned | published | pictures
    assert "saliency_mass: 0.7" in invoke("recipes", "balanced").stdout
    assert (
        json.loads(invoke("recipes", "balanced", "--set", "retrieval.keep=0.2", "--json").stdout)["operations"][1][
            "keep"
        ]
        == 0.2
    )
    assert "did you mean" in invoke("recipes", "balence", code=1).stderr


def test_demo_writes_table_report_and_video(tmp_path: Path) -> None:
    out = tmp_path / "demo"
    result = invoke("demo", "--clips", "2", "--frames", "5", "--out", str(out), "--json")
    summary = json.loads(result.stdout)
    assert summary["adapter"] == "demo-balanced"
    assert 0 <= summary["dense"]["j_and_f"] <= 1
    assert summary["published"]["keys_kept"] == 1.0, "the published method prunes nothing in the first seven frames"
    assert summary["sparse"]["keys_kept"] < 1.0
    assert {path.name for path in out.iterdir()} == {"report.html", "side-by-side.mp4", "summary.json"}
    page = (out / "report.html").read_text()
    assert "http" not in page.replace("data:", "")
    again = json.loads(invoke("demo", "--clips", "2", "--frames", "5", "--out", str(tmp_path / "two"), "--json").stdout)
    assert again["dense"]["j"] == summary["dense"]["j"]


@pytest.mark.parametrize("host", ["sam2", "transformers"])
@pytest.mark.parametrize("prompt", ["mask", "box", "point"])
def test_demo_eval_scores_both_models(prompt: str, host: str) -> None:
    arguments = ("demo-eval", "--clips", "2", "--frames", "4", "--prompt", prompt, "--host", host, "--json")
    summary = json.loads(invoke(*arguments).stdout)
    for part in ("dense", "sparse"):
        assert 0 <= summary[part]["j"] <= 1
        assert summary[part]["j_and_f"] == pytest.approx((summary[part]["j"] + summary[part]["f"]) / 2)
        assert summary[part]["ms_per_frame"] > 0
    assert 0 < summary["sparse"]["windows_kept"] <= 1
    exact = json.loads(invoke(*arguments, "--recipe", "exact").stdout)
    assert exact["sparse"]["j_and_f"] == exact["dense"]["j_and_f"] == summary["dense"]["j_and_f"]
    assert (exact["sparse"]["windows_kept"], exact["sparse"]["keys_kept"]) == (1.0, 1.0)


def test_demo_clips_writes_a_davis_folder(tmp_path: Path) -> None:
    result = invoke("demo-clips", "--out", str(tmp_path), "--clips", "2", "--frames", "3", "--size", "64")
    folders = result.stdout.split()
    assert len(folders) == 2
    assert all(len(list(Path(folder).glob("*.jpg"))) == 3 for folder in folders)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["car-shadow", "rollerblade"])
def test_real_clip_at_full_length(tmp_path: Path, name: str) -> None:
    """1024 px, tiny size, random weights: it must run, route, prune and write."""
    frames, mask = shared("clips", name, "frames"), shared("clips", name, "masks", "00000.png")
    out = tmp_path / name
    invoke(
        "track", str(frames), "--model", "random:tiny", "--recipe", "balanced", "--mask", str(mask), "--out", str(out)
    )
    summary = json.loads((out / "summary.json").read_text())
    assert summary["frames"] == len(list(frames.iterdir()))
    assert summary["keys_kept"] < 0.5

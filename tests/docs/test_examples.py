"""What the README and docs/examples tell a reader to run, run as they stand on small models and clips."""

from __future__ import annotations

import json
import re
import shlex
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from click.testing import CliRunner
from PIL import Image

from surgery.adapters import read_adapter
from surgery.cli.main import main
from surgery.demo import model as demo
from surgery.demo.clips import make_clip, write_davis
from surgery.hosts.transformers.driver import new_processor
from surgery.recipe import Recipe
from surgery.video import open_video, write_video

ROOT = Path(__file__).resolve().parents[2]
EXAMPLES = ROOT / "docs" / "examples"
README = (ROOT / "README.md").read_text(encoding="utf-8")
LARGE = "facebook/sam2.1-hiera-large"


def blocks(language: str) -> list[str]:
    """The fenced blocks of the README, in order."""
    return re.findall(rf"^```{language}\n(.*?)^```", README, re.M | re.S)


def script(name: str) -> dict[str, Any]:
    """The names a script of docs/examples defines; its main block does not run."""
    names: dict[str, Any] = {"__name__": "example", "__file__": str(EXAMPLES / name)}
    exec(compile((EXAMPLES / name).read_text(encoding="utf-8"), name, "exec"), names)
    return names


def frames(count: int, seed: int = 1 << 30) -> np.ndarray:
    return make_clip(seed, count, difficulty="easy", objects=1).frames


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The demo model and its processor, saved as `from_pretrained` reads them."""
    folder = tmp_path_factory.mktemp("hub") / "model"
    demo.load("transformers").save_pretrained(folder)
    new_processor(demo.IMAGE_SIZE).save_pretrained(folder)
    return folder


def test_the_committed_clip_is_what_its_script_draws(tmp_path: Path) -> None:
    made = script("make_clip.py")
    made["main"](tmp_path / "clip.mp4")
    drawn, committed = (np.stack(list(open_video(path))) for path in (tmp_path / "clip.mp4", EXAMPLES / "clip.mp4"))
    assert drawn.shape == committed.shape == (20, 256, 256, 3)
    assert np.abs(drawn.astype(int) - committed).mean() < 2  # encoders of other versions may differ a little


def test_the_readmes_track_line_works_in_a_clone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    (line,) = re.findall(r"^surgery track (docs/examples/clip\.mp4 .*)$", README, re.M)
    arguments = shlex.split(line)
    arguments[arguments.index("run")] = str(tmp_path / "run")
    done = CliRunner().invoke(main, ["track", *arguments])
    assert done.exit_code == 0, done.output
    summary = json.loads((tmp_path / "run" / "summary.json").read_text())
    assert summary["frames"] == 20 and summary["recipe"]["metadata"]["name"] == "balanced-calibrated"
    truth = make_clip((1 << 30) + 7, 20, objects=1).labels
    for index, path in enumerate(sorted((tmp_path / "run" / "masks").glob("*.png"))):
        found, true = np.asarray(Image.open(path)) > 0, truth[index] > 0
        assert (found & true).sum() / (found | true).sum() > 0.85, path.name


@pytest.mark.parametrize(
    "block",
    [pytest.param(block, marks=[pytest.mark.slow] * ("calibrate(" in block)) for block in blocks("python")],
    ids=range(len(blocks("python"))),
)
def test_a_python_block_of_the_readme_runs(
    block: str, checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """As it stands, but for the name of the model."""
    monkeypatch.chdir(tmp_path)
    for name in ("a", "b", "clip"):
        write_video(f"{name}.mp4", frames(6, (1 << 30) + ord(name[0])), fps=12)
    assert LARGE in block
    exec(compile(block.replace(LARGE, str(checkpoint)), "README.md", "exec"), {"__name__": "__main__"})
    if "propagate" in block:
        said = capsys.readouterr().out
        assert "5 [1] torch.Size([1, 1, 256, 256])" in said
        assert "recipe 'balanced'" in said


def test_the_readmes_sam2_script_runs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """With the demo model in place of the checkpoint, which no test has."""
    import sam2.build_sam

    (block,) = blocks("py")
    (folder,) = write_davis([make_clip(1 << 30, 4, objects=1)], tmp_path / "davis")
    folder.rename(tmp_path / "frames")
    monkeypatch.chdir(tmp_path)
    model = demo.load("sam2")
    monkeypatch.setattr(sam2.build_sam, "build_sam2_video_predictor", lambda config, weights, device: model)
    exec(compile(block, "README.md", "exec"), {"__name__": "__main__"})
    said = capsys.readouterr().out
    assert "3 [1] (1, 1, 256, 256)" in said
    assert "recipe 'balanced'" in said


def test_streaming_with_transformers(checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    clip = make_clip((1 << 30) + 7, 4, objects=1)
    write_video(tmp_path / "clip.mp4", clip.frames, fps=12)
    out = tmp_path / "masks"
    script("stream_transformers.py")["main"](
        [str(tmp_path / "clip.mp4"), "--box", "110,95,186,171", "--model", str(checkpoint), "--out", str(out)]
    )
    assert sorted(path.name for path in out.iterdir()) == [f"{index:05d}.png" for index in range(4)]
    found, true = np.asarray(Image.open(out / "00003.png")) > 0, clip.labels[3] > 0
    assert (found & true).sum() / (found | true).sum() > 0.85
    assert "trim_caches" in capsys.readouterr().out


def test_calibrating_on_clips(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    data = Recipe.load("fast").to_dict()
    search = {"routing.budget": [0.5]}
    data["calibration"] = {"max_drop": 0.9, "max_clip_drop": 0.9, "search": search}
    (tmp_path / "mine.yaml").write_text(yaml.safe_dump(data))
    clips = []
    for number in range(2):
        clips.append(str(tmp_path / f"{number}.mp4"))
        write_video(clips[-1], frames(4, 900_000_000 + number), fps=12)
    run = script("calibrate_clips.py")["main"]
    options = ["--model", "demo", "--recipe", str(tmp_path / "mine.yaml"), "--out", str(tmp_path / "adapter")]
    assert run([*clips, *options]) == 0
    assert read_adapter(tmp_path / "adapter").config.calibration is not None
    assert (tmp_path / "adapter-report" / "calibration.json").is_file()
    assert "calibrat" in capsys.readouterr().out
    assert run([clips[0], *options]) == 1, "one clip is too few"
    assert "clip" in capsys.readouterr().err


def test_the_notebook_runs_and_is_stored_without_outputs(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(EXAMPLES)
    notebook = json.loads((EXAMPLES / "tour.ipynb").read_text(encoding="utf-8"))
    cells = [cell for cell in notebook["cells"] if cell["cell_type"] == "code"]
    assert [cell["outputs"] for cell in cells] == [[]] * len(cells)
    names: dict[str, Any] = {"__name__": "__main__"}
    for cell in cells:
        exec(compile("".join(cell["source"]), "tour.ipynb", "exec"), names)
    assert np.mean(names["overlaps"]) > 0.9
    assert capsys.readouterr().out.rstrip().endswith("bit-equal")

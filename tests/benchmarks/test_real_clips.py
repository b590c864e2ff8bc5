"""Scores on a folder of clips: the JSON holds the numbers of `surgery.evaluation`, the command and the machine."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from PIL import Image

pytest.importorskip("sam2")

from benchmarks.real_clips import main
from surgery.demo.clips import HELD_OUT, make_clip
from surgery.demo.model import WEIGHTS
from surgery.errors import ModelLoadError
from surgery.video.masks import write_label_png


def test_json_holds_scores_command_and_machine(tmp_path: Path) -> None:
    clip = make_clip(HELD_OUT, 3, 256, "easy", objects=1)
    for name in ("frames", "masks"):
        (tmp_path / "clips" / "one" / name).mkdir(parents=True)
    for index, (frame, labels) in enumerate(zip(clip.frames, clip.labels, strict=True)):
        Image.fromarray(frame).save(tmp_path / "clips" / "one" / "frames" / f"{index:05d}.jpg", quality=95)
        write_label_png(tmp_path / "clips" / "one" / "masks" / f"{index:05d}.png", labels)
    out = tmp_path / "scores.json"
    main([str(tmp_path / "clips"), "--weights", str(WEIGHTS), "--out", str(out)])
    made = json.loads(out.read_text())
    assert made["summary"]["dense"]["j_and_f"] > 0.8
    assert made["command"].startswith("python -m benchmarks.real_clips ")
    assert {"torch", "surgery"} <= set(made["machine"]["versions"])
    assert [row["sequence"] for row in made["sequences"]] == ["one"]
    with pytest.raises(ModelLoadError, match="there are no demo weights"):
        main([str(tmp_path / "clips"), "--weights", str(tmp_path / "none.safetensors"), "--out", str(out)])

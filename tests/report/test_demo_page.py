"""The page of a demo run: real figures, a clip to look at, nothing to fetch."""

from __future__ import annotations

import json
import re
from pathlib import Path

import numpy as np

from surgery.demo.model import load
from surgery.demo.page import write_page
from surgery.demo.show import calibrated, run
from surgery.report.read import read_result
from tests.evaluation.trees import mask_of


def test_a_demo_run_becomes_a_page_with_a_player(tmp_path: Path) -> None:
    recipe, adapter = calibrated("balanced")
    found = run(load("sam2"), recipe, 1, 5, "easy", 0, "mask", tmp_path / "v.mp4", lambda: None, adapter, [recipe])
    file = tmp_path / "trace.json"
    file.write_text(json.dumps(found.trace))
    trace = read_result(file).data
    routed = [frame for frame in trace["frames"] if not frame["dense_reason"]]
    assert routed and all(0 < len(frame["windows"]) < np.prod(trace["grid"]) for frame in routed)
    assert trace["frames"][0]["dense_reason"] and trace["frames"][0]["keys_kept"] is None
    assert 0 < trace["frames"][-1]["keys_kept"] < 1
    assert mask_of(trace["frames"][0]["masks"]["1"]["dense"], (256, 256)).any()
    summary = {
        "dense": found.dense.as_dict(), "sparse": found.sparse.as_dict(), "published": found.also[0].as_dict(),
        "dense_frames": found.dense_frames, "recipe": "balanced", "adapter": "demo-balanced", "clips": 1,
        "trained": True,
    }  # fmt: skip
    write_page(tmp_path / "report.html", summary, found)
    page = (tmp_path / "report.html").read_text(encoding="utf-8")
    assert "A miniature SAM 2 tracked 1 synthetic clip twice" in page
    assert f"J&amp;F {100 * found.dense.j_and_f():.1f}" in page
    assert page.count("data:image/jpeg;base64,") == 5
    assert not re.search(r"https?:", page) and "random weights" not in page
    write_page(tmp_path / "report.html", {**summary, "trained": False}, found)
    assert "random weights" in (tmp_path / "report.html").read_text(encoding="utf-8")

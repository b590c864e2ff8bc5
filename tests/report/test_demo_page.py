"""The page of a demo run: real figures, a clip to look at, nothing to fetch."""

from __future__ import annotations

import json
import re
from pathlib import Path

import numpy as np

from surgery import sparsify
from surgery.demo.clips import held_out
from surgery.demo.model import load
from surgery.demo.page import write_page
from surgery.demo.show import calibrated, run
from surgery.report.read import read_result
from tests.evaluation.trees import mask_of


def test_a_demo_run_becomes_a_page_with_a_player(tmp_path: Path) -> None:
    recipe, adapter = calibrated("balanced")
    models = {"dense": load("sam2"), "sparse": sparsify(load("sam2"), recipe, adapter=adapter)}
    models["published"] = sparsify(load("sam2"), recipe)
    found = run(models, held_out(0, 1, 5, difficulty="easy"), video=tmp_path / "v.mp4")
    file = tmp_path / "trace.json"
    file.write_text(json.dumps(found.trace))
    trace = read_result(file).data
    routed = [frame for frame in trace["frames"] if not frame["dense_reason"]]
    assert routed and all(0 < len(frame["windows"]) < np.prod(trace["grid"]) for frame in routed)
    assert trace["frames"][0]["dense_reason"] and trace["frames"][0]["keys_kept"] is None
    assert 0 < trace["frames"][-1]["keys_kept"] < 1
    assert mask_of(trace["frames"][0]["masks"]["1"]["dense"], (256, 256)).any()
    summary = {
        **found.as_dict(), "recipe": {"metadata": {"name": "balanced"}}, "adapter": "demo-balanced", "clips": 1,
    }  # fmt: skip
    write_page(tmp_path / "report.html", summary, found)
    page = (tmp_path / "report.html").read_text(encoding="utf-8")
    assert "A miniature SAM 2 tracked 1 synthetic clip twice" in page
    assert f"J&amp;F {100 * summary['dense']['j_and_f']:.1f}" in page
    assert page.count("data:image/jpeg;base64,") == 5
    assert not re.search(r"https?:", page)

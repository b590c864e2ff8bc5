"""The SAM 3 miniature: it loads and tracks, learns behind stock SAM 2, and an interrupted run goes on exactly."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

pytest.importorskip("sam2")
pytest.importorskip("transformers.models.sam3_tracker_video")
pytest.importorskip("skimage")

from benchmarks import sam3_miniature
from benchmarks.miniatures import MINIATURES
from benchmarks.training import distil, vit
from benchmarks.training.feed import FeedPlan
from surgery import load_adapter, status
from surgery.demo.clips import HELD_OUT, make_clip
from surgery.demo.show import prompt_for
from surgery.errors import ModelLoadError
from surgery.evaluation.metrics import region_j
from surgery.hosts import view_of
from surgery.tracking import track
from surgery.video import labels_from_logits, open_video


def rows(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]


def test_behind_stock_sam2_it_gives_the_same_features() -> None:
    tracker = vit.tracker(seed=3)
    model = sam3_miniature.build(seed=4)
    model.load_state_dict(sam3_miniature.LOADER.from_neutral(vit.neutral(tracker.state_dict())))
    images = torch.randn(2, 3, 192, 192, generator=torch.Generator().manual_seed(0))
    encoder: Any = tracker.image_encoder
    with torch.no_grad():
        stock = tracker.forward_image(images)["backbone_fpn"]
        folded = vit.encode(tracker, images)
        own = model.get_image_features(images * encoder.gain + encoder.shift).fpn_hidden_states
    for one, other, third in zip(stock, folded, own, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(one.flatten(2).permute(2, 0, 1), third, rtol=1e-4, atol=1e-5)


def test_a_stopped_run_goes_on_as_it_would_have(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(distil, "DISTIL", FeedPlan(1, 1, 192, source_frames=1, pool=2, practice=0))
    monkeypatch.setattr(distil, "MASKS", FeedPlan(1, 2, 192, source_frames=2, pool=2))
    monkeypatch.setattr(distil, "LOG_EVERY", 1)
    words = ["--steps", "2", "--masks", "1", "--out"]
    for stop in (["--stop-after", "1"], []):
        distil.Distiller(distil.parse([*words, str(tmp_path / "parts"), *stop])).run()
    distil.Distiller(distil.parse([*words, str(tmp_path / "whole")])).run()
    ours, theirs = ([{**row, "seconds": 0} for row in rows(tmp_path / each)] for each in ("parts", "whole"))
    assert ours == theirs
    assert "fine" in ours[1]
    assert "dice" in ours[2]
    weights = [sam3_miniature.load(tmp_path / each / "weights.safetensors").state_dict() for each in ("parts", "whole")]
    assert all(torch.equal(value, weights[1][name]) for name, value in weights[0].items())


def test_the_committed_miniature_follows_objects_dense_and_sparse() -> None:
    miniature = MINIATURES["sam3"]
    clip = make_clip(HELD_OUT + 100_001, 6, difficulty="easy")
    prompts = [prompt_for("mask", clip.labels[0] == label, label) for label in clip.objects]
    for sparse in (False, True):
        model = miniature.load("transformers_sam3")
        assert view_of(model).name == "transformers_sam3"
        if sparse:
            load_adapter(model, miniature.adapter("balanced"))
        found = list(track(model, open_video(clip.frames), prompts))
        labels = labels_from_logits(found[-1].logits)
        scores = [region_j(np.asarray(labels == each), clip.labels[-1] == each) for each in clip.objects]
        assert np.mean(scores) > 0.5
        if sparse:
            kept = status(model).windows_kept
            assert kept is not None
            assert kept < 1
    assert sam3_miniature.WEIGHTS.stat().st_size <= 12_000_000


def test_other_weights_are_refused(tmp_path: Path) -> None:
    from surgery.demo.model import WEIGHTS

    with pytest.raises(ModelLoadError, match="SAM 3 miniature"):
        sam3_miniature.load(WEIGHTS)
    with pytest.raises(ModelLoadError):
        sam3_miniature.load(tmp_path / "none.safetensors")


def test_a_miniature_has_its_own_hosts() -> None:
    assert MINIATURES["sam3"].host(None) == "transformers_sam3"
    with pytest.raises(ValueError, match="transformers_sam3"):
        MINIATURES["sam3"].host("sam2")

"""Training: a few steps run, an interrupted run continues exactly, and the roll-out is that of the stock modules."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

pytest.importorskip("sam2")
pytest.importorskip("accelerate")

from benchmarks.training.feed import Batch, Feed, FeedPlan, PromptKind, make_points, normalise
from benchmarks.training.judge import track
from benchmarks.training.learner import Weights, encode, roll, set_image_size
from benchmarks.training.train import (
    FINE_TUNING,
    SCHEDULE,
    Options,
    Stage,
    Trainer,
    current_stage,
    fresh_model,
    parameter_groups,
    parse,
    rate_at,
)
from surgery.demo.clips import HELD_OUT, make_clip
from surgery.demo.model import WEIGHTS, build, load

TINY = (Stage(0.5, False, 1, 2, 1.0, 0.5), Stage(1.0, False, 2, 2, 0.5, 0.0))


def options(folder: Path, **more: Any) -> Options:
    return Options(
        out=folder, steps=4, image_size=64, save_every=2, eval_every=100, eval_clips=1, eval_frames=2, log_every=1,
        schedule=TINY, pool=3, **more,
    )  # fmt: skip


def rows(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]


def test_a_resumed_run_equals_an_uninterrupted_one(tmp_path: Path) -> None:
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    Trainer(options(whole)).run()
    Trainer(options(parts, stop_after=2)).run()
    Trainer(options(parts, resume=True)).run()
    first, second = ([row for row in rows(folder) if "loss" in row] for folder in (whole, parts))
    assert [row["step"] for row in first] == [1, 2, 3, 4]
    assert [row["loss"] for row in first] == [row["loss"] for row in second]
    assert all(np.isfinite(row["loss"]) for row in first)
    assert rows(whole)[-1]["mask"] == rows(parts)[-1]["mask"]
    best = load("sam2", weights=parts / "best.safetensors")
    average = torch.load(parts / "last.pt", weights_only=True)["average"]
    assert all(torch.equal(value, average[key].half().float()) for key, value in best.state_dict().items())
    assert not list(parts.glob("*.part"))


def test_fine_tuning_starts_from_given_weights_and_is_judged_in_both_worlds(tmp_path: Path) -> None:
    pytest.importorskip("skimage")
    trainer = Trainer(options(tmp_path, start=WEIGHTS, new_world=1.0))
    given = load("sam2").state_dict()
    assert all(torch.equal(value, given[key]) for key, value in trainer.bare.state_dict().items())
    assert all(torch.equal(value, given[key]) for key, value in trainer.average.state_dict().items())
    row = trainer.evaluate()
    assert {clips[0].name.split("-")[0] for clips in trainer._held_out.values()} == {"medium", "world"}
    scores = [world[kind]["j"] for world in (row, row["new_world"]) for kind in ("mask", "box")]
    assert trainer.best == pytest.approx(sum(scores) / 4)


def test_batches_are_a_function_of_seed_and_step() -> None:
    plan = FeedPlan(2, 3, 64, pool=4)
    feed = Feed(1, plan)
    for step in range(3):
        later = feed.batch(step)
    again = Feed(1, plan).batch(2)
    assert torch.equal(later.images, again.images)
    assert torch.equal(later.masks, again.masks)
    assert later.images.shape == (2, 3, 3, 64, 64)
    assert later.masks[:, 0].flatten(1).any(1).all()
    assert later.clip_of.max() <= 1
    assert all(int(clip.name.split("-")[1]) < HELD_OUT for clip in feed._pool.values())


def test_prompts_lie_on_their_masks() -> None:
    masks = np.zeros((2, 32, 32), dtype=bool)
    masks[0, 4:9, 10:20] = masks[1, 20:30, 2:5] = True
    rng = np.random.default_rng(0)
    coords, labels = make_points(rng, masks, "box", jitter=0.0)
    assert coords.tolist() == [[[10, 4], [19, 8]], [[2, 20], [4, 29]]]
    assert labels.tolist() == [[2, 3], [2, 3]]
    coords, labels = make_points(rng, masks, "point")
    assert all(masks[row, int(y), int(x)] for row, ((x, y),) in enumerate(coords.tolist()))
    assert make_points(rng, masks, "mask") is None


@pytest.mark.parametrize("size", [64, 128])
def test_cheap_encoding_equals_the_stock_one(size: int) -> None:
    model = build("sam2")
    images = torch.randn(1, 3, size, size, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        for ours, theirs in zip(encode(model, images), model.forward_image(images)["backbone_fpn"], strict=True):
            assert (ours - theirs).abs().max() < 1e-5


@pytest.mark.parametrize("kind", ["box", "point"])
def test_roll_out_gives_the_masks_of_stock_tracking(kind: PromptKind) -> None:
    """Without forced memories, the IoU and score that training reports are those of `track_step`."""
    model = build("sam2", seed=2)
    torch.nn.init.constant_(model.sam_mask_decoder.pred_obj_score_head.layers[-1].bias, 5.0)
    # Stock decodes a box prompt with a fallback for unstable masks and binarises its memory; training does neither.
    model.sam_mask_decoder.dynamic_multimask_via_stability = False
    model.binarize_mask_from_pts_for_mem_enc = False
    set_image_size(model, 64)
    clip = make_clip(6, frames=2, size=64, difficulty="easy", objects=2)
    truth = torch.from_numpy(np.stack([clip.labels == label for label in (1, 2)]))
    points = make_points(np.random.default_rng(0), truth[:, 0].numpy(), kind, jitter=0.0)
    batch = Batch(normalise(clip.frames)[None], truth, torch.tensor([0, 0]), kind, points)
    with torch.no_grad():
        parts = roll(model, batch, 0.0, Weights(), torch.Generator())
    logits, scores = track(model, clip, kind)
    small = torch.nn.functional.interpolate(truth[:, 1:].float(), scale_factor=0.25, mode="area")[:, 0] > 0.5
    guess = logits[:, 1] > 0
    iou = ((guess & small).flatten(1).sum(1) / (guess | small).flatten(1).sum(1)).mean()
    assert scores.min() > 0
    assert float(parts["j"]) == pytest.approx(float(iou), abs=5e-3)  # one pixel on the threshold
    assert float(parts["score_accuracy"]) == 1.0


def test_rates_fall_with_fan_in_and_every_parameter_is_trained_once() -> None:
    model = fresh_model(0)
    groups = parameter_groups(model)
    scale = {id(parameter): group["scale"] for group in groups for parameter in group["params"]}
    assert len(scale) == sum(len(group["params"]) for group in groups) == len(list(model.parameters()))
    mlp = model.sam_mask_decoder.transformer.layers[0].mlp.layers
    assert scale[id(mlp[1].weight)] == 0.5 * 128 / 2048
    assert scale[id(model.image_encoder.trunk.blocks[0].attn.qkv.weight)] == 1.0
    undecayed = [parameter for group in groups if not group["weight_decay"] for parameter in group["params"]]
    assert any(parameter is model.maskmem_tpos_enc for parameter in undecayed)
    assert all(parameter.ndim > 1 for group in groups if group["weight_decay"] for parameter in group["params"])


def test_decoder_attends_by_position_from_the_start() -> None:
    attention = fresh_model(0).sam_mask_decoder.transformer.final_attn_token_to_image
    assert torch.equal(attention.q_proj.weight, attention.k_proj.weight)


def test_practice_prompts_visible_objects() -> None:
    batch = Feed(3, FeedPlan(2, 4, 64, pool=4)).batch(1)
    practice = batch.practice
    assert practice is not None
    assert practice.kind in ("box", "point")
    assert len(practice.rows) == len(practice.frames) == len(practice.points[0]) >= len(batch.masks)
    assert batch.masks[practice.rows, practice.frames].flatten(1).any(1).all()


def test_schedule_runs_from_small_to_full_size() -> None:
    for schedule in (SCHEDULE, FINE_TUNING):
        assert [stage.halve for stage in schedule] == sorted((stage.halve for stage in schedule), reverse=True)
        assert schedule[-1].until == 1.0
    assert current_stage(SCHEDULE, 0.0) is SCHEDULE[0]
    assert current_stage(SCHEDULE, 0.9999) is SCHEDULE[-1]
    rates = [rate_at(SCHEDULE, step, 1000) for step in range(1000)]
    assert max(rates) == 1.0
    assert rates[0] == pytest.approx(0.005)
    assert rates[-1] < 0.05


def test_command_line(tmp_path: Path) -> None:
    given = parse(["--out", str(tmp_path), "--steps", "12", "--resume"])
    assert given.out == tmp_path
    assert given.steps == 12
    assert given.resume
    assert given.image_size == 256
    assert given.start is None and given.new_world == 0 and given.schedule is SCHEDULE
    tuned = parse(["--out", str(tmp_path), "--from", "w.safetensors", "--new-world", "0.65", "--fine-tune"])
    assert tuned.start == Path("w.safetensors") and tuned.new_world == 0.65 and tuned.schedule is FINE_TUNING

"""Scores of the demo model on held-out clips while it trains: stock tracking, region similarity J, score accuracy."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F

from benchmarks.training.feed import PromptKind, make_points, normalise
from benchmarks.training.learner import PROMPT_SPAN
from surgery.demo.clips import Clip


@torch.no_grad()
def track(model: Any, clip: Clip, kind: PromptKind, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    """Track all objects of a clip from frame 0 with stock `SAM2Base.track_step`, objects as a batch.

    Args:
        model: a stock SAM2Base in eval mode whose image size is the clip's.
        kind: how frame 0 is prompted; boxes are exact, points are drawn with `seed`.

    Returns:
        mask logits float32 [n, T, S / 4, S / 4] and object score logits float32 [n, T].
    """
    device = model.device
    objects = clip.visible.shape[1]
    truth = np.stack([clip.labels[0] == label for label in range(1, objects + 1)])
    points = make_points(np.random.default_rng(seed), truth, kind, jitter=0.0)
    memory: dict[str, dict[int, Any]] = {"cond_frame_outputs": {}, "non_cond_frame_outputs": {}}
    masks, scores = [], []
    for index in range(len(clip.frames)):
        image = normalise(clip.frames[index : index + 1]).to(device)
        out = model.forward_image(image)
        for name in ("backbone_fpn", "vision_pos_enc"):
            out[name] = [x.expand(objects, -1, -1, -1) for x in out[name]]
        _, features, codes, sizes = model._prepare_backbone_features(out)
        prompted = index == 0
        found = model.track_step(
            frame_idx=index,
            is_init_cond_frame=prompted,
            current_vision_feats=features,
            current_vision_pos_embeds=codes,
            feat_sizes=sizes,
            point_inputs={"point_coords": points[0].to(device), "point_labels": points[1].to(device)}
            if prompted and points is not None
            else None,
            mask_inputs=torch.from_numpy(truth)[:, None].float().to(device) if prompted and points is None else None,
            output_dict=memory,
            num_frames=max(PROMPT_SPAN, len(clip.frames)),
        )
        memory["cond_frame_outputs" if prompted else "non_cond_frame_outputs"][index] = found
        masks.append(found["pred_masks"][:, 0].float().cpu())
        scores.append(found["object_score_logits"][:, 0].float().cpu())
        memory["non_cond_frame_outputs"].pop(index - 16, None)
    return torch.stack(masks, 1), torch.stack(scores, 1)


def score(model: Any, clips: Sequence[Clip], kind: PromptKind) -> dict[str, float]:
    """Return the mean J over objects and tracked frames (two empty masks: 1) and the accuracy of the score's sign."""
    overlaps, right = [], []
    for clip in clips:
        logits, scores = track(model, clip, kind)
        masks = F.interpolate(logits, clip.labels.shape[1:], mode="bilinear", align_corners=False) > 0
        for label in range(1, clip.visible.shape[1] + 1):
            truth = torch.from_numpy(clip.labels == label)[1:]
            guess = masks[label - 1, 1:]
            both = (guess & truth).flatten(1).sum(1).double()
            either = (guess | truth).flatten(1).sum(1).double()
            overlaps.append(torch.where(either > 0, both / either.clamp(min=1), 1.0).mean())
            right.append(((scores[label - 1, 1:] > 0) == truth.flatten(1).any(1)).double().mean())
    return {"j": float(torch.stack(overlaps).mean()), "score_accuracy": float(torch.stack(right).mean())}

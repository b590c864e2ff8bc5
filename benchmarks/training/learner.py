"""How the demo model learns: a differentiable roll-out of stock SAM 2 modules over a window, and its losses.

The stock `track_step` cannot be trained as it stands: it overwrites the masks of an object it believes absent by -1024,
which stops their gradient, and it decodes either one mask or three. Here one decoder pass supervises all four.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F

from benchmarks.training.feed import Batch, Practice

Encoder = Callable[[Any, torch.Tensor], list[torch.Tensor]]

PROMPT_SPAN = 24
"""Clip length told to the model; from 16 frames on, SAM 2 scales the time code of its object pointers the same."""


@dataclass(frozen=True)
class Weights:
    """Weights of the loss terms."""

    focal: float = 20.0
    dice: float = 1.0
    iou: float = 1.0
    score: float = 1.0


@dataclass(frozen=True)
class Decoded:
    """One decoder pass over R objects: mask logits [R, 4, h, w] (token 0 alone, 1 to 3 the candidates), logits of
    their IoU [R, 4], object score logits [R, 1], and the mask tokens [R, 4, C]."""

    masks: torch.Tensor
    iou: torch.Tensor
    score: torch.Tensor
    tokens: torch.Tensor


def set_image_size(model: Any, size: int) -> None:
    """Make a stock SAM 2 model take images of another side (pixels, a multiple of 32).

    Rotary and sine codes follow the feature size by themselves; the prompt encoder's sizes do not.
    """
    grid = size // model.backbone_stride
    model.image_size = size
    model.sam_image_embedding_size = grid
    encoder = model.sam_prompt_encoder
    encoder.image_embedding_size = (grid, grid)
    encoder.input_image_size = (size, size)
    encoder.mask_input_size = (4 * grid, 4 * grid)


def encode(model: Any, images: torch.Tensor) -> list[torch.Tensor]:
    """Return what `model.forward_image(images)["backbone_fpn"]` holds, [N, C, h, w] from fine to coarse, for less work.

    On the two fine levels a lateral 1x1 convolution is followed at once by the decoder's 1x1 convolution; their product
    is applied instead, which spares the 128-channel maps in between, a sixth of a training step.
    """
    finest, fine, coarse, coarsest = model.image_encoder.trunk(images)
    lateral = [convs.conv for convs in model.image_encoder.neck.convs]
    top = F.interpolate(lateral[0](coarsest), scale_factor=2.0, mode="nearest")
    decoder = model.sam_mask_decoder
    return [
        _two_convolutions(finest, lateral[3], decoder.conv_s0),
        _two_convolutions(fine, lateral[2], decoder.conv_s1),
        lateral[1](coarse) + top,
    ]


def _two_convolutions(x: torch.Tensor, first: torch.nn.Conv2d, second: torch.nn.Conv2d) -> torch.Tensor:
    """Apply two 1x1 convolutions as one."""
    assert first.bias is not None
    assert second.bias is not None
    inner, outer = first.weight.flatten(1), second.weight.flatten(1)
    return F.conv2d(x, (outer @ inner)[..., None, None], outer @ first.bias + second.bias)


class Features:
    """Image features of a batch, encoded at once and handed out frame by frame, one row per object."""

    def __init__(self, model: Any, images: torch.Tensor, clip_of: torch.Tensor, encoder: Encoder = encode) -> None:
        self._frames = images.shape[1]
        self._clip_of = clip_of
        self._maps = encoder(model, images.flatten(0, 1))
        self._codes = [model.image_encoder.neck.position_encoding(m[:1]) for m in self._maps]

    def pick(self, rows: torch.Tensor, frames: torch.Tensor) -> list[torch.Tensor]:
        """Return the feature maps [N, C, h, w], fine to coarse, of N (object, frame) pairs."""
        at = self._clip_of[rows] * self._frames + frames
        return [m.index_select(0, at) for m in self._maps]

    def at(self, frame: int) -> dict[str, Any]:
        """Return the features of one frame in the form `SAM2Base` passes around: (HW)RC sequences and sizes."""
        everyone = torch.arange(len(self._clip_of), device=self._clip_of.device)
        maps = self.pick(everyone, torch.full_like(everyone, frame))
        return {
            "maps": maps,
            "current_vision_feats": [m.flatten(2).permute(2, 0, 1) for m in maps],
            "current_vision_pos_embeds": [
                c.flatten(2).permute(2, 0, 1).expand(-1, len(everyone), -1) for c in self._codes
            ],
            "feat_sizes": [tuple(m.shape[-2:]) for m in maps],
        }


def decode(
    model: Any, pixels: torch.Tensor, high: list[torch.Tensor], points: Any, mask: torch.Tensor | None
) -> Decoded:
    """Run prompt encoder and mask decoder once and return all four masks."""
    rows = pixels.shape[0]
    if points is None:
        coords = torch.zeros(rows, 1, 2, device=pixels.device)
        points = (coords, -torch.ones(rows, 1, dtype=torch.int32, device=pixels.device))
    sparse, dense = model.sam_prompt_encoder(points=points, boxes=None, masks=mask)
    head = model.sam_mask_decoder.iou_prediction_head
    head.sigmoid_output = False
    try:
        masks, iou, tokens, score = model.sam_mask_decoder.predict_masks(
            image_embeddings=pixels,
            image_pe=model.sam_prompt_encoder.get_dense_pe(),
            sparse_prompt_embeddings=sparse,
            dense_prompt_embeddings=dense,
            repeat_image=False,
            high_res_features=high,
        )
    finally:
        head.sigmoid_output = True
    return Decoded(masks.float(), iou.float(), score.float(), tokens)


def roll(
    model: Any,
    batch: Batch,
    forcing: float,
    weights: Weights,
    generator: torch.Generator,
    encoder: Encoder = encode,
) -> dict[str, torch.Tensor]:
    """Track a batch with gradients and return its losses and scores, each a 0-d tensor.

    Args:
        model: a stock SAM2Base whose image size is the batch's.
        forcing: chance in [0, 1] that the memory of an object on a frame is made from the true mask; 2.5 times that on
            the prompted frame.
        generator: draws the forced frames.
        encoder: gives the maps of images, as `encode` does.

    Returns:
        `loss` (the weighted sum), `focal`, `dice`, `iou`, `score`, and without gradient `j` (IoU of the mask the model
        would give, over tracked frames that show the object), `practice_j` (of single images) and `score_accuracy`.
    """
    device = batch.images.device
    features = Features(model, batch.images, batch.clip_of, encoder)
    frames = batch.images.shape[1]
    visible = batch.masks.flatten(2).any(-1)
    memory: dict[str, dict[int, Any]] = {"cond_frame_outputs": {}, "non_cond_frame_outputs": {}}
    sums: dict[str, list[torch.Tensor]] = {}
    for frame in range(frames):
        now = features.at(frame)
        truth = batch.masks[:, frame : frame + 1].float()
        seen = visible[:, frame : frame + 1]
        prompted = frame == 0
        if prompted and batch.kind == "mask":
            # The hosts treat a mask prompt differently: stock sam2 takes the pointer of token 0 and stores a memory of
            # the mask at a quarter of its size, transformers takes the best candidate's pointer and the whole mask.
            as_stock = bool(torch.rand((), generator=generator) < 0.5)
            pointer = _pointer_of_mask(model, now, truth, as_stock)
            logits, appear = truth * 20 - 10, seen
            if as_stock:
                low = F.interpolate(logits, scale_factor=0.25, mode="bilinear", align_corners=False, antialias=True)
                logits = F.interpolate(low, size=truth.shape[-2:], mode="bilinear", align_corners=False)
        else:
            found = decode(
                model,
                _condition(model, now, frame, memory),
                now["maps"][:2],
                batch.points if prompted else None,
                None,
            )
            parts = _losses(found, truth, seen, batch.kind if prompted else "track")
            for name, value in parts.items():
                if not (prompted and name in ("j", "score_accuracy")):
                    sums.setdefault(name, []).append(value)
            single = prompted and batch.kind == "box"
            logits, token = _choose(found, single)
            # A tracker can learn nothing from the memory of a wrong first mask, so that one is forced more.
            chance = min(1.0, 2.5 * forcing) if prompted else forcing
            force = torch.rand(len(seen), 1, generator=generator).to(device) < chance
            appear = torch.where(force, seen, found.score > 0)
            logits = F.interpolate(logits, size=truth.shape[-2:], mode="bilinear", align_corners=False)
            logits = torch.where(force[..., None, None], truth * 20 - 10, logits)
            logits = torch.where(appear[..., None, None], logits, -1024.0)
            pointer = model.obj_ptr_proj(token)
        if frame + 1 == frames:
            break
        kept = appear.float()
        pointer = kept * pointer + (1 - kept) * model.no_obj_ptr
        encoded, code = model._encode_new_memory(
            current_vision_feats=now["current_vision_feats"],
            feat_sizes=now["feat_sizes"],
            pred_masks_high_res=logits,
            object_score_logits=kept * 20 - 10,
            is_mask_from_pts=prompted and batch.kind != "mask",
        )
        kind = "cond_frame_outputs" if prompted else "non_cond_frame_outputs"
        memory[kind][frame] = {"maskmem_features": encoded, "maskmem_pos_enc": code, "obj_ptr": pointer}
    means = {name: torch.stack(values).mean() for name, values in sums.items()}
    if batch.practice is not None:
        for name, value in _practise(model, features, batch, batch.practice).items():
            means[name] = means[name] + value if name in means else value
    means["loss"] = sum(getattr(weights, name) * means[name] for name in ("focal", "dice", "iou", "score"))
    return means


def _practise(model: Any, features: Features, batch: Batch, practice: Practice) -> dict[str, torch.Tensor]:
    """Return the mask and IoU losses of segmenting single images from a prompt.

    A clip has one prompted frame among many tracked ones; prompts alone were learnt many times slower than tracking.
    """
    maps = features.pick(practice.rows, practice.frames)
    truth = batch.masks[practice.rows, practice.frames].unsqueeze(1).float()
    found = decode(model, maps[2] + model.no_mem_embed.reshape(1, -1, 1, 1), maps[:2], practice.points, None)
    parts = _losses(found, truth, torch.ones_like(found.score, dtype=torch.bool), practice.kind)
    return {"focal": parts["focal"], "dice": parts["dice"], "iou": parts["iou"], "practice_j": parts["j"]}


def _condition(model: Any, now: dict[str, Any], frame: int, memory: dict[str, dict[int, Any]]) -> torch.Tensor:
    """Return the coarsest feature map [R, C, h, w], conditioned on the memories of earlier frames."""
    return model._prepare_memory_conditioned_features(
        frame_idx=frame,
        is_init_cond_frame=frame == 0,
        current_vision_feats=now["current_vision_feats"][-1:],
        current_vision_pos_embeds=now["current_vision_pos_embeds"][-1:],
        feat_sizes=now["feat_sizes"][-1:],
        output_dict=memory,
        num_frames=PROMPT_SPAN,
    )


def _pointer_of_mask(model: Any, now: dict[str, Any], truth: torch.Tensor, single: bool) -> torch.Tensor:
    """Return the object pointer [R, C] of a mask prompt, as `SAM2Base._use_mask_as_output` makes it."""
    prompt = model.mask_downsample(truth)
    size = model.sam_prompt_encoder.mask_input_size
    if prompt.shape[-2:] != size:
        prompt = F.interpolate(prompt, size=size, mode="bilinear", align_corners=False, antialias=True)
    found = decode(model, now["maps"][2], now["maps"][:2], None, prompt)
    return model.obj_ptr_proj(_choose(found, single)[1])


def _choose(found: Decoded, single: bool) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the mask logits [R, 1, h, w] and token [R, C] that SAM 2 would go on with."""
    if single:
        return found.masks[:, :1], found.tokens[:, 0]
    best = found.iou[:, 1:].argmax(1) + 1
    rows = torch.arange(len(best), device=best.device)
    return found.masks[rows, best].unsqueeze(1), found.tokens[rows, best]


def _losses(found: Decoded, truth: torch.Tensor, seen: torch.Tensor, kind: str) -> dict[str, torch.Tensor]:
    """Return the mean losses of one frame over its R objects; those it does not show count for the score alone."""
    target = F.interpolate(truth, size=found.masks.shape[-2:], mode="area")
    probability = found.masks.sigmoid()
    # The plain focal form: the alpha-weighted one was seen to keep small models on the all-background plateau.
    entropy = F.binary_cross_entropy_with_logits(found.masks, target.expand_as(found.masks), reduction="none")
    focal = (entropy * (probability - target).abs().pow(2)).flatten(2).mean(-1)
    overlap = (probability * target).flatten(2).sum(-1)
    dice = 1 - (2 * overlap + 1) / (probability.flatten(2).sum(-1) + target.flatten(2).sum(-1) + 1)
    hard, real = found.masks > 0, target > 0.5
    both = (hard & real).flatten(2).sum(-1).float()
    either = (hard | real).flatten(2).sum(-1).float()
    iou = both / either.clamp(min=1)
    best = (20 * focal + dice)[:, 1:].argmin(1, keepdim=True) + 1
    shown = seen.float()
    count = shown.sum().clamp(min=1)

    def over_shown(values: torch.Tensor) -> torch.Tensor:
        return (values * shown).sum() / count

    # A click may mean several things: its candidates are free to differ, and token 0 must not be pulled to their
    # average. Elsewhere there is one right mask, and candidates left free would share out the objects of the scene
    # among themselves and ignore prompt and memory: seen for the first 500 steps of a run.
    alone, shared = (0.3, 0.1) if kind == "point" else (1.0, 0.7)

    def over_tokens(values: torch.Tensor) -> torch.Tensor:
        free = values.gather(1, best)
        return over_shown(alone * values[:, :1] + shared * values[:, 1:].mean(1, keepdim=True) + (1 - shared) * free)

    pick = torch.zeros_like(best) if kind == "box" else found.iou[:, 1:].argmax(1, keepdim=True) + 1
    return {
        "focal": over_tokens(focal),
        "dice": over_tokens(dice),
        # Not L1 after the sigmoid: while all masks are bad, its best answer is 0, where the sigmoid has no gradient.
        "iou": over_shown(F.binary_cross_entropy_with_logits(found.iou, iou, reduction="none").mean(1, keepdim=True)),
        "score": F.binary_cross_entropy_with_logits(found.score, shown),
        "j": over_shown(iou.gather(1, pick)).detach(),
        "score_accuracy": ((found.score > 0) == seen).float().mean(),
    }

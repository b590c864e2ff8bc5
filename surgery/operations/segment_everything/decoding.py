"""Prompts to masks: only those are made large that some mask of theirs may survive for."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from surgery.core.pictures import DecoderParts, Filters, Found, Picture, Ranked
from surgery.operations.segment_everything.filters import best_of_each, boxes_of, stability, upsampled
from surgery.operations.segment_everything.folded import transform

AT_ONCE = 16
"""Masks that are held at the picture's size at once."""
FOLDED_AT_ONCE = 8
"""Prompts of one folded pass: what they hold of the image stays in a core's cache."""


@dataclass(frozen=True)
class Decoding:
    """How prompts are decoded. lazy: only prompts with a mask above the least predicted IoU are upscaled. folded: see
    `folded`. batch: prompts at once. masks: three of a prompt, or the one that the host gives where one is asked for.
    """

    lazy: bool
    folded: bool
    batch: int
    masks: int = 3


@dataclass(frozen=True, eq=False)
class Candidates(Ranked):
    """Masks that passed the filters, in the order of their prompts. logits: [n, h, w] as decoded. scores: predicted
    IoU. boxes: int64 [n, 4]. points: [n, 2] in pixels."""

    logits: Tensor
    scores: Tensor
    stability: Tensor
    boxes: Tensor
    points: Tensor

    def __getitem__(self, places: Tensor) -> Candidates:
        return Candidates(*(each[places] for each in vars(self).values()))

    def __len__(self) -> int:
        return len(self.scores)


def joined(several: list[Candidates]) -> Candidates:
    """In order."""
    return Candidates(*(torch.cat(each) for each in zip(*(vars(one).values() for one in several), strict=True)))


def decoded(
    parts: DecoderParts, picture: Picture, sparse: Tensor, least: float, how: Decoding
) -> tuple[Tensor, Tensor, Tensor]:
    """One batch of prompts: places of masks [k] among B * masks, their logits [k, h, w] and predicted IoU [k]."""
    tokens = parts.with_prompts(sparse)
    if how.folded:
        steps = [transform(parts, picture.embedding, picture.positions, few) for few in tokens.split(FOLDED_AT_ONCE)]
        tokens, seen = torch.cat([each for each, _ in steps]), torch.cat([each for _, each in steps])
    else:
        repeated = picture.embedding.repeat_interleave(len(tokens), 0)
        tokens, seen = parts.transform(repeated, picture.positions, tokens)
    scores = parts.scores(tokens)
    asked = scores if how.masks == 1 else scores[:, 1:]
    passes = (asked > least).any(1) if how.lazy and least > 0 else torch.ones_like(asked[:, 0], dtype=torch.bool)
    (rows,) = passes.nonzero(as_tuple=True)
    image = seen[rows].transpose(1, 2).unflatten(2, picture.embedding.shape[2:])
    logits = parts.logits(tokens[rows], parts.upscaled(image, *picture.fine))
    chosen, scores = parts.single(logits, scores[rows]) if how.masks == 1 else (logits[:, 1:], scores[rows, 1:])
    places = rows[:, None] * how.masks + torch.arange(how.masks, device=rows.device)
    keep = scores > least if least > 0 else torch.ones_like(scores, dtype=torch.bool)
    return places[keep], chosen[keep], scores[keep]


def candidates(
    parts: DecoderParts, picture: Picture, embed: Callable[[Tensor], Tensor], prompts: Tensor, points: Tensor,
    filters: Filters, how: Decoding,
) -> Candidates:  # fmt: skip
    """Decode prompts and filter their masks.

    Args:
        embed: some of the prompts -> tokens [B, p, C].
        prompts: as the model takes them, [n, ...].
        points: of the prompts, [n, 2] in pixels.
    """
    found = []
    for few, places in zip(prompts.split(how.batch), points.split(how.batch), strict=True):
        if not len(few):
            break
        index, logits, scores = decoded(parts, picture, embed(few), filters.iou, how)
        found += list(_filtered(logits, scores, places[index // how.masks], picture.size, filters))
    return joined(found) if found else _none(picture)


def _filtered(
    logits: Tensor, scores: Tensor, points: Tensor, size: tuple[int, int], filters: Filters
) -> Iterator[Candidates]:
    for few, score, point in zip(logits.split(AT_ONCE), scores.split(AT_ONCE), points.split(AT_ONCE), strict=True):
        large = upsampled(few, size)
        stable = stability(large, filters.offset)
        if filters.stability > 0:
            keep = stable >= filters.stability if filters.inclusive else stable > filters.stability
        else:
            keep = torch.ones_like(stable, dtype=torch.bool)
        yield Candidates(few[keep], score[keep], stable[keep], boxes_of(large[keep] > 0), point[keep])


def _none(picture: Picture) -> Candidates:
    blank = picture.embedding.new_zeros
    return Candidates(
        blank(0, *picture.fine[0].shape[2:]), blank(0), blank(0), blank(0, 4, dtype=torch.int64), blank(0, 2)
    )


def found(kept: Candidates, size: tuple[int, int], nms: float, ranked: Tensor) -> Found:
    """Of masks that show the same the best, at the picture's size, best first. nms: see `Filters`. ranked: by what."""
    kept = kept[best_of_each(kept.boxes, ranked, nms)]
    masks = torch.zeros(len(kept), *size, dtype=torch.bool, device=kept.logits.device)
    for place in range(0, len(kept), AT_ONCE):
        masks[place : place + AT_ONCE] = upsampled(kept.logits[place : place + AT_ONCE], size) > 0
    return Found(masks, kept.scores, kept.stability, kept.boxes, kept.points)

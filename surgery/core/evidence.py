"""Where each object was on the frame before: masks, score and what the decoder read, noted as the decoder runs."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from surgery.core.attention import split_heads
from surgery.core.constants import constant, steps
from surgery.core.early import Early
from surgery.errors import RecipeError, bypassed

if TYPE_CHECKING:
    from surgery.core.frame import FrameContext, ObjectStep
    from surgery.core.host import HostView


UNSURE = 2.0
"""Mask logits nearer to 0 than this are unsure."""


@dataclass(frozen=True)
class EvidenceSettings:
    """How an operation wants evidence.

    candidates: which mask candidates count, all or the best by predicted IoU; None: either. motion: frames ahead to
    which the mask is moved as well, at the object's speed; 0: not; None: either. inputs: also what the decoder's
    attentions read. doubt: also how unsure the best candidate is.
    """

    candidates: Literal["all", "best"] | None = None
    motion: float | None = None
    inputs: bool = False
    doubt: bool = False

    def beside(self, other: EvidenceSettings | None) -> EvidenceSettings:
        """What both want. Raises RecipeError where they want different masks."""
        if other is None:
            return self
        both: dict[str, Any] = {}
        for name in ("candidates", "motion"):
            mine, its = getattr(self, name), getattr(other, name)
            both[name] = its if mine is None else mine
            if mine is not None and its is not None and mine != its:
                raise RecipeError(f"two operations want evidence of {name} {mine!r} and {its!r}; expected the same")
        return EvidenceSettings(**both, inputs=self.inputs or other.inputs, doubt=self.doubt or other.doubt)


@dataclass(eq=False)
class Evidence:
    """Where one object was on one frame.

    mask: bool [h, w], union of the mask candidates at low resolution, or the best by IoU. score: object score logit,
    one element. decoder_inputs: per token-to-image attention of the decoder, the tokens it read (query, key), kept so
    that the saliency map is computed only when it is asked for. best: the best candidate as well, only while an
    observer looks on. centre: of the mask, where motion is asked for. doubt: see `doubt_of`, where it is asked for.
    early: what the host will want to know of it, see `told`, where somebody has said so in time.
    """

    frame: int
    mask: Tensor
    score: Tensor
    decoder_inputs: tuple[tuple[Tensor, Tensor], ...] = ()
    best: Tensor | None = None
    centre: Tensor | None = None
    doubt: Tensor | None = None
    early: Early | None = None

    def send(self) -> Evidence:
        """Start the copy of what `told` tells. Returns itself."""
        parts = [self.score.reshape(1), self.mask.any().reshape(1)]
        self.early = Early(torch.cat(parts if self.doubt is None else [*parts, self.doubt.reshape(1)]))
        return self

    def told(self) -> Told:
        """Waits for what was sent, or sends it first."""
        early = self.early or self.send().early
        assert early is not None
        score, seen, *doubt = early.values()
        return Told(score, seen > 0, doubt[0] if doubt else None)


class Told(NamedTuple):
    """What the host knows of an object on the frame before. score: logit. seen: whether its mask has a pixel. doubt:
    see `doubt_of`, None where it was not asked for."""

    score: float
    seen: bool
    doubt: float | None


def record_evidence(context: FrameContext | None, masks: Tensor, ious: Tensor | None, score: Tensor) -> None:
    """Remember where the object of this step is. Runs outside compiled regions.

    Args:
        context: of the step. masks: candidate logits [..., M, h, w] (batch 1). ious: [..., M] predicted IoU, used by
            `candidates: best`. score: object score logit, one element.

    Raises:
        ModelStateError: the decoder's attentions bypass the surgery.
    """
    if context is None or context.step is None or context.evidence is None:
        return
    step, settings, inputs = context.step, context.evidence, context.decoder_inputs or []
    candidates = masks.reshape(-1, *masks.shape[-2:])
    score = score.reshape(-1)[:1]
    watched, best = context.watched, None
    if watched or settings.doubt or settings.candidates == "best":
        best = candidates
        if ious is not None and candidates.shape[0] > 1:
            best = candidates.index_select(0, ious.reshape(-1).argmax().reshape(1))
    chosen = candidates if watched or best is None or settings.candidates != "best" else best
    found = union((chosen > 0).unbind()) & (score > 0)
    noted = tuple(each for each in inputs if each is not None)
    if len(noted) < len(inputs):
        raise bypassed(f"the mask decoder ran {len(noted)} of its {len(inputs)} token-to-image attentions")
    known = context.video.evidence
    middle, ahead = None, found
    if settings.motion:
        middle = centre(found)
        ahead = _ahead(known.get(step.obj_id), found, middle, step, settings.motion)
    evidence = Evidence(
        step.frame,
        ahead,
        score,
        noted,
        (best[0] > 0) & (score > 0) if watched and best is not None else None,
        middle,
        doubt_of(best) if best is not None and (watched or settings.doubt) else None,
    )
    # Who reads attention chooses by the score, who asks for doubt by that: on the next frame.
    known[step.obj_id] = evidence.send() if settings.inputs or settings.doubt else evidence


def doubt_of(logits: Tensor) -> Tensor:
    """How unsure a mask is: of the pixels that may be the object's, the share that may as well not be.

    Args:
        logits: of a mask, of any shape. "May be" is a probability above 12 %, "may not be" one below 88 %.

    Returns:
        fp32, 0-d, in [0, 1]; 0 where no pixel may be the object's.
    """
    limits = constant("unsure", logits.device, lambda: torch.tensor([[-UNSURE], [UNSURE]]))
    possible, certain = (logits.reshape(-1) > limits).sum(1)
    return (possible - certain) / possible.clamp(min=1)


def _ahead(before: Evidence | None, mask: Tensor, middle: Tensor, step: ObjectStep, frames: float) -> Tensor:
    """The mask, and where it would be after `frames` at the speed since the frame before, if that is known."""
    if before is None or before.frame != step.previous or before.centre is None:
        return mask
    return mask if before.centre.device != middle.device else moved(mask, (middle - before.centre) * frames)


def widened(mask: Tensor, kernel: int) -> Tensor:
    """A bool [h, w] mask under an odd max-pool kernel in its pixels, 1 leaves it as it is: fp32 [h, w], 0 or 1."""
    grown = mask.to(torch.float32)[None, None]
    return (grown if kernel == 1 else F.max_pool2d(grown, kernel, 1, kernel // 2))[0, 0]


def mask_tokens(mask: Tensor, height: int, width: int, margin: int) -> Tensor:
    """Tokens within `margin` of a mask, in tokens along either axis: bool [h, w] -> bool [height * width]."""
    cell = (mask.shape[-2] // height, mask.shape[-1] // width)
    touched = F.max_pool2d(mask.to(torch.float32)[None, None], cell, cell)
    if margin:
        touched = F.max_pool2d(touched, 2 * margin + 1, 1, margin)
    return touched.flatten() > 0


def union(masks: Sequence[Tensor]) -> Tensor:
    """Of bool masks [h, w], at least one."""
    return masks[0] if len(masks) == 1 else torch.stack(list(masks)).any(0)


def centre(mask: Tensor) -> Tensor:
    """Mean (row, column) of a bool [h, w] mask in its pixels: fp32 [2], not finite for an empty one."""
    height, width = mask.shape
    # Sums of whole numbers below 2 ** 24: exact in whatever order.
    sums = (_places(height, width, mask.device) * mask).sum((1, 2))
    return sums[:2] / sums[2]


def _places(height: int, width: int, device: torch.device) -> Tensor:
    """Row and column of every pixel, and 1: fp32 [3, height, width]."""

    def make() -> Tensor:
        one = torch.ones(height, width, device=device)
        return torch.stack([one.cumsum(0) - 1, one.cumsum(1) - 1, one])

    return constant(("places", height, width), device, make)


def moved(mask: Tensor, offset: Tensor) -> Tensor:
    """A bool [h, w] mask and itself shifted by `offset` (rows, columns; fp32 [2]), what leaves the map cut off.

    The offset stays on the device. One that is not finite (an object that is or was out of sight) shifts nothing.
    """
    offset = torch.nan_to_num(offset, 0.0, 0.0, 0.0).round().to(torch.int64)
    # What comes from beyond the map comes from the border around it.
    shifted = F.pad(mask, (1, 1, 1, 1))
    for axis, size in enumerate(mask.shape):
        source = (steps(size + 1, mask.device)[1:] - offset[axis]).clamp(0, size + 1)
        shifted = shifted.index_select(axis, source)
    return mask | shifted


def saliency_map(host: HostView, evidence: Evidence) -> Tensor:
    """Attention of the decoder's output tokens over the image, mean over its token-to-image attentions: fp32 [T]."""
    layers = []
    for (query, key), module in zip(evidence.decoder_inputs, host.modules("token_to_image"), strict=True):
        projections = host.decoder_projections(module)
        # Of a decoder in half precision the tokens are too, and its weights are not. Quantised ones take fp32.
        dtype = next((weight.dtype for weight in module.parameters()), torch.float32)
        layers.append(prompt_saliency(query.to(dtype), key.to(dtype), *projections))
    return torch.stack(layers).mean(0)


def prompt_saliency(
    query: Tensor, key: Tensor, q_proj: nn.Module, k_proj: nn.Module, heads: int, rows: int = 7
) -> Tensor:
    """Attention of the decoder's output tokens over the image, for one token-to-image attention module.

    Args:
        query: [..., Nq, C] decoder tokens: object score, IoU, four mask tokens, then prompts.
        key: [..., N, C] image tokens as the module receives them.
        q_proj, k_proj: the module's own projections.
        heads: number of heads.
        rows: leading query tokens that are averaged (7 in the published code).

    Returns:
        fp32 [N], mean over heads and the first `rows` queries of the softmax over image tokens; sums to 1.
    """
    query = split_heads(q_proj(query.reshape(-1, query.shape[-1])[:rows]).to(torch.float32), heads)
    key = split_heads(k_proj(key.reshape(-1, key.shape[-1])).to(torch.float32), heads)
    scores = (query @ key.transpose(1, 2)) * query.shape[-1] ** -0.5
    return scores.softmax(-1).mean((0, 1))

"""Single pictures through any host's model: what its mask decoder is made of."""

from __future__ import annotations

from abc import abstractmethod
from typing import Any

import torch
from torch import Tensor

from surgery.core.pictures import DecoderParts, PictureDriver
from surgery.hosts.sam21.tracker import TrackerView


class TrackerPictures(PictureDriver):
    """Pictures through a model of SAM 2's kind."""

    view: TrackerView

    def decoder(self) -> DecoderParts:
        own: Any = self.view.mask_decoder()
        names = self.view.names
        scores = [own.obj_score_token.weight] if hasattr(own, "obj_score_token") else []
        masks, transformer = own.mask_tokens.weight, own.transformer

        def single(logits: Tensor, scores: Tensor) -> tuple[Tensor, Tensor]:
            stable = own.dynamic_multimask_via_stability
            return self.stable_one(logits, scores) if stable else (logits[:, :1], scores[:, :1])

        return DecoderParts(
            torch.cat([*scores, own.iou_token.weight, masks]),
            len(masks),
            [names.two_way(layer) for layer in transformer.layers],
            names.projections(transformer.final_attn_token_to_image),
            names.norm_of(transformer, "_final_attn"),
            self.transform,
            self.upscaled,
            list(own.output_hypernetworks_mlps),
            own.iou_prediction_head,
            single,
        )

    @abstractmethod
    def transform(self, image: Tensor, positions: Tensor, tokens: Tensor) -> tuple[Tensor, Tensor]:
        """See `DecoderParts.transform`."""

    @abstractmethod
    def upscaled(self, image: Tensor, stride4: Tensor, stride8: Tensor) -> Tensor:
        """See `DecoderParts.upscaled`."""

    @abstractmethod
    def stable_one(self, logits: Tensor, scores: Tensor) -> tuple[Tensor, Tensor]:
        """See `DecoderParts.single`: the mask that is stable, or the best of the others."""

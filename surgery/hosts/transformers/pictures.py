"""`transformers`: single pictures, as `Sam2Model` and `pipeline("mask-generation")` treat them."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from PIL import Image
from torch import Tensor

from surgery.core.attention import Projections
from surgery.core.pictures import DecoderParts, Filters, Found, Picture, PictureDriver, Points, TwoWayLayer
from surgery.hosts.transformers.driver import new_processor
from surgery.hosts.transformers.keymap import to_stock


class TransformersPictures(PictureDriver):
    """`Sam2Model` and `Sam2VideoModel`."""

    filters = Filters(iou=0.88, stability=0.95, inclusive=False)

    def __init__(self, view: Any) -> None:
        super().__init__(view)
        self._processor = new_processor(view.image_size()).image_processor

    def encode(self, image: npt.NDArray[np.uint8]) -> Picture:
        model, reference = self.model, next(self.model.parameters())
        size = (int(image.shape[0]), int(image.shape[1]))
        prepared = self._processor(images=Image.fromarray(image), return_tensors="pt")
        pixels = prepared["pixel_values"].to(reference.device, reference.dtype)
        stride4, stride8, embedding = model.get_image_embeddings(pixels)
        empty = model.prompt_encoder.no_mask_embed.weight.reshape(1, -1, 1, 1)
        return Picture(size, embedding + empty, (stride4, stride8), model.get_image_wide_positional_embeddings())

    def grid(self, side: int, picture: Picture) -> Points:
        blank = Image.new("RGB", picture.size[::-1])
        # Places by the longer side, as the host has it: of a picture that is not square they miss a part.
        _, points, _, _ = self._processor.generate_crop_boxes(blank, self.view.image_size(), points_per_crop=side)
        inputs = points[0, :, 0].to(picture.embedding.device)
        return Points(inputs * (max(picture.size) / self.view.image_size()), inputs)

    def point_prompts(self, points: Tensor) -> Tensor:
        labels = torch.ones(1, len(points), 1, dtype=torch.int64, device=points.device)
        return self._prompts(input_points=points[None, :, None], input_labels=labels, input_boxes=None)

    def box_prompts(self, boxes: Tensor) -> Tensor:
        return self._prompts(input_points=None, input_labels=None, input_boxes=boxes[None])

    def _prompts(self, **given: Any) -> Tensor:
        sparse: Tensor = self.model.prompt_encoder(**given, input_masks=None)[0]
        return sparse[0]

    def decoder(self) -> DecoderParts:
        own = self.model.mask_decoder
        transformer, masks = own.transformer, own.mask_tokens.weight

        def transform(image: Tensor, positions: Tensor, tokens: Tensor) -> tuple[Tensor, Tensor]:
            found, seen = transformer(
                point_embeddings=tokens[None],
                image_embeddings=image,
                image_positional_embeddings=positions.expand(len(image), -1, -1, -1),
                attention_similarity=None,
            )
            return found[0], seen[:, 0]

        def upscaled(image: Tensor, stride4: Tensor, stride8: Tensor) -> Tensor:
            found: Tensor = own.activation(own.upscale_layer_norm(own.upscale_conv1(image) + stride8))
            return own.activation(own.upscale_conv2(found) + stride4)

        def single(logits: Tensor, scores: Tensor) -> tuple[Tensor, Tensor]:
            if not own.dynamic_multimask_via_stability:
                return logits[:, :1], scores[:, :1]
            one, score = own._dynamic_multimask_via_stability(logits[None], scores[None])
            return one[0], score[0]

        return DecoderParts(
            torch.cat([own.obj_score_token.weight, own.iou_token.weight, masks]),
            len(masks),
            [_layer(layer) for layer in transformer.layers],
            projections(transformer.final_attn_token_to_image),
            transformer.layer_norm_final_attn,
            transform,
            upscaled,
            list(own.output_hypernetworks_mlps),
            own.iou_prediction_head,
            single,
        )

    def channels(self) -> tuple[int, int, int]:
        own = self.model.mask_decoder
        return own.conv_s0.out_channels, own.conv_s1.out_channels, own.hidden_size

    def tensors(self) -> dict[str, Tensor]:
        own = self._own("shared_image_embedding", "vision_encoder", "prompt_encoder", "mask_decoder")
        return to_stock(own)

    def records(self, found: Found, size: tuple[int, int]) -> dict[str, Any]:
        return {"masks": list(found.masks.cpu()), "scores": found.scores, "bounding_boxes": found.boxes}


def projections(attention: Any) -> Projections:
    """Those of an attention of the two-way transformer."""
    heads = attention.num_attention_heads
    return Projections(attention.q_proj, attention.k_proj, attention.v_proj, attention.o_proj, heads)


def _layer(layer: Any) -> TwoWayLayer:
    return TwoWayLayer(
        projections(layer.self_attn),
        projections(layer.cross_attn_token_to_image),
        projections(layer.cross_attn_image_to_token),
        (layer.layer_norm1, layer.layer_norm2, layer.layer_norm3, layer.layer_norm4),
        layer.mlp,
        not layer.skip_first_layer_pe,
    )

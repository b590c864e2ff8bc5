"""`transformers`: single pictures, as `Sam2Model` and `pipeline("mask-generation")` treat them."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from PIL import Image
from torch import Tensor

from surgery.core.pictures import Filters, Found, Picture, Points
from surgery.hosts.sam21.pictures import TrackerPictures
from surgery.hosts.transformers.driver import new_processor
from surgery.hosts.transformers.keymap import to_stock


class TransformersPictures(TrackerPictures):
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

    def transform(self, image: Tensor, positions: Tensor, tokens: Tensor) -> tuple[Tensor, Tensor]:
        found, seen = self.model.mask_decoder.transformer(
            point_embeddings=tokens[None],
            image_embeddings=image,
            image_positional_embeddings=positions.expand(len(image), -1, -1, -1),
            attention_similarity=None,
        )
        return found[0], seen[:, 0]

    def upscaled(self, image: Tensor, stride4: Tensor, stride8: Tensor) -> Tensor:
        own = self.model.mask_decoder
        found: Tensor = own.activation(own.upscale_layer_norm(own.upscale_conv1(image) + stride8))
        return own.activation(own.upscale_conv2(found) + stride4)

    def stable_one(self, logits: Tensor, scores: Tensor) -> tuple[Tensor, Tensor]:
        one, score = self.model.mask_decoder._dynamic_multimask_via_stability(logits[None], scores[None])
        return one[0], score[0]

    def channels(self) -> tuple[int, int, int]:
        own = self.model.mask_decoder
        return own.conv_s0.out_channels, own.conv_s1.out_channels, own.hidden_size

    def tensors(self) -> dict[str, Tensor]:
        return to_stock(self._own("shared_image_embedding", "vision_encoder", "prompt_encoder", "mask_decoder"))

    def records(self, found: Found, size: tuple[int, int]) -> dict[str, Any]:
        return {"masks": list(found.masks.cpu()), "scores": found.scores, "bounding_boxes": found.boxes}

"""Stock `sam2`: single pictures, as `SAM2ImagePredictor` and `SAM2AutomaticMaskGenerator` treat them."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from surgery.core.pictures import Filters, Found, Picture, Points
from surgery.errors import UnsupportedModelError
from surgery.hosts.sam21.pictures import TrackerPictures


class Sam2Pictures(TrackerPictures):
    """`SAM2Base` and its kinds."""

    filters = Filters(iou=0.8, stability=0.95, inclusive=True)

    def __init__(self, view: Any) -> None:
        from sam2.sam2_image_predictor import SAM2ImagePredictor

        super().__init__(view)
        if not self.model.sam_mask_decoder.use_high_res_features:
            raise UnsupportedModelError("the mask decoder takes no high-resolution features; expected one of SAM 2")
        self._predictor = SAM2ImagePredictor(self.model)
        side = self.model.image_size
        # The host has those of 1024 px built in.
        self._predictor._bb_feat_sizes = [(side // stride, side // stride) for stride in (4, 8, 16)]

    def encode(self, image: npt.NDArray[np.uint8]) -> Picture:
        predictor, prompts = self._predictor, self.model.sam_prompt_encoder
        predictor.set_image(image)
        features = predictor._features
        predictor.reset_predictor()
        embedding = features["image_embed"] + prompts.no_mask_embed.weight.reshape(1, -1, 1, 1)
        size = (int(image.shape[0]), int(image.shape[1]))
        return Picture(size, embedding, tuple(features["high_res_feats"]), prompts.get_dense_pe())

    def grid(self, side: int, picture: Picture) -> Points:
        from sam2.utils.amg import build_point_grid

        scaled = build_point_grid(side) * np.array(picture.size)[None, ::-1]
        pixels = torch.as_tensor(scaled, dtype=torch.float32, device=picture.embedding.device)
        inputs = self._predictor._transforms.transform_coords(pixels, normalize=True, orig_hw=picture.size)
        return Points(pixels, inputs)

    def point_prompts(self, points: Tensor) -> Tensor:
        labels = torch.ones(len(points), 1, dtype=torch.int, device=points.device)
        return self._prompts(points[:, None], labels)

    def box_prompts(self, boxes: Tensor) -> Tensor:
        labels = torch.tensor([[2, 3]], dtype=torch.int, device=boxes.device)
        return self._prompts(boxes.reshape(-1, 2, 2), labels.repeat(len(boxes), 1))

    def _prompts(self, points: Tensor, labels: Tensor) -> Tensor:
        return self.model.sam_prompt_encoder(points=(points, labels), boxes=None, masks=None)[0]

    def transform(self, image: Tensor, positions: Tensor, tokens: Tensor) -> tuple[Tensor, Tensor]:
        return self.model.sam_mask_decoder.transformer(image, positions.expand(len(image), -1, -1, -1), tokens)

    def upscaled(self, image: Tensor, stride4: Tensor, stride8: Tensor) -> Tensor:
        first, norm, activation, second, last = self.model.sam_mask_decoder.output_upscaling
        return last(second(activation(norm(first(image) + stride8))) + stride4)

    def stable_one(self, logits: Tensor, scores: Tensor) -> tuple[Tensor, Tensor]:
        return self.model.sam_mask_decoder._dynamic_multimask_via_stability(logits, scores)

    def channels(self) -> tuple[int, int, int]:
        own = self.model.sam_mask_decoder
        return own.conv_s0.out_channels, own.conv_s1.out_channels, own.transformer_dim

    def tensors(self) -> dict[str, Tensor]:
        return self._own("image_encoder", "sam_prompt_encoder", "sam_mask_decoder")

    def records(self, found: Found, size: tuple[int, int]) -> list[dict[str, Any]]:
        corners = found.boxes.float()
        columns = {
            "segmentation": list(found.masks.cpu().numpy()),
            "area": found.masks.flatten(1).sum(1).tolist(),
            "bbox": torch.cat([corners[:, :2], corners[:, 2:] - corners[:, :2]], 1).tolist(),
            "predicted_iou": found.scores.float().tolist(),
            "point_coords": found.points[:, None].tolist(),
            "stability_score": found.stability.tolist(),
            "crop_box": [[0.0, 0.0, float(size[1]), float(size[0])] for _ in found.masks],
        }
        return [dict(zip(columns, row, strict=True)) for row in zip(*columns.values(), strict=True)]

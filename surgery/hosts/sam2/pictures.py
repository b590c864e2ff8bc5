"""Stock `sam2`: single pictures, as `SAM2ImagePredictor` and `SAM2AutomaticMaskGenerator` treat them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from surgery.core.attention import Projections
from surgery.core.pictures import DecoderParts, Filters, Found, Picture, PictureDriver, Points, TwoWayLayer
from surgery.errors import UnsupportedModelError


class Sam2Pictures(PictureDriver):
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
        sparse: Tensor = self.model.sam_prompt_encoder(points=(points, labels), boxes=None, masks=None)[0]
        return sparse

    def decoder(self) -> DecoderParts:
        own = self.model.sam_mask_decoder
        transformer = own.transformer
        scores = [own.obj_score_token.weight] if own.pred_obj_scores else []
        masks = own.mask_tokens.weight

        def transform(image: Tensor, positions: Tensor, tokens: Tensor) -> tuple[Tensor, Tensor]:
            found: tuple[Tensor, Tensor] = transformer(image, positions.expand(len(image), -1, -1, -1), tokens)
            return found

        def single(logits: Tensor, scores: Tensor) -> tuple[Tensor, Tensor]:
            if not own.dynamic_multimask_via_stability:
                return logits[:, :1], scores[:, :1]
            found: tuple[Tensor, Tensor] = own._dynamic_multimask_via_stability(logits, scores)
            return found

        return DecoderParts(
            torch.cat([*scores, own.iou_token.weight, masks]),
            len(masks),
            [_layer(layer) for layer in transformer.layers],
            projections(transformer.final_attn_token_to_image),
            transformer.norm_final_attn,
            transform,
            _upscaled(own),
            list(own.output_hypernetworks_mlps),
            own.iou_prediction_head,
            single,
        )

    def channels(self) -> tuple[int, int, int]:
        own = self.model.sam_mask_decoder
        return own.conv_s0.out_channels, own.conv_s1.out_channels, own.transformer_dim

    def tensors(self) -> dict[str, Tensor]:
        return self._own("image_encoder", "sam_prompt_encoder", "sam_mask_decoder")

    def records(self, found: Found, size: tuple[int, int]) -> list[dict[str, Any]]:
        whole = [0, 0, size[1], size[0]]
        corners = found.boxes.float().cpu().numpy()
        areas = found.masks.flatten(1).sum(1).tolist()
        return [
            {
                "segmentation": mask,
                "area": area,
                "bbox": [*box[:2].tolist(), float(box[2] - box[0]), float(box[3] - box[1])],
                "predicted_iou": score,
                "point_coords": [point],
                "stability_score": stability,
                "crop_box": [float(each) for each in whole],
            }
            for mask, area, box, score, point, stability in zip(
                found.masks.cpu().numpy(),
                areas,
                corners,
                found.scores.float().tolist(),
                found.points.tolist(),
                found.stability.tolist(),
                strict=True,
            )
        ]


def projections(attention: Any) -> Projections:
    """Those of an attention of the two-way transformer."""
    return Projections(attention.q_proj, attention.k_proj, attention.v_proj, attention.out_proj, attention.num_heads)


def _layer(layer: Any) -> TwoWayLayer:
    return TwoWayLayer(
        projections(layer.self_attn),
        projections(layer.cross_attn_token_to_image),
        projections(layer.cross_attn_image_to_token),
        (layer.norm1, layer.norm2, layer.norm3, layer.norm4),
        layer.mlp,
        not layer.skip_first_layer_pe,
    )


def _upscaled(own: Any) -> Callable[[Tensor, Tensor, Tensor], Tensor]:
    first, norm, activation, second, last = own.output_upscaling

    def run(image: Tensor, stride4: Tensor, stride8: Tensor) -> Tensor:
        found: Tensor = activation(norm(first(image) + stride8))
        return last(second(found) + stride4)

    return run

"""The embedded model as each host's own generator takes it, and what that generator gives."""

from __future__ import annotations

import copy
import functools
from typing import Any

import numpy as np
import torch

from surgery.demo import model as demo
from surgery.demo.clips import held_out
from surgery.recipe import Recipe

IOU, STABILITY = 0.4, 0.6
"""The stock thresholds give no mask on the embedded model."""
HOSTS = ("sam2", "transformers")
KINDS = ("video", "image")


@functools.cache
def frame(number: int = 0, difficulty: Any = "medium") -> Any:
    """A frame of a held-out clip that is not square: uint8 [200, 256, 3]."""
    return next(held_out(number, 1, 1, difficulty=difficulty)).frames[0][:200]


@functools.cache
def _video(host: str) -> Any:
    return demo.load(host)


def model(host: str, kind: str = "video") -> Any:
    """A fresh copy: of the video model, or of a model of pictures alone with the same weights."""
    own = copy.deepcopy(_video(host))
    if kind == "video":
        return own
    if host == "sam2":
        from sam2.modeling.sam2_base import SAM2Base

        own.__class__ = SAM2Base
        return own
    from transformers import Sam2Config, Sam2Model

    video = own.config
    config = Sam2Config(
        vision_config=video.vision_config.to_dict(),
        prompt_encoder_config=video.prompt_encoder_config.to_dict(),
        mask_decoder_config=video.mask_decoder_config.to_dict(),
    )
    image = Sam2Model(config).eval()
    missing = image.load_state_dict(own.state_dict(), strict=False).missing_keys
    assert not missing
    return image


def stock_generator(host: str, own: Any, points: int = 8, iou: float = IOU, stability: float = STABILITY) -> Any:
    """A function of a picture: what the host's own generator gives with `own`."""
    if host == "sam2":
        from sam2.automatic_mask_generator import SAM2AutomaticMaskGenerator

        generator = SAM2AutomaticMaskGenerator(
            own, points_per_side=points, pred_iou_thresh=iou, stability_score_thresh=stability
        )
        generator.predictor._bb_feat_sizes = [(64, 64), (32, 32), (16, 16)]
        return generator.generate
    from PIL import Image
    from transformers import pipeline

    from surgery.hosts.transformers.driver import new_processor

    pipe = pipeline("mask-generation", model=own, image_processor=new_processor(256).image_processor)

    def run(image: Any) -> Any:
        return pipe(
            Image.fromarray(image), points_per_crop=points, pred_iou_thresh=iou, stability_score_thresh=stability,
            output_bboxes_mask=True,
        )  # fmt: skip

    return run


def recipe(name: str = "everything-exact", **changes: Any) -> Recipe:
    """A built-in recipe at the embedded model's thresholds."""
    small = {"points": 8, "filters.iou": IOU, "filters.stability": STABILITY, **changes}
    return Recipe.load(name).with_values({f"everything.{key}": value for key, value in small.items()})


def same(one: Any, other: Any) -> bool:
    """Whether two answers of a generator are equal, bit for bit."""
    if isinstance(one, dict) and set(one) == set(other):
        return all(same(one[key], other[key]) for key in one)
    if isinstance(one, list) and len(one) == len(other):
        return all(map(same, one, other))
    if isinstance(one, (torch.Tensor, np.ndarray)):
        return np.array_equal(np.asarray(one), np.asarray(other))
    return type(one) is type(other) and one == other

"""Everything in one picture: the masks, as the host's own generator gives them."""

from __future__ import annotations

import os
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageOps

from surgery.core.access import access_to
from surgery.core.pictures import Found, PictureDriver, rgb
from surgery.engine import require_surgery
from surgery.errors import ModelStateError, PictureError
from surgery.hosts import detector
from surgery.operations import SegmentEverything
from surgery.operations.segment_everything import Everything
from surgery.video.folder import BROKEN_PICTURE


def everything(model: Any, image: Any) -> Any:
    """Masks of everything in a picture, by the recipe's operation `segment_everything`.

    Args:
        model: under surgery, of video or of pictures: `SAM2VideoPredictor`, `SAM2Base`, `Sam2VideoModel`, `Sam2Model`.
            Inside `disabled` the host's own grid is decoded.
        image: a PIL image, or an array [H, W], [H, W, 1], [H, W, 3] or [H, W, 4]: uint8, or floats of 0 to 1.

    Returns:
        What the host's own generator returns, best first. `sam2`: a list of records with "segmentation" (bool [H, W]),
        "area", "bbox" (x, y, width, height), "predicted_iou", "point_coords", "stability_score" and "crop_box".
        `transformers`: a dict of "masks" (bool [H, W] each), "scores" and "bounding_boxes" (x0, y0, x1, y1).

    Raises:
        PictureError: not a picture.
        ModelStateError: the model is not under surgery, its recipe has no segment_everything, or its proposal head was
            never fitted.
        WeightsError: the head has weights that are not finite.
        HubError, ModelLoadError: the recipe's detector could not be loaded.
    """
    array = rgb(image)
    driver, found = _found(model, array)
    return driver.records(found, array.shape[:2])


def found_in(model: Any, image: Any) -> Found:
    """The same as tensors; arguments and errors as `everything`."""
    return _found(model, rgb(image))[1]


def stock_found_in(model: Any, image: Any) -> tuple[Found, int]:
    """What the host's own generator finds at the recipe's points and filters, and its prompts; arguments and errors as
    `everything`."""
    bound = bound_of(model)
    whole = Everything(bound.settings.model_copy(update={"prompts": "grid", "folded": False}), bound.surgery)
    with access_to(bound.surgery.host.model).frame():
        return whole.find(rgb(image)), whole.prompts


def bound_of(model: Any) -> Everything:
    """The operation in a model. Raises ModelStateError: there is none."""
    surgery = require_surgery(model)
    bound = surgery.find(Everything)
    if bound is None:
        name = surgery.recipe.metadata.name if surgery.recipe is not None else "this"
        raise ModelStateError(f"recipe {name!r} has no segment_everything; take everything-exact, or add the operation")
    return bound


def read_picture(path: str | os.PathLike[str]) -> npt.NDArray[np.uint8]:
    """A file as RGB [H, W, 3], turned upright. Raises PictureError: it cannot be read."""
    try:
        with Image.open(path) as image:
            return rgb(ImageOps.exif_transpose(image))
    except BROKEN_PICTURE as error:
        raise PictureError(f"{path}: cannot be read as a picture: {error}") from error


def _found(model: Any, image: npt.NDArray[np.uint8]) -> tuple[PictureDriver, Found]:
    bound = bound_of(model)
    surgery = bound.surgery
    if not surgery.enabled:
        bound = Everything(SegmentEverything(), surgery)
    with access_to(surgery.host.model).frame():
        driver = bound.driver()
        wanted = bound.settings.boxes.detector if bound.settings.prompts == "boxes" else None
        if wanted is not None and bound.detector is None:
            bound.detector = detector(wanted, next(surgery.host.model.parameters()).device)
        return driver, bound.find(image, driver)

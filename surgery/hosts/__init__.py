"""Model families the surgery knows. A host library is imported only inside its own file, and only when a model asks."""

from __future__ import annotations

import sys
from importlib import import_module

from torch import nn

from surgery.errors import UnsupportedModelError
from surgery.hosts.base import HostView

_HOSTS = {"transformers": "TransformersView", "sam2": "Sam2View"}


def view_of(model: object) -> HostView:
    """Find the host of `model`.

    Raises:
        UnsupportedModelError: not a torch module, or not a SAM 2 video model of a known host.
    """
    if not isinstance(model, nn.Module):
        raise UnsupportedModelError(
            f"expected a SAM 2 video model (transformers Sam2VideoModel or sam2 SAM2VideoPredictor), got "
            f"{type(model).__name__}"
            + (
                "; an image predictor has no previous frame, use build_sam2_video_predictor"
                if "ImagePredictor" in type(model).__name__
                else ""
            )
        )
    for library, view in _HOSTS.items():
        if library in sys.modules:
            found: type[HostView] = getattr(import_module(f"surgery.hosts.{library}"), view)
            if found.matches(model):
                return found(model)
    raise UnsupportedModelError(
        f"{type(model).__name__} is not a SAM 2 video model; expected transformers Sam2VideoModel or sam2 "
        "SAM2VideoPredictor"
    )

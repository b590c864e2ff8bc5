"""Stock `sam2`: `SAM2Base`, which has no video."""

from __future__ import annotations

from surgery.core.patching import Patched
from surgery.hosts.sam2.view import Sam2View, of_library


class Sam2ImageView(Sam2View):
    """A model of pictures alone."""

    video = False
    root = Patched  # it runs as it is
    models = "sam2 SAM2Base"

    @classmethod
    def matches(cls, model: object) -> bool:
        if not of_library(model):
            return False
        from sam2.modeling.sam2_base import SAM2Base

        return isinstance(model, SAM2Base)

"""Stock `sam2`: `SAM2Base`, which has no video."""

from __future__ import annotations

from surgery.core.patching import Patched
from surgery.hosts.sam2.view import Sam2View


class Sam2ImageView(Sam2View):
    """A model of pictures alone."""

    video = False
    root = Patched  # it runs as it is
    models, kind = "sam2 SAM2Base", "sam2.modeling.sam2_base.SAM2Base"

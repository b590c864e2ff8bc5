"""Everything in a picture, with one model."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import torch

from surgery.core.operation import Bound
from surgery.core.pictures import Found, PictureDriver
from surgery.operations.segment_everything.decoding import Decoding, candidates, found
from surgery.operations.segment_everything.settings import EverythingSettings


class Everything(Bound[EverythingSettings]):
    """Segment everything in one model."""

    def driver(self) -> PictureDriver:
        """Pictures through the model, by its host's own calls."""
        kind = self.surgery.host.pictures
        assert kind is not None
        return kind(self.surgery.host)

    @torch.no_grad()
    def find(self, image: npt.NDArray[np.uint8], driver: PictureDriver | None = None) -> Found:
        """The masks of a picture RGB [H, W, 3]."""
        settings = self.settings
        driver = driver or self.driver()
        filters = settings.filters.of(driver.filters)
        picture, parts = driver.encode(image), driver.decoder()
        grid = driver.grid(settings.points, picture)
        how = Decoding(settings.lazy, settings.folded, settings.batch)
        kept = candidates(parts, picture, driver.point_prompts(grid.inputs), grid.pixels, filters, how)
        return found(kept, picture.size, nms=filters.nms)

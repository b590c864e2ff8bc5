"""Everything in a picture, with one model."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from surgery.core.operation import Bound
from surgery.core.pictures import DecoderParts, Filters, Found, Picture, PictureDriver, Points
from surgery.core.surgery import Surgery
from surgery.errors import ModelStateError, WeightsError
from surgery.operations.segment_everything.decoding import Candidates, Decoding, candidates, found, joined
from surgery.operations.segment_everything.filters import best_of_each
from surgery.operations.segment_everything.head import ProposalHead, features_of, proposals
from surgery.operations.segment_everything.settings import EverythingSettings

Detector = Callable[[npt.NDArray[np.uint8]], tuple[Tensor, Tensor]]
"""A picture -> boxes [n, 4] (x0, y0, x1, y1) in pixels and their scores [n]."""


class Everything(Bound[EverythingSettings]):
    """Segment everything in one model. head: proposes boxes, None where the recipe wants none of it. detector: a
    proposer from outside. prompts: decoded for the last picture."""

    detector: Detector | None = None
    prompts: int = 0

    def __init__(self, settings: EverythingSettings, surgery: Surgery, before: Everything | None = None) -> None:
        super().__init__(settings, surgery)
        self.head: ProposalHead | None = None
        if settings.prompts == "boxes" and settings.boxes.proposer == "head":
            home = surgery.host.prompt_encoder()
            self.head = ProposalHead(self.driver().channels())
            if before is not None and before.head is not None:
                self.head.load_state_dict(before.head.state_dict())
            self.head.to(next(home.parameters()).device).eval().requires_grad_(False)
            self.learned = (home, "proposals", self.head)

    def __getstate__(self) -> dict[str, Any]:
        return {**vars(self), "detector": None}

    def driver(self) -> PictureDriver:
        """Pictures through the model, by its host's own calls."""
        return self.surgery.host.picture_driver()

    @torch.no_grad()
    def find(self, image: npt.NDArray[np.uint8], driver: PictureDriver | None = None) -> Found:
        """The masks of a picture RGB [H, W, 3].

        Raises:
            ModelStateError: the proposal head was never fitted.
            WeightsError: it has weights that are not finite.
        """
        driver = driver or self.driver()
        picture = driver.encode(image)
        return self.best(self.candidates(driver, picture, image), picture)

    def best(self, kept: Candidates, picture: Picture) -> Found:
        """Of masks that show the same the best. Its own grid ranks as the host does, all else by stability too."""
        ranked = kept.scores if self.settings.prompts == "grid" else kept.worth
        return found(kept, picture.size, self.settings.filters.nms, ranked)

    def candidates(self, driver: PictureDriver, picture: Picture, image: npt.NDArray[np.uint8]) -> Candidates:
        """Masks of an encoded picture that pass the filters."""
        settings = self.settings
        run = _Run(driver, driver.decoder(), picture, settings, settings.filters.of(driver.filters))
        if settings.prompts == "grid":
            kept = run.points(driver.grid(settings.points, picture))
        elif settings.prompts == "hierarchical":
            kept = run.hierarchical()
        else:
            kept = run.boxes(*self.proposed(driver, picture, image))
        self.prompts = run.prompts
        return kept

    def proposed(self, driver: PictureDriver, picture: Picture, image: npt.NDArray[np.uint8]) -> tuple[Tensor, Tensor]:
        """Boxes [n, 4] on the model's input and their scores [n], best first. Raises ModelStateError, see `find`."""
        own, side = self.settings.boxes, self.surgery.host.image_size()
        if self.head is not None:
            if not self.head.fitted:
                raise ModelStateError(
                    "the proposal head is not fitted; load an adapter (sparsify(model, adapter=...)), or fit it on "
                    "pictures of your own with fit_everything(model, pictures)"
                )
            if not all(bool(each.isfinite().all()) for each in self.head.parameters()):
                raise WeightsError("the proposal head has weights that are not finite; load its adapter anew")
            levels = self.head(features_of(picture))[0]
            return proposals(levels, side, own.max_prompts, own.nms, own.least)
        if self.detector is None:
            raise ModelStateError(f"the detector {own.detector!r} was not loaded; call surgery.everything")
        boxes, scores = (each.to(picture.embedding.device).float() for each in self.detector(image))
        boxes = boxes * torch.tensor([side / each for each in picture.size[::-1]] * 2, device=boxes.device)
        kept = best_of_each(boxes, scores, own.nms)
        kept = kept[scores[kept] >= own.least][: own.max_prompts]
        return boxes[kept].clamp(0, side), scores[kept]


class _Run:
    """One picture. prompts: decoded so far."""

    def __init__(
        self, driver: PictureDriver, parts: DecoderParts, picture: Picture, settings: EverythingSettings, keep: Filters
    ) -> None:
        self.driver, self.parts, self.picture, self.settings, self.keep = driver, parts, picture, settings, keep
        self.how = Decoding(settings.lazy, settings.folded, settings.batch)
        self.prompts = 0

    def points(self, points: Points) -> Candidates:
        """Masks of point prompts."""
        self.prompts += len(points.inputs)
        return candidates(
            self.parts, self.picture, self.driver.point_prompts, points.inputs, points.pixels, self.keep, self.how
        )

    def uncovered(self, points: Points, kept: Candidates, logit: float) -> Points:
        """Those of the points where no mask is above `logit`."""
        if not len(kept):
            return points
        covered = (kept.logits > logit).any(0)
        places = (points.inputs * (covered.shape[-1] / self.driver.view.image_size())).long()
        places = places.clamp(0, covered.shape[-1] - 1)
        free = ~covered[places[:, 1], places[:, 0]]
        return Points(points.pixels[free], points.inputs[free])

    def hierarchical(self) -> Candidates:
        """A coarse grid, and points of the fine one where it is not sure."""
        coarse = self.settings.coarse
        first = self.points(self.driver.grid(coarse.points, self.picture))
        trusted = first[((first.scores > coarse.iou) & (first.stability > coarse.stability)).nonzero()[:, 0]]
        fine = self.driver.grid(self.settings.points, self.picture)
        return joined([first, self.points(self.uncovered(fine, trusted, coarse.logit))])

    def boxes(self, boxes: Tensor, scores: Tensor) -> Candidates:
        """Masks of box prompts, and of points where none of them lies."""
        own = self.settings.boxes
        self.prompts += len(boxes)
        keep = self.keep if own.filters else replace(self.keep, iou=0.0, stability=0.0)
        middles = (boxes[:, :2] + boxes[:, 2:]) / 2
        scale = [each / self.driver.view.image_size() for each in self.picture.size[::-1]]
        pixels = middles * torch.tensor(scale, device=boxes.device)
        how = replace(self.how, masks=own.masks)
        kept = candidates(self.parts, self.picture, self.driver.box_prompts, boxes, pixels, keep, how)
        if not own.residual_points:
            return kept
        rest = self.uncovered(self.driver.grid(own.residual_points, self.picture), kept, 0.0)
        return joined([kept, self.points(rest)])

"""How much of what people annotated a set of masks finds: mask AR@K of COCO and LVIS files, by pycocotools."""

from __future__ import annotations

import io
import json
from collections.abc import Sequence
from contextlib import redirect_stdout
from pathlib import Path
from typing import Any

from surgery.errors import DatasetError
from surgery.evaluation.recall import KS
from surgery.missing import require


class Annotations:
    """Objects of pictures, from a COCO or LVIS `instances` JSON.

    Raises:
        DatasetError: it cannot be read, or has no `images` and `annotations`.
        MissingLibraryError: without pycocotools.
    """

    def __init__(self, path: str | Path) -> None:
        require("pycocotools")
        from pycocotools.coco import COCO

        self.path = Path(path)
        try:
            data = json.loads(self.path.read_text(encoding="utf-8"))
            # LVIS names pictures by their address alone, and knows no crowds.
            self.images = {Path(each.get("file_name") or each["coco_url"]).stem: each for each in data["images"]}
            objects = [{"iscrowd": 0, **each, "category_id": 1} for each in data["annotations"]]
        except OSError as error:
            raise DatasetError(f"{path}: {error.strerror}, expected a COCO or LVIS instances JSON") from error
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise DatasetError(
                f"{path}: no COCO or LVIS instances JSON, which has `images` with `file_name` or `coco_url`, and "
                f"`annotations` ({type(error).__name__}: {error})"
            ) from error
        self._truth = COCO()
        one = [{"id": 1, "name": "object"}]
        self._truth.dataset = {"images": data["images"], "annotations": objects, "categories": one}
        self._pictures: list[int] = []
        self._found: list[dict[str, Any]] = []
        with redirect_stdout(io.StringIO()):
            self._truth.createIndex()

    def check(self, names: Sequence[str]) -> None:
        """Raise DatasetError unless one of the pictures, file names without their ending, is annotated."""
        if not self.images.keys() & set(names):
            raise DatasetError(
                f"{self.path}: annotates none of the {len(names)} pictures ({', '.join(sorted(names)[:3])}, ...), "
                f"expected file names such as {', '.join(sorted(self.images)[:3]) or 'of any picture'}"
            )

    def add(self, name: str, records: Sequence[dict[str, Any]]) -> None:
        """Take the masks of one picture; one that is not annotated is left out.

        Args:
            name: of the picture's file, without its ending. records: COCO results of run lengths.

        Raises:
            DatasetError: they are not of the annotated size.
        """
        from pycocotools import mask

        if name not in self.images:
            return
        image = self.images[name]
        size = [int(image["height"]), int(image["width"])]
        self._pictures.append(image["id"])
        for each in records:
            run_lengths = each["segmentation"]
            if run_lengths["size"] != size:
                raise DatasetError(
                    f"{self.path}: {name} is {size[1]}x{size[0]} (width x height), its masks are "
                    f"{run_lengths['size'][1]}x{run_lengths['size'][0]}; expected the annotated pictures"
                )
            packed = mask.frPyObjects(run_lengths, *size)
            self._found.append(
                {"image_id": image["id"], "category_id": 1, "segmentation": packed, "score": each["score"]}
            )

    def average_recalls(self) -> dict[str, float | int]:
        """Mean recall over IoU 0.5 to 0.95 of what was added, whatever the category.

        Returns:
            "ar@10", "ar@100", "ar@320" (0 where nothing was found), and how many "pictures" and "objects" it is over.
        """
        from pycocotools.cocoeval import COCOeval

        objects = len(self._truth.getAnnIds(imgIds=self._pictures, iscrowd=False))
        recalls = dict.fromkeys((f"ar@{most}" for most in KS), 0.0)
        if self._found:
            with redirect_stdout(io.StringIO()):
                judge = COCOeval(self._truth, self._truth.loadRes(self._found), "segm")
                judge.params.imgIds, judge.params.maxDets = self._pictures, list(KS)
                judge.params.areaRng, judge.params.areaRngLbl = judge.params.areaRng[:1], judge.params.areaRngLbl[:1]
                judge.evaluate()
                judge.accumulate()
            found = judge.eval["recall"]  # [IoU thresholds, categories, areas, K]
            recalls = {name: float(found[:, 0, 0, place].mean()) for place, name in enumerate(recalls)}
        return {**recalls, "pictures": len(self._pictures), "objects": objects}

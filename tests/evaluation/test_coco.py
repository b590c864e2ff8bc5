"""Mask AR from COCO and LVIS files: equal to the count for arrays, and what is refused."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from surgery.cli.segment import rle
from surgery.errors import DatasetError
from surgery.evaluation.coco import Annotations
from surgery.evaluation.recall import average_recalls

pytest.importorskip("pycocotools")


def drawn(seed: int, number: int, size: tuple[int, int] = (40, 60)) -> np.ndarray:
    """Rectangles [n, H, W]."""
    rng = np.random.default_rng(seed)
    found = np.zeros((number, *size), dtype=bool)
    for mask in found:
        top, left = rng.integers(0, size[0] - 12), rng.integers(0, size[1] - 12)
        mask[top : top + rng.integers(6, 12), left : left + rng.integers(6, 12)] = True
    return found


def written(path: Path, truth: list[np.ndarray], lvis: bool) -> Path:
    """An instances JSON of pictures 0000.png on. LVIS names pictures by address and says nothing of crowds."""
    objects: list[dict[str, Any]] = []
    for image, masks in enumerate(truth):
        for number, mask in enumerate(masks):
            each = {"id": len(objects) + 1, "image_id": image, "category_id": number % 3 + 1, "area": int(mask.sum()),
                    "segmentation": rle(mask), "bbox": [0, 0, 1, 1]}  # fmt: skip
            objects.append(each if lvis else {**each, "iscrowd": 0})
    name = (lambda image: {"coco_url": f"http://images/{image:04d}.png"}) if lvis else (
        lambda image: {"file_name": f"some/{image:04d}.png"}
    )  # fmt: skip
    images = [{"id": image, "height": m.shape[1], "width": m.shape[2], **name(image)} for image, m in enumerate(truth)]
    path.write_text(json.dumps({"images": images, "annotations": objects, "categories": []}))
    return path


def records(masks: np.ndarray) -> list[dict[str, Any]]:
    """COCO results, best first."""
    return [{"segmentation": rle(mask), "score": 1 - number / 100} for number, mask in enumerate(masks)]


@pytest.mark.parametrize("lvis", [False, True])
def test_recall_is_that_of_arrays(tmp_path: Path, lvis: bool) -> None:
    truth = drawn(1, 6)
    found = np.concatenate([drawn(2, 9), np.roll(truth, 1, axis=2), truth[:2]])
    annotations = Annotations(written(tmp_path / "truth.json", [truth, drawn(3, 4)], lvis))
    annotations.add("0000", records(found))
    annotations.add("elsewhere", records(found))
    wanted = average_recalls(found, truth)
    assert 0 < wanted["ar@10"] < wanted["ar@100"] < 1
    assert annotations.average_recalls() == pytest.approx({**wanted, "pictures": 1, "objects": 6})


def test_a_picture_without_masks_counts_and_a_crowd_does_not(tmp_path: Path) -> None:
    path = written(tmp_path / "truth.json", [drawn(1, 2), drawn(3, 2)], lvis=False)
    data = json.loads(path.read_text())
    data["annotations"][0]["iscrowd"] = 1
    path.write_text(json.dumps(data))
    annotations = Annotations(path)
    annotations.add("0000", records(drawn(1, 2)))
    annotations.add("0001", [])
    found = annotations.average_recalls()
    assert found == pytest.approx({"ar@10": 1 / 3, "ar@100": 1 / 3, "ar@320": 1 / 3, "pictures": 2, "objects": 3})


def test_nothing_found_is_no_recall(tmp_path: Path) -> None:
    annotations = Annotations(written(tmp_path / "truth.json", [drawn(1, 2)], lvis=False))
    annotations.add("0000", [])
    assert annotations.average_recalls() == {"ar@10": 0, "ar@100": 0, "ar@320": 0, "pictures": 1, "objects": 2}


@pytest.mark.parametrize("text", ["{", "[]", "{}", '{"images": [{"id": 1}], "annotations": []}'])
def test_other_files_are_refused(tmp_path: Path, text: str) -> None:
    (tmp_path / "truth.json").write_text(text)
    with pytest.raises(DatasetError, match="no COCO or LVIS instances JSON"):
        Annotations(tmp_path / "truth.json")
    with pytest.raises(DatasetError, match=r"nothing\.json.*No such file"):
        Annotations(tmp_path / "nothing.json")


def test_other_pictures_and_sizes_are_refused(tmp_path: Path) -> None:
    annotations = Annotations(written(tmp_path / "truth.json", [drawn(1, 2)], lvis=False))
    annotations.check(["0000", "0001"])
    with pytest.raises(DatasetError, match=r"none of the 1 pictures \(cat, ...\), expected file names such as 0000"):
        annotations.check(["cat"])
    with pytest.raises(DatasetError, match=r"0000 is 60x40 \(width x height\), its masks are 30x20"):
        annotations.add("0000", records(drawn(1, 2, (20, 30))))

"""Everything in a video: ids are stable, what comes later joins, what is gone ends; and the command."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from PIL import Image

import surgery
from surgery.adapters.shipped import shipped_adapters
from surgery.cli.main import main
from surgery.cli.segment import coco_records, rle
from surgery.core.pictures import Found
from surgery.demo.clips import held_out
from surgery.tracking_everything import apart, track_everything
from surgery.video import open_video, read_label_png
from tests.operations.segment_everything.hosts import HOSTS, frame, model, recipe

STRICT: Any = {"points": 5, "filters.iou": 0.7, "filters.stability": 0.8}


def clip(before: int, frames: int, after: int) -> Any:
    """Black frames, an easy clip, and black frames."""
    middle = next(held_out(7, 1, frames, difficulty="easy")).frames
    black = np.zeros_like(middle[:1])
    return np.concatenate([black.repeat(before, 0), middle, black.repeat(after, 0)])


def test_apart_leaves_no_overlap_and_the_best_on_top() -> None:
    masks = torch.zeros(4, 10, 10, dtype=torch.bool)
    masks[0, :4], masks[1, 2:8], masks[2, :4, :5], masks[3, 9:, 8:] = True, True, True, True
    found = Found(masks, torch.tensor([0.9, 0.8, 0.99, 0.5]), torch.ones(4), torch.zeros(4, 4), torch.zeros(4, 2))
    taken = np.zeros((10, 10), dtype=bool)
    kept = apart(found, taken)
    assert [int(mask.sum()) for mask in kept] == [20, 50, 2]  # of the first less than most is left
    assert not taken.any() and sum(kept).max() == 1  # type: ignore[union-attr, attr-defined]
    assert len(apart(found, taken, 0.1)) == 2
    assert not apart(found, ~taken)


@pytest.mark.parametrize("host", HOSTS)
def test_objects_come_stay_and_end(host: str) -> None:
    own = model(host)
    balanced = surgery.Recipe.load("balanced").with_operation(recipe(**STRICT).operations[0])
    surgery.sparsify(own, balanced)
    found = list(track_everything(own, open_video(clip(2, 6, 6)), every=4, patience=3, max_objects=2))
    assert [each.index for each in found] == list(range(14))
    assert not any(each.labels.any() or each.alive for each in found[:4])
    assert found[4].new and all(not each.new for each in found[5:8])
    first = set(found[4].new)
    assert all(set(np.unique(each.labels)) - {0} <= first for each in found[4:8]), "ids are stable"
    assert (found[4].labels > 0).any()
    ended = [obj_id for each in found for obj_id in each.ended]
    begun = [obj_id for each in found for obj_id in each.new]
    assert len(set(begun)) == len(begun) and set(ended) <= set(begun)
    assert max(each.alive for each in found) <= 2
    assert first <= set(ended), "black frames end what was there"
    assert found[-1].alive == len(begun) - len(ended)


@pytest.mark.parametrize("host", HOSTS)
def test_an_object_that_ends_leaves_the_others_as_they_were(host: str) -> None:
    """Two objects, of which one is removed: the other goes on as if it had been alone from then on."""
    from surgery.hosts import view_of
    from surgery.tracking import LazyFrames

    own = model(host)
    middle = next(held_out(7, 1, 6, difficulty="easy"))
    view = view_of(own)
    logits = {}
    for remove in (False, True):
        frames = LazyFrames(open_video(middle.frames), view)
        driver = view.drive(frames, (256, 256))
        frames.ahead(0)
        other = np.zeros((256, 256), dtype=bool)
        other[10:60, 10:60] = True
        driver.add_mask(0, 3, other)
        driver.add_mask(0, 8, middle.labels[0] == 1)
        for index, _ in enumerate(driver.steps(0, 2)):
            frames.ahead(index + 1)
        if remove:
            driver.remove(3)
        found = []
        steps = driver.steps(3, 5)
        for index in range(3, 6):
            frames.ahead(index)
            ids, masks = next(steps)
            assert list(ids) == ([8] if remove else [3, 8])
            found.append(masks[list(ids).index(8)].clone())
        logits[remove] = found
    for one, alone in zip(logits[False], logits[True], strict=True):
        assert torch.allclose(one, alone, atol=1e-3)


def test_arguments_out_of_range() -> None:
    own = surgery.sparsify(model("sam2"), recipe())
    for bad in ({"max_objects": 0}, {"max_objects": 256}, {"every": 0}, {"least_area": 2.0}):
        with pytest.raises(surgery.PromptError, match=next(iter(bad))):
            track_everything(own, open_video(clip(0, 1, 1)), **bad)  # type: ignore[arg-type]
    with pytest.raises(surgery.ModelStateError, match="no segment_everything"):
        track_everything(surgery.sparsify(own, "exact"), open_video(clip(0, 1, 1)))


def test_run_lengths() -> None:
    mask = np.zeros((3, 4), dtype=bool)
    assert rle(mask) == {"size": [3, 4], "counts": [12]}
    mask[0, 0] = mask[2, 3] = True
    assert rle(mask) == {"size": [3, 4], "counts": [0, 1, 10, 1]}
    assert rle(~mask)["counts"] == [1, 10, 1]


ARGUMENTS = [
    "--model", "demo", "--recipe", "everything-exact", "--set", "everything.points=5", "--set",
    "everything.filters.iou=0.6", "--set", "everything.filters.stability=0.7", "--json",
]  # fmt: skip


def invoke(*arguments: object, code: int = 0) -> Any:
    result = CliRunner().invoke(main, ["segment", *map(str, arguments)])
    assert result.exit_code == code, (result.output, result.exception)
    return result


def test_the_command_on_pictures(tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    for number in range(2):
        Image.fromarray(frame(number)).save(tmp_path / "in" / f"p{number}.png")
    summary = json.loads(invoke(tmp_path / "in", "--out", tmp_path / "out", *ARGUMENTS).stdout)
    assert summary == json.loads((tmp_path / "out" / "summary.json").read_text()) and summary["frames"] == 2
    records = json.loads((tmp_path / "out" / "masks" / "p0.json").read_text())
    labels = read_label_png(tmp_path / "out" / "labels" / "p0.png")
    assert labels.shape == (200, 256) and 0 < labels.max() <= len(records) == summary["pictures"][0]["masks"]
    assert all(sum(each["segmentation"]["counts"][1::2]) == each["area"] for each in records)
    assert Image.open(tmp_path / "out" / "overlay" / "p1.png").size == (256, 200)


def test_an_adapter_brings_its_own_recipe(tmp_path: Path) -> None:
    Image.fromarray(frame()).save(tmp_path / "p.png")
    adapter = shipped_adapters()["demo-everything"]
    done = invoke(tmp_path / "p.png", "--model", "demo", "--adapter", adapter, "--out", tmp_path / "out", "--json")
    summary = json.loads(done.stdout)
    assert summary["recipe"] == "everything" and summary["pictures"][0]["prompts"] == 32


def test_masks_beside_stocks(tmp_path: Path) -> None:
    Image.fromarray(frame()).save(tmp_path / "p.png")
    coarse = ("--set", "everything.prompts=hierarchical", "--set", "everything.coarse.points=3")
    done = invoke(tmp_path / "p.png", "--compare", "--out", tmp_path / "out", *ARGUMENTS, *coarse)
    (row,) = json.loads(done.stdout)["pictures"]
    assert row["stock"]["prompts"] == 25 and row["prompts"] > 9 and 0 < row["recall"] <= 1
    page = (tmp_path / "out" / "report.html").read_text()
    assert "for pictures" in invoke("clip.mp4", "--compare", "--out", tmp_path / "out", *ARGUMENTS, code=2).stderr
    assert page.count("data:image/jpeg") == 2 and "of the stock masks found" in page


def test_masks_by_annotations(tmp_path: Path) -> None:
    pytest.importorskip("pycocotools")
    Image.fromarray(frame()).save(tmp_path / "p.png")
    invoke(tmp_path / "p.png", "--out", tmp_path / "first", *ARGUMENTS)
    masks = json.loads((tmp_path / "first" / "masks" / "p.json").read_text())
    truth = {
        "images": [{"id": 7, "file_name": "p.jpg", "height": 200, "width": 256}],
        "annotations": [{**each, "id": number, "image_id": 7} for number, each in enumerate(masks, start=1)],
    }
    (tmp_path / "truth.json").write_text(json.dumps(truth))
    given = (tmp_path / "p.png", "--truth", tmp_path / "truth.json", "--out", tmp_path / "out", *ARGUMENTS)
    scores = json.loads(invoke(*given).stdout)["truth"]
    assert scores == pytest.approx({"ar@10": min(1, 10 / len(masks)), "ar@100": 1, "ar@320": 1, "pictures": 1,
                                    "objects": len(masks)})  # fmt: skip
    assert f"AR@100 1.000, AR@320 1.000 of {len(masks)} annotated objects in 1 picture" in invoke(*given[:-1]).stdout
    Image.fromarray(frame()).save(tmp_path / "other.png")
    wrong = invoke(tmp_path / "other.png", *given[1:], code=1)
    assert "none of the 1 pictures" in wrong.stderr


def test_the_command_on_a_video(tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    for number, picture in enumerate(clip(0, 3, 0)):
        Image.fromarray(picture).save(tmp_path / "in" / f"{number}.png")
    done = invoke(tmp_path / "in", "--as-video", "--every", "2", "--out", tmp_path / "out", *ARGUMENTS)
    assert json.loads(done.stdout)["frames"] == 3
    assert len(list((tmp_path / "out" / "labels").glob("*.png"))) == 3
    assert (tmp_path / "out" / "overlay.mp4").stat().st_size > 0


def test_the_command_says_what_is_wrong(tmp_path: Path) -> None:
    for source, recipe_name, words in (
        (tmp_path, "everything-exact", "no JPEG or PNG picture"),
        (tmp_path / "none.png", "everything-exact", "cannot be read as a picture"),
        (tmp_path / "none.png", "exact", "no segment_everything"),
    ):
        arguments = ("--model", "demo", "--recipe", recipe_name, "--out", tmp_path / "out")
        assert words in invoke(source, *arguments, code=1).stderr


def test_records_of_nothing() -> None:
    empty = Found(
        torch.zeros(0, 4, 4, dtype=torch.bool), torch.zeros(0), torch.zeros(0), torch.zeros(0, 4), torch.zeros(0, 2)
    )
    assert coco_records(empty, "x") == []

"""Every published layout opens, and what does not fit is one clear error that names the file."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from surgery import DatasetError
from surgery.evaluation import DATASETS, open_dataset
from surgery.evaluation.truth import read_labels
from tests.conftest import shared
from tests.evaluation.trees import (
    SIZE,
    davis_tree,
    folder_tree,
    labels_at,
    meta_tree,
    mose_tree,
    sav_tree,
    write_frame,
    write_mask,
)


def facts(dataset: object) -> list[tuple[str, int, list[tuple[str, int, int, int]]]]:
    return [
        (
            one.name,
            len(one.frames),
            [(thing.name, thing.id, thing.first, len(thing.frames)) for thing in one.annotated()],
        )
        for one in dataset.sequences  # type: ignore[attr-defined]
    ]


def test_davis(tmp_path: Path) -> None:
    dataset = open_dataset("davis2017", davis_tree(tmp_path / "17"))
    assert facts(dataset) == [(name, 5, [("1", 1, 0, 5), ("2", 2, 0, 5)]) for name in ("bear", "swan")]
    assert (dataset.split, dataset.convention, dataset.sequences[0].fps) == ("val", "davis2017", 24.0)


def test_davis_test_dev_has_masks_of_the_first_frame_only(tmp_path: Path) -> None:
    root = davis_tree(tmp_path, masked=1, split="test-dev")
    assert facts(open_dataset("davis2017", root, "test-dev"))[0] == ("bear", 5, [("1", 1, 0, 1), ("2", 2, 0, 1)])
    with pytest.raises(DatasetError, match=r"ImageSets/2017/val.txt: no such list.*test-dev"):
        open_dataset("davis2017", root)


def test_mose(tmp_path: Path) -> None:
    mose_tree(tmp_path, "train")
    mose_tree(tmp_path, "valid")
    assert facts(open_dataset("mose", tmp_path, "train")) == [("abc123", 5, [("1", 1, 0, 5), ("3", 3, 0, 5)])]
    assert facts(open_dataset("mose", tmp_path)) == [("abc123", 5, [("1", 1, 0, 1), ("3", 3, 0, 1)])]
    assert facts(open_dataset("mose", tmp_path / "valid")) == facts(open_dataset("mose", tmp_path))
    with pytest.raises(DatasetError, match=r"did you mean 'valid'.*splits here: train, valid"):
        open_dataset("mose", tmp_path, "val")


@pytest.mark.parametrize("full", [True, False])
def test_ytvos_objects_appear_later(tmp_path: Path, full: bool) -> None:
    dataset = open_dataset("ytvos", meta_tree(tmp_path, "ytvos", "valid", full))
    count = 6 if full else 2
    assert facts(dataset) == [("vid", 6, [("1", 1, 0, count), ("2", 2, 2, count)])]
    assert dataset.tree == "ytvos"


def test_lvos_reads_frame_ranges(tmp_path: Path) -> None:
    dataset = open_dataset("lvos", meta_tree(tmp_path, "lvos", "valid", full=True))
    assert [(thing.first, thing.span) for thing in dataset.sequences[0].annotated()] == [(0, (1, 26)), (2, (11, 26))]
    (tmp_path / "valid" / "valid_meta.json").write_text('{"videos": {"vid": {"objects": {"1": {}}}}}')
    with pytest.raises(DatasetError, match=r"valid_meta.json: object '1' of vid has no frame_range"):
        open_dataset("lvos", tmp_path)


def test_sav_masks_may_overlap(tmp_path: Path) -> None:
    dataset = open_dataset("sav", sav_tree(tmp_path))
    assert facts(dataset) == [("sav_000001", 13, [("000", 1, 0, 4), ("001", 2, 4, 4)])]
    sequence = dataset.sequences[0]
    truth = {thing.name: mask for thing, mask in sequence.truth(8, sequence.annotated())}
    assert (truth["000"] & truth["001"]).any()
    assert not list(sequence.truth(9, sequence.annotated()))


def test_folder_and_the_real_clips(tmp_path: Path) -> None:
    assert facts(open_dataset("folder", folder_tree(tmp_path)))[1] == ("b", 5, [("1", 1, 0, 5), ("2", 2, 1, 5)])
    dataset = open_dataset("folder", shared("clips"))
    lengths = {sequence.name: len(sequence.frames) for sequence in dataset.sequences}
    assert lengths["bmx-bumps"] == 90 and len(lengths) == 6
    chosen = dataset.choose(["rollerblade"])
    assert facts(chosen) == [("rollerblade", 35, [("1", 1, 0, 35)])]


def test_masks_of_0_and_255_are_one_object(tmp_path: Path) -> None:
    path = tmp_path / "m.png"
    Image.fromarray(np.where(labels_at(0, {1: 0}) > 0, 255, 0).astype(np.uint8)).save(path)
    assert (read_labels(path, SIZE) == labels_at(0, {1: 0})).all()
    write_mask(path, np.full(SIZE, 255, np.uint8))
    assert not read_labels(path, SIZE).any()  # a palette's 255 is void


def spoil(kind: str, mask: Path) -> None:
    labels = labels_at(2, {1: 0, 2: 0})
    if kind == "corrupt":
        mask.write_bytes(mask.read_bytes()[:60])
    elif kind == "no png":
        mask.write_bytes(b"hello")
    elif kind == "rgb":
        Image.fromarray(np.stack([labels] * 3, -1)).save(mask)
    elif kind == "16 bit":
        Image.fromarray(labels.astype(np.uint16) * 300).save(mask)
    elif kind == "size":
        write_mask(mask, labels[:-2])
    elif kind == "grey 255":
        labels[0, 0] = 255
        Image.fromarray(labels).save(mask)
    elif kind == "jpeg":
        Image.fromarray(labels).save(mask, format="JPEG")


@pytest.mark.parametrize(
    ("kind", "says"),
    [
        ("corrupt", "cannot be read"),
        ("no png", "cannot be read"),
        ("rgb", "a RGB picture, colours are not object ids"),
        ("16 bit", "16-bit"),
        ("size", "46x64 pixels .*expected 48x64"),
        ("grey 255", "greyscale mask with 255 and 2 other values"),
        ("jpeg", "a JPEG picture"),
    ],
)
def test_a_bad_mask_is_named(tmp_path: Path, kind: str, says: str) -> None:
    mask = folder_tree(tmp_path) / "a" / "masks" / "00002.png"
    spoil(kind, mask)
    with pytest.raises(DatasetError, match=says) as caught:
        open_dataset("folder", tmp_path).sequences[0].annotated()
    assert str(mask) in str(caught.value)


def test_missing_and_surplus_files(tmp_path: Path) -> None:
    folder_tree(tmp_path)
    (tmp_path / "a/masks/00003.png").unlink()
    with pytest.raises(DatasetError, match=r"a/masks: 4 masks for 5 frames.*00003.png is missing"):
        open_dataset("folder", tmp_path)
    write_mask(tmp_path / "a/masks/00003.png", labels_at(3, {1: 0}))
    write_mask(tmp_path / "a/masks/00009.png", labels_at(3, {1: 0}))
    with pytest.raises(DatasetError, match=r"00009.png: a mask without a frame"):
        open_dataset("folder", tmp_path)
    (tmp_path / "a/masks/00009.png").unlink()
    for path in (tmp_path / "b/masks").iterdir():
        write_mask(path, np.zeros(SIZE, np.uint8))
    with pytest.raises(DatasetError, match=r"b/masks: no mask .* shows an object"):
        open_dataset("folder", tmp_path).sequences[1].annotated()


def test_more_than_255_objects(tmp_path: Path) -> None:
    sav_tree(tmp_path)
    for number in range(2, 257):
        write_mask(tmp_path / f"Annotations_6fps/sav_000001/{number:03d}/00000.png", labels_at(0, {1: 0}))
    with pytest.raises(DatasetError, match="sav_000001: 257 object folders, expected at most 255"):
        open_dataset("sav", tmp_path).sequences[0].annotated()


def test_two_objects_in_one_sav_mask(tmp_path: Path) -> None:
    sav_tree(tmp_path)
    write_mask(tmp_path / "Annotations_6fps/sav_000001/000/00004.png", labels_at(4, {1: 0, 2: 0}))
    with pytest.raises(DatasetError, match=r"000/00004.png: 2 different values above 0"):
        open_dataset("sav", tmp_path).sequences[0].annotated()


def test_an_object_the_meta_file_lists_must_appear(tmp_path: Path) -> None:
    meta_tree(tmp_path, "ytvos", "valid", full=True)
    meta = tmp_path / "valid/meta.json"
    meta.write_text(meta.read_text().replace('"2":', '"7":'))
    with pytest.raises(DatasetError, match="no mask shows object '7' of vid"):
        open_dataset("ytvos", tmp_path).sequences[0].annotated()
    meta.write_text("{")
    with pytest.raises(DatasetError, match=r"meta.json: not JSON"):
        open_dataset("ytvos", tmp_path)


def test_unknown_names_have_a_neighbour(tmp_path: Path) -> None:
    with pytest.raises(DatasetError, match=r"did you mean 'davis2017'"):
        open_dataset("davis", tmp_path)
    for name in DATASETS:
        with pytest.raises(DatasetError):
            open_dataset(name, tmp_path)
    with pytest.raises(DatasetError, match="no such folder"):
        open_dataset("folder", tmp_path / "nowhere")
    dataset = open_dataset("folder", folder_tree(tmp_path, ("bear", "swan")))
    with pytest.raises(DatasetError, match=r"no sequence 'baer' \(did you mean 'bear'\?\)"):
        dataset.choose(["baer"])


def test_the_digest_follows_every_file(tmp_path: Path) -> None:
    folder_tree(tmp_path)

    def digest() -> str:
        return open_dataset("folder", tmp_path).sequences[0].digest()

    before = digest()
    assert digest() == before
    write_frame(tmp_path / "a/frames/00001.jpg", labels_at(2, {1: 0}))
    changed = digest()
    write_mask(tmp_path / "a/masks/00001.png", labels_at(2, {1: 0}))
    assert len({before, changed, digest()}) == 3

"""The folder layouts of the public data sets. Each opener lists files and reads no picture."""

from __future__ import annotations

import os
from collections.abc import Callable, Collection
from pathlib import Path

from pydantic import BaseModel

from surgery.errors import DatasetError, VideoError, nearest
from surgery.evaluation.dataset import Dataset, Sequence, frame_number
from surgery.validation import read_as
from surgery.video.folder import KINDS, natural_sort


def open_dataset(name: str, root: str | Path, split: str | None = None) -> Dataset:
    """Open an annotated data set.

    Args:
        name: one of `DATASETS`. root: its folder, laid out as it is published (docs/evaluation.md has the table).
        split: which part; default the one the data set is usually reported on.

    Raises:
        DatasetError: an unknown name or split, a folder or file of the layout that is missing, a mask without a frame
            or frames without masks where every frame must have one.
    """
    if name not in DATASETS:
        raise DatasetError(f"data set {name!r}{nearest(name, DATASETS)}; known: {', '.join(DATASETS)}")
    folder = Path(root).expanduser()
    if not os.path.isdir(folder):  # False, too, for a name that no file system takes
        raise DatasetError(f"{folder}: no such folder, expected the root of a {name} data set")
    dataset = DATASETS[name](name, folder, split)
    if not dataset.sequences:
        raise DatasetError(f"{folder}: no sequence found, expected at least one ({name} layout)")
    return dataset


def _davis(name: str, root: Path, split: str | None) -> Dataset:
    split = split or "val"
    # test-dev and test-challenge publish the masks of the first frame only.
    complete = not split.startswith("test")
    names = _read_list(root / "ImageSets" / "2017" / f"{split}.txt", root / "ImageSets")
    sequences = tuple(
        _labelled(seq, root / "JPEGImages/480p" / seq, root / "Annotations/480p" / seq, complete, 24.0)
        for seq in dict.fromkeys(names)
    )
    return Dataset(name, root, split, sequences, "davis2017")


def _split_folder(name: str, root: Path, split: str) -> Path:
    folder = root / split
    if (folder / "JPEGImages").is_dir():
        return folder
    if root.name == split and (root / "JPEGImages").is_dir():
        return root
    present = sorted(entry.name for entry in root.iterdir() if (entry / "JPEGImages").is_dir())
    raise DatasetError(
        f"{folder}: no JPEGImages folder there, expected split {split!r} of {name}{nearest(split, present)}; "
        f"splits here: {', '.join(present) or 'none'}"
    )


def _mose(name: str, root: Path, split: str | None) -> Dataset:
    split = split or "valid"
    folder = _split_folder(name, root, split)
    sequences = tuple(
        _labelled(seq, folder / "JPEGImages" / seq, folder / "Annotations" / seq, complete=split == "train")
        for seq in _children(folder / "JPEGImages")
    )
    return Dataset(name, root, split, sequences, "vos-benchmark")


class _Range(BaseModel):
    start: int
    end: int


class _Object(BaseModel):
    frame_range: _Range | None = None


class _Video(BaseModel):
    objects: dict[str, _Object]


class _Meta(BaseModel):
    videos: dict[str, _Video]


def _with_meta(name: str, root: Path, split: str | None) -> Dataset:
    """LVOS and YouTube-VOS: a meta file lists the objects of every video."""
    split, lvos = split or "valid", name == "lvos"
    folder = _split_folder(name, root, split)
    places = [folder / "meta.json"]
    if lvos:
        places = [folder / f"{split}_meta.json", *places, root / f"{split}_meta.json"]
    path = next((place for place in places if place.is_file()), None)
    if path is None:
        raise DatasetError(f"{places[0]}: no such file, expected the meta file of the {split} split")
    sequences = []
    for seq, video in sorted(_Meta.model_validate(read_as(path, _Meta, DatasetError)).videos.items()):
        sequence = _labelled(seq, folder / "JPEGImages" / seq, folder / "Annotations" / seq, False, 6.0)
        sequence.expected = tuple(video.objects)
        for key, thing in video.objects.items() if lvos else ():
            if thing.frame_range is None:
                raise DatasetError(f"{path}: object {key!r} of {seq} has no frame_range, expected one in LVOS")
            sequence.spans[key] = thing.frame_range.start, thing.frame_range.end
        sequences.append(sequence)
    convention, tree = ("lvos", "labels") if lvos else ("after-prompt", "ytvos")
    return Dataset(name, root, split, tuple(sequences), convention, tree)


def _sav(name: str, root: Path, split: str | None) -> Dataset:
    lists = sorted(root.glob("*.txt")) if split is None else [root / f"{split}.txt"]
    if len(lists) != 1:
        raise DatasetError(
            f"{root}: {len(lists)} list files, expected one such as sav_val.txt: name the split (its file without .txt)"
        )
    sequences = []
    for seq in _read_list(lists[0], root):
        frames = _files(root / "JPEGImages_24fps" / seq, "frames")
        masks = root / "Annotations_6fps" / seq
        objects = {thing: _masks(masks / thing, frames) for thing in _children(masks)}
        if not objects:
            raise DatasetError(f"{masks}: no object folder, expected one per object such as 000")
        sequences.append(Sequence(seq, frames, objects, per_object=True, fps=24.0))
    return Dataset(name, root, lists[0].stem, tuple(sequences), "sav", tree="objects")


def _folder(name: str, root: Path, split: str | None) -> Dataset:
    if split is not None:
        raise DatasetError(f"split {split!r}: the layout {name!r} has no splits; choose sequences instead")
    found = [seq for seq in _children(root) if (root / seq / "frames").is_dir()]
    sequences = tuple(_labelled(seq, root / seq / "frames", root / seq / "masks", complete=True) for seq in found)
    return Dataset(name, root, None, sequences, "vos-benchmark")


DATASETS: dict[str, Callable[[str, Path, str | None], Dataset]] = {
    "davis2017": _davis,
    "mose": _mose,
    "lvos": _with_meta,
    "sav": _sav,
    "ytvos": _with_meta,
    "folder": _folder,
}


def _labelled(name: str, frames_at: Path, masks_at: Path, complete: bool, fps: float | None = None) -> Sequence:
    """A sequence with one label PNG per annotated frame, named as the frame."""
    frames = _files(frames_at, "frames")
    masks = _masks(masks_at, frames)
    if complete and len(masks) != len(frames):
        missing = next(index for index in range(len(frames)) if index not in masks)
        raise DatasetError(
            f"{masks_at}: {len(masks)} masks for {len(frames)} frames, expected one each; "
            f"{frames[missing].stem}.png is missing"
        )
    return Sequence(name, frames, {"": masks}, fps=fps)


def _files(folder: Path, what: str, kinds: Collection[str] = KINDS) -> list[Path]:
    if not folder.is_dir():
        raise DatasetError(f"{folder}: no such folder, expected the {what} of a sequence")
    try:
        files = natural_sort(path for path in _visible(folder) if path.suffix.lower() in kinds)
    except VideoError as error:
        raise DatasetError(str(error)) from error
    if not files:
        raise DatasetError(f"{folder}: no {what}, expected {' or '.join(kinds)} files")
    return files


def _masks(folder: Path, frames: list[Path]) -> dict[int, Path]:
    """The label PNGs of a folder, by the index of the frame of the same number."""
    indices = {frame_number(path): index for index, path in enumerate(frames)}
    found = {}
    for path in _files(folder, "masks", (".png",)):
        if frame_number(path) not in indices:
            raise DatasetError(f"{path}: a mask without a frame, expected a frame file of the same number")
        found[indices[frame_number(path)]] = path
    return found


def _children(folder: Path) -> list[str]:
    if not folder.is_dir():
        raise DatasetError(f"{folder}: no such folder")
    return sorted(entry.name for entry in _visible(folder) if entry.is_dir())


def _visible(folder: Path) -> list[Path]:
    return [entry for entry in folder.iterdir() if not entry.name.startswith(".")]


def _read_list(path: Path, folder: Path) -> list[str]:
    if not path.is_file():
        known = sorted(entry.stem for entry in folder.rglob("*.txt")) if folder.is_dir() else []
        raise DatasetError(
            f"{path}: no such list of sequences{nearest(path.stem, known)}; "
            f"lists here: {', '.join(dict.fromkeys(known)) or 'none'}"
        )
    return path.read_text(encoding="utf-8").split()

"""The folder layouts of the public data sets. Each opener lists files and reads no picture."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Collection
from pathlib import Path
from typing import Any

from surgery.errors import DatasetError, VideoError, nearest
from surgery.evaluation.dataset import Dataset, Sequence, frame_number
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
    year = name.removeprefix("davis")
    lists = [root / "ImageSets" / part / f"{split}.txt" for part in ((year, "480p") if year == "2016" else (year,))]
    names = [_davis_name(line) for line in _read_list(lists, root / "ImageSets")]
    # test-dev and test-challenge publish the masks of the first frame only.
    hidden = split.startswith("test")
    sequences = tuple(
        _labelled(seq, root / "JPEGImages" / "480p" / seq, root / "Annotations" / "480p" / seq, complete=not hidden)
        for seq in dict.fromkeys(names)
    )
    for sequence in sequences:
        sequence.merged, sequence.fps = year == "2016", 24.0
    return Dataset(name, root, split, sequences, "davis2017")


def _davis_name(line: str) -> str:
    """2017 lists names; 2016 lists two files per frame, `/JPEGImages/480p/bear/00000.jpg /Annotations/...`."""
    first = line.split()[0]
    return Path(first).parent.name if "/" in first else first


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
    found = _children(folder / "JPEGImages")
    sequences = tuple(
        _labelled(seq, folder / "JPEGImages" / seq, folder / "Annotations" / seq, complete=split == "train")
        for seq in found
    )
    return Dataset(name, root, split, sequences, "vos-benchmark")


def _with_meta(name: str, root: Path, split: str | None) -> Dataset:
    """LVOS and YouTube-VOS: a meta file lists the objects of every video."""
    split = split or "valid"
    folder = _split_folder(name, root, split)
    places = [folder / "meta.json"]
    if name == "lvos":
        places = [folder / f"{split}_meta.json", *places, root / f"{split}_meta.json"]
    path = next((place for place in places if place.is_file()), None)
    if path is None:
        raise DatasetError(f"{places[0]}: no such file, expected the meta file of the {split} split")
    sequences = []
    for seq, objects in _meta(path).items():
        sequence = _labelled(seq, folder / "JPEGImages" / seq, folder / "Annotations" / seq, complete=False)
        sequence.expected, sequence.fps = tuple(objects), 6.0
        if name == "lvos":
            sequence.spans = {key: _span(path, seq, key, value) for key, value in objects.items()}
        sequences.append(sequence)
    if name == "lvos":
        return Dataset(name, root, split, tuple(sequences), "lvos")
    return Dataset(name, root, split, tuple(sequences), "after-prompt", tree="ytvos")


def _meta(path: Path) -> dict[str, dict[str, Any]]:
    try:
        videos = json.loads(path.read_text(encoding="utf-8"))["videos"]
        return {seq: dict(videos[seq]["objects"]) for seq in sorted(videos)}
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise DatasetError(
            f"{path}: not a meta file ({type(error).__name__}: {error}), expected "
            '{"videos": {NAME: {"objects": {ID: {...}}}}}'
        ) from error


def _span(path: Path, seq: str, key: str, value: Any) -> tuple[int, int]:
    try:
        span = value["frame_range"]
        return int(span["start"]), int(span["end"])
    except (KeyError, TypeError, ValueError) as error:
        raise DatasetError(
            f"{path}: object {key!r} of {seq} has no usable frame_range, expected "
            '{"start": FRAME, "end": FRAME} as in the LVOS meta files'
        ) from error


def _sav(name: str, root: Path, split: str | None) -> Dataset:
    lists = sorted(root.glob("*.txt")) if split is None else [root / f"{split}.txt"]
    if split is None and len(lists) != 1:
        raise DatasetError(
            f"{root}: {len(lists)} list files, expected one such as sav_val.txt: name the split (its file without .txt)"
        )
    split = lists[0].stem
    sequences = []
    for seq in _read_list(lists, root):
        frames = _files(root / "JPEGImages_24fps" / seq, "frames")
        masks = root / "Annotations_6fps" / seq
        objects = {thing: _masks(masks / thing, frames) for thing in _children(masks)}
        if not objects:
            raise DatasetError(f"{masks}: no object folder, expected one per object such as 000")
        sequences.append(Sequence(seq, frames, object_masks=objects, fps=24.0))
    return Dataset(name, root, split, tuple(sequences), "sav", tree="objects")


def _folder(name: str, root: Path, split: str | None) -> Dataset:
    if split is not None:
        raise DatasetError(f"split {split!r}: the layout {name!r} has no splits; choose sequences instead")
    found = [seq for seq in _children(root) if (root / seq / "frames").is_dir()]
    sequences = tuple(_labelled(seq, root / seq / "frames", root / seq / "masks", complete=True) for seq in found)
    if not sequences:
        raise DatasetError(f"{root}: no sequence, expected folders SEQ/frames and SEQ/masks")
    return Dataset(name, root, None, sequences, "vos-benchmark")


DATASETS: dict[str, Callable[[str, Path, str | None], Dataset]] = {
    "davis2016": _davis,
    "davis2017": _davis,
    "mose": _mose,
    "lvos": _with_meta,
    "sav": _sav,
    "ytvos": _with_meta,
    "folder": _folder,
}


def _labelled(name: str, frames_at: Path, masks_at: Path, complete: bool) -> Sequence:
    """A sequence with one label PNG per annotated frame, named as the frame."""
    frames = _files(frames_at, "frames")
    masks = _masks(masks_at, frames)
    if complete and len(masks) != len(frames):
        missing = next(index for index in range(len(frames)) if index not in masks)
        raise DatasetError(
            f"{masks_at}: {len(masks)} masks for {len(frames)} frames, expected one each; "
            f"{frames[missing].stem}.png is missing"
        )
    return Sequence(name, frames, masks)


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


def _read_list(places: list[Path], folder: Path) -> list[str]:
    path = next((place for place in places if place.is_file()), None)
    if path is None:
        known = sorted(entry.stem for entry in folder.rglob("*.txt")) if folder.is_dir() else []
        raise DatasetError(
            f"{places[0]}: no such list of sequences{nearest(places[0].stem, known)}; "
            f"lists here: {', '.join(dict.fromkeys(known)) or 'none'}"
        )
    return [line.strip() for line in path.read_text(encoding="utf-8").splitlines() if line.strip()]

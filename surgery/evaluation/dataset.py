"""What an annotated data set is to the evaluation: sequences of frames, and objects with masks on some of them."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path

import numpy as np

from surgery.errors import DatasetError, VideoError, nearest
from surgery.evaluation.truth import read_binary, read_labels
from surgery.video import Video, open_video
from surgery.video.masks import MAX_ID, Mask


def frame_number(path: Path) -> int:
    """The integer at the end of a file's name, which `natural_sort` has made sure of: `00012.png` is frame 12."""
    return int(path.stem[len(path.stem.rstrip("0123456789")) :])


@dataclass(frozen=True)
class Annotated:
    """One object of a sequence.

    name: as the data set calls it. id: 1..255, what the model is prompted with. first: index of the first annotated
    frame that shows it. frames: indices of the frames annotated for it, rising. span: [start, end) in the numbers of
    the frame files, where the data set's meta file says so.
    """

    name: str
    id: int
    first: int
    frames: tuple[int, ...]
    span: tuple[int, int] | None = None


@dataclass
class Sequence:
    """One annotated video; masks are read when asked for, one frame at a time.

    Attributes:
        name: the data set's name for it. frames: picture files in order. masks: PNG by frame index, of every object by
        name where they are `per_object` and may overlap; else label maps, under the name "". spans: object name ->
        (start, end) of the meta file. fps: frames per second, or None. expected: objects that must appear.
    """

    name: str
    frames: list[Path]
    masks: dict[str, dict[int, Path]] = field(default_factory=dict)
    per_object: bool = False
    spans: dict[str, tuple[int, int]] = field(default_factory=dict)
    fps: float | None = None
    expected: tuple[str, ...] = ()

    @cached_property
    def video(self) -> Video:
        """The frames. Raises DatasetError when the first cannot be read."""
        try:
            return open_video(self.frames[0].parent)
        except VideoError as error:
            raise DatasetError(str(error)) from error

    @property
    def size(self) -> tuple[int, int]:
        """(height, width) of the frames."""
        return self.video.size

    def digest(self) -> str:
        """`"sha256:..."` over names and contents of all frames and masks, and what the meta file says."""
        total = hashlib.sha256(f"{self.name} {sorted(self.spans.items())}".encode())
        for path in [*self.frames, *self._mask_files()]:
            total.update(f"\n{path.parent.name}/{path.name} ".encode())
            try:
                total.update(hashlib.sha256(path.read_bytes()).digest())
            except OSError as error:
                raise DatasetError(f"{path}: cannot be read ({error}), expected a file of the data set") from error
        return f"sha256:{total.hexdigest()}"

    def annotated(self, limit: int | None = None) -> list[Annotated]:
        """The objects, by reading every mask of the first `limit` frames once.

        Raises:
            DatasetError: a mask that cannot be read or has another size than the frames, no object, more than 255
                objects, or an object of the meta file that no mask shows.
        """
        limit = len(self.frames) if limit is None else limit
        if len(self.masks) > MAX_ID:
            raise DatasetError(f"{self.name}: {len(self.masks)} object folders, expected at most {MAX_ID} objects")
        first: dict[str, int] = {}
        frames: dict[str, tuple[int, ...]] = {}
        for folder, files in self.masks.items():
            listed = tuple(index for index in sorted(files) if index < limit)
            for index in listed:
                for name in self._shown(folder, files[index]):
                    first.setdefault(name, index)
                    frames[name] = listed
        self._check_objects(first, limit)
        names = sorted(first, key=lambda name: (first[name], int(name) if name.isdigit() else 0, name))
        ids = {name: number if self.per_object else int(name) for number, name in enumerate(names, 1)}
        return [
            Annotated(name, ids[name], first[name], frames[name], self.spans.get(name))
            for name in sorted(ids, key=ids.__getitem__)
        ]

    def truth(self, index: int, objects: Iterable[Annotated]) -> Iterator[tuple[Annotated, Mask]]:
        """Masks, bool [H, W], of those `objects` that are annotated on frame `index`."""
        if self.per_object:
            for thing in objects:
                path = self.masks[thing.name].get(index)
                if path is not None:
                    yield thing, read_binary(path, self.size)
        elif index in self.masks[""]:
            labels = read_labels(self.masks[""][index], self.size)
            for thing in objects:
                yield thing, labels == thing.id

    def _shown(self, folder: str, path: Path) -> list[str]:
        """Names of the objects that a mask shows."""
        if self.per_object:
            return [folder] if read_binary(path, self.size).any() else []
        return [str(value) for value in np.unique(read_labels(path, self.size)).tolist() if value]

    def _mask_files(self) -> list[Path]:
        return [files[index] for files in self.masks.values() for index in sorted(files)]

    def _check_objects(self, first: dict[str, int], limit: int) -> None:
        files = self._mask_files()
        where = files[0].parent if files else self.name
        if not first:
            raise DatasetError(f"{where}: no mask of the first {limit} frames shows an object, expected at least one")
        for name in [*self.expected, *filter(None, self.masks)]:
            if name not in first and limit >= len(self.frames):
                raise DatasetError(f"{where}: no mask shows object {name!r} of {self.name}, which the data set lists")


@dataclass(frozen=True)
class Dataset:
    """An opened data set.

    name: its layout. root: where. split: which part, or None. convention: how it is scored unless said otherwise.
    tree: how predictions are laid out, "labels", "objects" or "ytvos".
    """

    name: str
    root: Path
    split: str | None
    sequences: tuple[Sequence, ...]
    convention: str
    tree: str = "labels"

    def choose(self, names: Iterable[str] | None) -> Dataset:
        """Only the sequences of these names, in the data set's order. Raises DatasetError for an unknown one."""
        if names is None:
            return self
        wanted = list(names)
        known = [sequence.name for sequence in self.sequences]
        for name in wanted:
            if name not in known:
                raise DatasetError(
                    f"{self.root}: no sequence {name!r}{nearest(name, known)}; it has {', '.join(known[:8])}"
                    + (f" and {len(known) - 8} more" if len(known) > 8 else "")
                )
        if not wanted:
            raise DatasetError("no sequence named, expected at least one, or none to take all")
        return replace(self, sequences=tuple(sequence for sequence in self.sequences if sequence.name in wanted))

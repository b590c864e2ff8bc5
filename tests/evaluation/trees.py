"""Tiny annotated data sets in every published layout: two squares that move to the right over a dark background."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
from PIL import Image

from surgery.video import write_label_png

SIZE = (48, 64)
COLOURS = {1: (230, 90, 20), 2: (40, 120, 230), 3: (120, 220, 40)}


def labels_at(index: int, objects: dict[int, int]) -> np.ndarray:
    """Label map of frame `index`; objects: id -> first frame on which it is seen."""
    labels = np.zeros(SIZE, dtype=np.uint8)
    for obj_id, first in objects.items():
        if index >= first:
            top, left = 4 + 14 * (obj_id - 1), 6 + 2 * index
            labels[top : top + 12, left : left + 14] = obj_id
    return labels


def mask_of(runs: list[int], size: tuple[int, int]) -> np.ndarray:
    """The bool [H, W] mask of `run_lengths`."""
    values = np.arange(len(runs)) % 2 == 1
    return np.repeat(values, runs).reshape(size)


def write_frame(path: Path, labels: np.ndarray) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    frame = np.full((*labels.shape, 3), 40, dtype=np.uint8)
    for obj_id, colour in COLOURS.items():
        frame[labels == obj_id] = colour
    Image.fromarray(frame).save(path, quality=95)


def write_mask(path: Path, labels: np.ndarray) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    write_label_png(path, labels)


def folder_tree(root: Path, names: tuple[str, ...] = ("a", "b"), frames: int = 5) -> Path:
    for number, name in enumerate(names):
        for index in range(frames):
            labels = labels_at(index, {1: 0, 2: number})
            write_frame(root / name / "frames" / f"{index:05d}.jpg", labels)
            write_mask(root / name / "masks" / f"{index:05d}.png", labels)
    return root


def davis_tree(root: Path, frames: int = 5, masked: int | None = None, split: str = "val") -> Path:
    for name in ("bear", "swan"):
        for index in range(frames):
            labels = labels_at(index, {1: 0, 2: 0})
            write_frame(root / "JPEGImages/480p" / name / f"{index:05d}.jpg", labels)
            if index < (frames if masked is None else masked):
                mask = root / "Annotations/480p" / name / f"{index:05d}.png"
                labels[0, 0] = 255  # void, as DAVIS 2017 has at some borders
                write_mask(mask, labels)
    folder = root / "ImageSets" / "2017"
    folder.mkdir(parents=True)
    (folder / f"{split}.txt").write_text("bear\nswan\n")
    return root


def mose_tree(root: Path, split: str, frames: int = 5) -> Path:
    for index in range(frames):
        labels = labels_at(index, {1: 0, 3: 0})
        write_frame(root / split / "JPEGImages/abc123" / f"{index:05d}.jpg", labels)
        if split == "train" or index == 0:
            write_mask(root / split / "Annotations/abc123" / f"{index:05d}.png", labels)
    return root


def meta_tree(root: Path, name: str, split: str, full: bool, frames: int = 6) -> Path:
    """LVOS (frames 00000001, 00000006, ...) or YouTube-VOS (00000, 00005, ...); object 2 appears on the third frame.

    full: masks on every frame; else only those on which an object is first seen, holding only that object.
    """
    lvos = name == "lvos"
    stems = [f"{5 * index + 1:08d}" if lvos else f"{5 * index:05d}" for index in range(frames)]
    for index, stem in enumerate(stems):
        labels = labels_at(index, {1: 0, 2: 2})
        write_frame(root / split / "JPEGImages/vid" / f"{stem}.jpg", labels)
        if full:
            write_mask(root / split / "Annotations/vid" / f"{stem}.png", labels)
        elif index in (0, 2):
            new = np.where(labels == (1 if index == 0 else 2), labels, 0).astype(np.uint8)
            write_mask(root / split / "Annotations/vid" / f"{stem}.png", new)
    if lvos:
        last = 5 * (frames - 1) + 1
        objects = {
            "1": {"frame_range": {"start": "1", "end": str(last), "frame_nums": str(frames)}},
            "2": {"frame_range": {"start": "11", "end": str(last), "frame_nums": str(frames - 2)}},
        }
    else:
        objects = {
            "1": {"category": "penguin", "frames": stems},
            "2": {"category": "sedan", "frames": stems[2:]},
        }
    meta = root / split / (f"{split}_meta.json" if lvos else "meta.json")
    meta.write_text(json.dumps({"videos": {"vid": {"objects": objects}}}))
    return root


def sav_tree(root: Path, frames: int = 13) -> Path:
    """24 fps frames, masks on every fourth; object 001 overlaps 000 and appears on frame 4."""
    for index in range(frames):
        labels = labels_at(index, {1: 0, 2: 0})
        write_frame(root / "JPEGImages_24fps/sav_000001" / f"{index:05d}.jpg", labels)
        if index % 4 == 0:
            whole = (labels > 0).astype(np.uint8)
            part = (labels == 2).astype(np.uint8) * (index >= 4)
            write_mask(root / "Annotations_6fps/sav_000001/000" / f"{index:05d}.png", whole)
            write_mask(root / "Annotations_6fps/sav_000001/001" / f"{index:05d}.png", part.astype(np.uint8))
    (root / "sav_val.txt").write_text("sav_000001\n")
    return root

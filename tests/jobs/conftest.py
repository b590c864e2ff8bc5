"""Short synthetic videos, and a manifest of them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from tests.cli.test_cli import clip

BOX = "20,30,50,60"


def write_frames(folder: Path, frames: int, shift: int = 0) -> Path:
    """A folder of pictures with one square that moves."""
    folder.mkdir(parents=True)
    for number, picture in enumerate(clip(frames)):
        picture[5:15, shift : shift + 10] = (40, 90, 220)
        Image.fromarray(picture).save(folder / f"{number:05d}.png")
    return folder


def write_manifest(path: Path, lines: list[dict[str, Any]]) -> Path:
    path.write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")
    return path


def masks(out: Path) -> dict[str, bytes]:
    """Every mask of a job, by its path in it."""
    return {path.relative_to(out).as_posix(): path.read_bytes() for path in sorted(out.rglob("masks/*.png"))}


@pytest.fixture
def videos(tmp_path: Path) -> Path:
    """A folder of four videos of 3 to 6 frames, v0 to v3."""
    for number in range(4):
        write_frames(tmp_path / "videos" / f"v{number}", 3 + number, 10 * number)
    return tmp_path / "videos"

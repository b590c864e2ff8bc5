"""Messages name a thing once."""

from __future__ import annotations

from pathlib import Path

import pytest

from surgery.calibration.clips import gather_clips
from surgery.errors import about
from surgery.loading import ModelLoadError, load_model


@pytest.mark.parametrize(
    ("name", "reason", "expected"),
    [
        ("a.mp4", "a.mp4: no such file", "a.mp4: no such file"),
        ("a", "clips/a.mp4, frame 3: damaged", "clips/a.mp4, frame 3: damaged"),
        ("a", "the file is like a: b", "a: the file is like a: b"),
        ("clip", "no prompt", "clip: no prompt"),
    ],
)
def test_about(name: str, reason: str, expected: str) -> None:
    assert about(name, reason) == expected


def test_a_clip_that_is_skipped_is_named_once(tmp_path: Path) -> None:
    _, skipped = gather_clips([tmp_path / "nope.mp4"])
    assert str(skipped[0]).count("nope.mp4") == 1
    with pytest.raises(ModelLoadError) as caught:
        load_model(str(tmp_path))
    assert str(caught.value).count(str(tmp_path)) == 1

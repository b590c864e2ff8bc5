from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from surgery.errors import VideoError
from surgery.video import first_frames, open_video
from surgery.video.folder import natural_sort

from .clips import close_to, picture


def save(path: Path, rgb: np.ndarray, **options: Any) -> Path:
    Image.fromarray(rgb).save(path, **options)
    return path


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    clip = tmp_path / "my clip"
    clip.mkdir()
    return clip


def test_frames_come_in_the_order_of_their_numbers(folder: Path) -> None:
    for index in (10, 9, 0, 2, 1):
        save(folder / f"frame{index}.png", picture(index))
    video = open_video(folder)
    assert (video.name, video.fps, video.size, video.num_frames) == ("my clip", None, (48, 64), 5)
    for _ in range(2):
        frames = list(video)
        assert [int(frame[0, 0, 2]) // 8 for frame in frames] == [0, 1, 2, 9, 10]
        assert all(frame.dtype == np.uint8 and frame.shape == (48, 64, 3) for frame in frames)
    frames[0][:] = 0  # a frame can be written to, torch.from_numpy wants that


def test_frames_are_called_as_their_pictures_are(folder: Path) -> None:
    for number in (3, 12, 4):
        save(folder / f"shot.{number}.png", picture(number))
    video = open_video(folder)
    assert video.names == ("shot.3", "shot.4", "shot.12")
    assert [video.name_of(index) for index in range(3)] == ["shot.3", "shot.4", "shot.12"]
    assert first_frames(video, 2).names == ("shot.3", "shot.4")
    assert open_video([picture(0)]).names is None
    assert open_video([picture(0)]).name_of(7) == "00007"


def test_path_as_text_and_upper_case_suffixes(folder: Path) -> None:
    save(folder / "00000.JPG", picture(0))
    save(folder / "00001.jpeg", picture(1))
    assert len(list(open_video(str(folder)))) == 2


def test_other_and_hidden_files_are_left_out(folder: Path) -> None:
    save(folder / "0.png", picture(0))
    save(folder / ".1.jpg", picture(1))
    (folder / "notes.txt").write_text("a day at the sea")
    (folder / "masks2.png").mkdir()
    assert open_video(folder).num_frames == 1


@pytest.mark.parametrize("mode", ["L", "P", "RGBA", "1", "LA"])
def test_every_8_bit_mode_becomes_rgb(folder: Path, mode: str) -> None:
    Image.fromarray(picture(3)).convert(mode).save(folder / "0.png")
    (frame,) = open_video(folder)
    expected = np.array(Image.fromarray(picture(3)).convert(mode).convert("RGB"))
    np.testing.assert_array_equal(frame, expected)


@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_orientation_of_jpegs_is_applied(folder: Path, orientation: int) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    # What a camera held so would store: the inverse of what a viewer does.
    inverse = {6: Image.Transpose.ROTATE_90, 8: Image.Transpose.ROTATE_270, 3: Image.Transpose.ROTATE_180}
    inverse |= {2: Image.Transpose.FLIP_LEFT_RIGHT, 4: Image.Transpose.FLIP_TOP_BOTTOM}
    inverse |= {5: Image.Transpose.TRANSPOSE, 7: Image.Transpose.TRANSVERSE}
    stored = Image.fromarray(picture(0))
    if orientation in inverse:
        stored = stored.transpose(inverse[orientation])
    stored.save(folder / "0.jpg", exif=exif, quality=95)
    save(folder / "1.jpg", picture(1), quality=95)
    video = open_video(folder)
    assert video.size == (48, 64)
    assert all(close_to(frame, picture(index)) for index, frame in enumerate(video))


def test_exif_orientation_that_makes_sizes_differ(folder: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    save(folder / "0.jpg", picture(0))
    save(folder / "1.jpg", picture(1), exif=exif)
    with pytest.raises(VideoError, match=r"1\.jpg: 64x48 pixels .* expected 48x64 as in the first frame"):
        open_video(folder)


def test_exif_orientation_of_a_png_is_seen_when_its_turn_comes(folder: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    save(folder / "0.png", picture(0))
    save(folder / "1.png", picture(1), exif=exif)
    with pytest.raises(VideoError, match=r"1\.png: 64x48 pixels .* expected 48x64 as in the first frame"):
        list(open_video(folder))


def test_empty_folder(folder: Path) -> None:
    with pytest.raises(VideoError, match=r"my clip: no frames, expected .*\.png files, found nothing"):
        open_video(folder)


def test_folder_of_something_else(folder: Path) -> None:
    (folder / "a.txt").write_text("x")
    (folder / "b.txt").write_text("x")
    with pytest.raises(VideoError, match=r"found 2 others such as a\.txt"):
        open_video(folder)


@pytest.mark.parametrize("other", ["1.png", "1.webp"])
def test_mixed_formats(folder: Path, other: str) -> None:
    save(folder / "0.jpg", picture(0))
    save(folder / other, picture(1))
    with pytest.raises(VideoError, match=rf"{other}: a \S+ picture among JPEG frames, expected one format"):
        open_video(folder)


def test_inconsistent_size_fails_at_open(folder: Path) -> None:
    save(folder / "0.png", picture(0))
    save(folder / "1.png", picture(1, 48, 62))
    with pytest.raises(VideoError, match=r"1\.png: 48x62 pixels .* expected 48x64"):
        open_video(folder)


def test_a_size_that_changes_after_open(folder: Path) -> None:
    save(folder / "0.png", picture(0))
    save(folder / "1.png", picture(1))
    video = open_video(folder)
    save(folder / "1.png", picture(1, 20, 20))
    with pytest.raises(VideoError, match=r"1\.png: 20x20 pixels"):
        list(video)


def test_garbage_named_like_a_frame(folder: Path) -> None:
    save(folder / "0.jpg", picture(0))
    (folder / "1.jpg").write_bytes(b"not a picture")
    with pytest.raises(VideoError, match=r"1\.jpg: the picture cannot be read"):
        open_video(folder)


@pytest.mark.parametrize("suffix", [".jpg", ".png"])
@pytest.mark.parametrize("index", [0, 1])
def test_cut_short_picture(folder: Path, suffix: str, index: int) -> None:
    noise = np.random.default_rng(0).integers(0, 256, (48, 64, 3), dtype=np.uint8)
    for number in range(2):
        save(folder / f"{number}{suffix}", noise)
    bad = folder / f"{index}{suffix}"
    bad.write_bytes(bad.read_bytes()[:-300])
    # The first frame is decoded at open; a later one has a good header and is found when its turn comes.
    if index == 0:
        with pytest.raises(VideoError, match=rf"0\{suffix}: the picture cannot be read"):
            open_video(folder)
    else:
        video = open_video(folder)
        with pytest.raises(VideoError, match=rf"1\{suffix}: the picture cannot be read"):
            list(video)


def test_16_bit_pictures(folder: Path) -> None:
    Image.fromarray(np.full((8, 8), 3000, np.uint16)).save(folder / "0.png")
    with pytest.raises(VideoError, match=r"0\.png: a picture of mode 'I.*', expected 8 bits per channel"):
        open_video(folder)


def test_a_name_without_a_number(folder: Path) -> None:
    save(folder / "0.png", picture(0))
    save(folder / "cover.png", picture(0))
    with pytest.raises(VideoError, match=r"cover\.png: the name has no frame number"):
        open_video(folder)


def test_the_same_number_twice(folder: Path) -> None:
    save(folder / "a_1.png", picture(0))
    save(folder / "b_01.png", picture(0))
    with pytest.raises(VideoError, match=r"a_1\.png and b_01\.png have the same frame number 1"):
        open_video(folder)


def test_a_missing_picture_after_open(folder: Path) -> None:
    save(folder / "0.png", picture(0))
    save(folder / "1.png", picture(1))
    video = open_video(folder)
    (folder / "1.png").unlink()
    with pytest.raises(VideoError, match=r"1\.png: the picture cannot be read"):
        list(video)


@given(
    numbers=st.sets(st.integers(0, 10**9), min_size=1, max_size=30),
    prefix=st.sampled_from(["", "frame_", "a-9x", "é"]),
    width=st.integers(0, 6),
    seed=st.integers(),
)
def test_natural_sort(numbers: set[int], prefix: str, width: int, seed: int) -> None:
    expected = [Path(f"{prefix}{number:0{width}d}.png") for number in sorted(numbers)]
    shuffled = list(expected)
    random.Random(seed).shuffle(shuffled)
    assert natural_sort(shuffled) == expected


@given(st.lists(st.text(st.characters(blacklist_characters="/\0"), min_size=1, max_size=12), min_size=1, unique=True))
def test_natural_sort_of_any_names_sorts_or_says_why(names: list[str]) -> None:
    paths = [Path(f"{name}.png") for name in names]
    try:
        ordered = natural_sort(paths)
    except VideoError:
        return
    assert sorted(ordered) == sorted(paths)

from __future__ import annotations

import gc
import tracemalloc
import weakref
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest
from PIL import Image

from surgery.errors import DamagedVideoWarning, VideoError
from surgery.video import open_video
from surgery.video.file import upright

from .clips import close_to, cut, faststart, make_sound, make_video, picture, with_display_matrix


@pytest.mark.parametrize(
    ("suffix", "codec"),
    [("mp4", "libx264"), ("mov", "mpeg4"), ("avi", "mpeg4"), ("mkv", "libx264"), ("webm", "libvpx"), ("ts", "libx264")],
)
def test_every_container(tmp_path: Path, suffix: str, codec: str) -> None:
    path = make_video(tmp_path / f"clip.{suffix}", codec=codec)
    video = open_video(path)
    assert (video.name, video.size) == ("clip", (48, 64))
    assert video.fps == pytest.approx(25)
    assert video.num_frames in (12, None)
    for _ in range(2):
        frames = list(video)
        assert len(frames) == 12
        assert all(close_to(frame, picture(index)) for index, frame in enumerate(frames))
        assert all(frame.dtype == np.uint8 and frame.flags.writeable for frame in frames)


def test_length_rate_and_odd_size(tmp_path: Path) -> None:
    path = make_video(tmp_path / "a.mp4", 5, rate=Fraction(30000, 1001))
    video = open_video(path)
    assert video.num_frames == 5
    assert video.fps == pytest.approx(29.97, abs=0.001)
    assert repr(video) == f"Video('a', 5 frames of 48x64, fps={video.fps})"


def test_two_passes_at_the_same_time(tmp_path: Path) -> None:
    video = open_video(make_video(tmp_path / "a.mp4", 4))
    for left, right in zip(video, video, strict=True):
        np.testing.assert_array_equal(left, right)


def test_a_stopped_pass_closes_the_file(tmp_path: Path) -> None:
    path = make_video(tmp_path / "a.mp4")
    passes = [iter(open_video(path)) for _ in range(3)]
    for frames in passes:
        next(frames)
    del passes, frames
    gc.collect()
    open_files = [link.resolve() for link in Path("/proc/self/fd").iterdir()] if Path("/proc/self/fd").is_dir() else []
    assert path.resolve() not in open_files


@pytest.mark.parametrize(
    ("matrix", "expected"),
    [
        ((1, 0, 0, 1), lambda stored: stored),
        ((0, 1, -1, 0), lambda stored: np.rot90(stored, -1)),
        ((-1, 0, 0, -1), lambda stored: np.rot90(stored, 2)),
        ((0, -1, 1, 0), lambda stored: np.rot90(stored, 1)),
        ((-1, 0, 0, 1), lambda stored: stored[:, ::-1]),
        ((0, 1, 1, 0), lambda stored: stored.transpose(1, 0, 2)),
    ],
    ids=["upright", "clockwise", "upside-down", "counterclockwise", "mirrored", "transposed"],
)
def test_rotation_of_phone_videos(tmp_path: Path, matrix: tuple[int, int, int, int], expected: object) -> None:
    path = with_display_matrix(make_video(tmp_path / "a.mp4", 3), *matrix)
    video = open_video(path)
    for index, frame in enumerate(video):
        wanted = expected(picture(index))  # type: ignore[operator]
        assert frame.shape == wanted.shape == (*video.size, 3)
        assert close_to(frame, wanted)
        assert frame.flags.c_contiguous


def test_the_display_matrix_agrees_with_pyav(tmp_path: Path) -> None:
    path = with_display_matrix(make_video(tmp_path / "a.mp4", 1), 0, 1, -1, 0)
    with av.open(str(path)) as container:
        decoded = next(container.decode(video=0))
        if not hasattr(decoded, "rotation"):
            pytest.skip("this PyAV does not tell the rotation")
        rotation = decoded.rotation  # counterclockwise degrees
    (frame,) = open_video(path)
    assert close_to(frame, np.rot90(picture(0), rotation // 90))


def test_odd_angles_and_dust() -> None:
    rgb = picture(0)
    one = 1 << 16
    turned = upright(rgb, (3, one, 0, -one, -2, 0, 0, 0, 1 << 30))
    np.testing.assert_array_equal(turned, np.rot90(rgb, -1))
    np.testing.assert_array_equal(upright(rgb, (0,) * 9), rgb)
    np.testing.assert_array_equal(upright(rgb, (60000, 26000, 0, -26000, 60000, 0, 0, 0, 1 << 30)), rgb)


@pytest.mark.parametrize("suffix", ["mp4", "mkv", "webm", "avi"])
@pytest.mark.parametrize("share", [0.4, 0.7])
def test_cut_short_fails_at_open(tmp_path: Path, suffix: str, share: float) -> None:
    codec = {"webm": "libvpx", "avi": "mpeg4"}.get(suffix, "libx264")
    make = faststart if suffix == "mp4" else make_video
    path = cut(make(tmp_path / f"a.{suffix}", frames=100, codec=codec, noise=True), share)
    with pytest.raises(VideoError, match=rf"cut\.{suffix}: the file is cut short, its data ends at"):
        open_video(path)


def test_cut_short_before_the_index(tmp_path: Path) -> None:
    path = cut(make_video(tmp_path / "a.mp4", noise=True), 0.7)
    with pytest.raises(VideoError, match=r"cut\.mp4: "):
        open_video(path)


def test_live_recordings_of_unknown_length_are_fine(tmp_path: Path) -> None:
    path = make_video(tmp_path / "a.webm", codec="libvpx", container_options={"live": "1"})
    assert len(list(open_video(path))) == 12
    fragments = make_video(tmp_path / "b.mp4", container_options={"movflags": "+frag_keyframe+empty_moov"})
    assert len(list(open_video(fragments))) == 12


def test_rubbish_after_the_last_box_is_fine(tmp_path: Path) -> None:
    path = make_video(tmp_path / "a.mp4")
    with path.open("ab") as file:
        file.write(b"\0" * 20 + b"padding of some editor")
    assert len(list(open_video(path))) == 12


def test_an_avi_of_unknown_length_is_fine(tmp_path: Path) -> None:
    path = make_video(tmp_path / "a.avi", codec="mpeg4")
    data = bytearray(path.read_bytes())
    data[4:8] = b"\xff" * 4
    path.write_bytes(data)
    assert len(list(open_video(path))) == 12


def test_damage_in_the_middle_names_the_frame(tmp_path: Path) -> None:
    path = faststart(tmp_path / "a.mp4", frames=20, noise=True)
    data = bytearray(path.read_bytes())
    middle = (data.find(b"mdat") + len(data)) // 2
    data[middle : middle + 4000] = np.random.default_rng(0).integers(0, 256, 4000, dtype=np.uint8).tobytes()
    path.write_bytes(data)
    video = open_video(path)
    with pytest.raises(VideoError, match=r"a\.mp4, frame \d+: .*expected a video that decodes without errors"):
        list(video)


def test_size_that_changes_inside_a_clip(tmp_path: Path) -> None:
    small = make_video(tmp_path / "a.ts", 3, (48, 64))
    large = make_video(tmp_path / "b.ts", 3, (64, 96))
    path = tmp_path / "joined.ts"
    path.write_bytes(small.read_bytes() + large.read_bytes())
    with pytest.raises(VideoError, match=r"joined\.ts, frame 3: 64x96 pixels .*expected 48x64 as in the first frame"):
        list(open_video(path))


@pytest.mark.parametrize("name", ["a.mp4", "a.txt", "a.bin"])
@pytest.mark.parametrize("content", [b"", b"hello world\n" * 60, bytes(range(256)) * 8], ids=["empty", "text", "bytes"])
def test_not_a_video(tmp_path: Path, name: str, content: bytes) -> None:
    path = tmp_path / name
    path.write_bytes(content)
    with pytest.raises(VideoError, match=rf"{name}: .*expected a video file"):
        open_video(path)


def test_sound_without_pictures(tmp_path: Path) -> None:
    path = make_sound(tmp_path / "a.wav")
    with pytest.raises(VideoError, match=r"a\.wav: no video stream, expected a video file"):
        open_video(path)


def test_a_video_without_frames(tmp_path: Path) -> None:
    path = tmp_path / "a.mkv"
    with av.open(str(path), "w") as container:
        stream = container.add_stream("mpeg4", rate=25)
        stream.height, stream.width, stream.pix_fmt = 32, 32, "yuv420p"
        container.start_encoding()
    with pytest.raises(VideoError, match=r"a\.mkv: .*expected a video file"):
        open_video(path)


def test_a_single_picture(tmp_path: Path) -> None:
    Image.fromarray(picture(0)).save(tmp_path / "a.jpg")
    with pytest.raises(VideoError, match=r"a\.jpg: a single picture, expected a video file or the folder of frames"):
        open_video(tmp_path / "a.jpg")
    Image.fromarray(picture(0)).save(tmp_path / "b.bmp")
    with pytest.raises(VideoError, match=r"b\.bmp: a text or a single picture, not a video"):
        open_video(tmp_path / "b.bmp")


def test_missing_paths(tmp_path: Path) -> None:
    make_video(tmp_path / "holiday.mp4", 1)
    with pytest.raises(VideoError, match=r"holyday\.mp4: no such file .*did you mean 'holiday\.mp4'\?"):
        open_video(tmp_path / "holyday.mp4")
    with pytest.raises(VideoError, match=r"the folder .*nowhere does not exist either"):
        open_video(tmp_path / "nowhere" / "a.mp4")
    with pytest.raises(VideoError, match="an address, expected a folder of frames or a video file: download it first"):
        open_video("https://example.org/a.mp4")


@pytest.mark.skipif(not Path("/dev/null").exists(), reason="needs a device file")
def test_a_device_is_no_video() -> None:
    with pytest.raises(VideoError, match="neither a file nor a folder"):
        open_video("/dev/null")


def test_a_file_that_may_not_be_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = make_video(tmp_path / "a.mp4", 1)

    def refuse(*_: object, **__: object) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(av, "open", refuse)
    with pytest.raises(VideoError, match=r"a\.mp4: not a readable video .*Permission denied"):
        open_video(path)


def test_memory_does_not_grow_with_length(tmp_path: Path) -> None:
    path = make_video(tmp_path / "long.mp4", 300)
    frame_bytes = 48 * 64 * 3
    alive: list[weakref.ref[np.ndarray]] = []
    most = 0
    tracemalloc.start()
    try:
        video = open_video(path)
        tracemalloc.reset_peak()
        base = tracemalloc.get_traced_memory()[0]
        for frame in video:
            alive = [ref for ref in alive if ref() is not None] + [weakref.ref(frame)]
            most = max(most, len(alive))
        peak = tracemalloc.get_traced_memory()[1] - base
    finally:
        tracemalloc.stop()
    assert most <= 2
    assert peak < 20 * frame_bytes  # 300 frames would be 300 times that


def damaged(path: Path, codec: str, changes: int, seed: int) -> Path:
    """A clip of 12 frames with some bytes of its middle changed."""
    make_video(path, codec=codec, noise=True)
    raw, draw = bytearray(path.read_bytes()), np.random.default_rng(seed)
    for place in draw.integers(len(raw) // 3, 2 * len(raw) // 3, changes):
        raw[place] = int(draw.integers(256))
    path.write_bytes(raw)
    return path


@pytest.mark.parametrize("seed", range(6))
def test_damage_that_a_picture_decoder_notices_is_an_error(tmp_path: Path, seed: int) -> None:
    """Of Motion JPEG FFmpeg marks no frame: it gave damaged ones as if they were whole."""
    path = damaged(tmp_path / "a.avi", "mjpeg", 60, seed)
    with pytest.raises(VideoError, match=r"frame \d+: cannot be decoded"):
        list(open_video(path))


def test_frames_that_were_lost_are_a_warning(tmp_path: Path) -> None:
    path = make_video(tmp_path / "a.avi", codec="mpeg4")
    raw = bytearray(path.read_bytes())
    index = raw.rindex(b"idx1")
    last = raw.rindex(b"00dc", 0, index)
    # Readers skip a chunk of another name; without an index they do not look for it elsewhere.
    raw[last : last + 4] = raw[index : index + 4] = b"JUNK"
    path.write_bytes(raw)
    with pytest.warns(DamagedVideoWarning, match=r"a\.avi: 11 frames were decoded of 12 that the file declares"):
        assert len(list(open_video(path))) == 11

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from PIL import Image

from surgery.errors import PromptError, VideoError
from surgery.video import davis_palette, labels_from_logits, read_label_png, write_label_png


def test_palette_is_the_one_of_voc_and_davis() -> None:
    colours = np.array(davis_palette()).reshape(256, 3).tolist()
    known = {0: [0, 0, 0], 1: [128, 0, 0], 2: [0, 128, 0], 3: [128, 128, 0], 4: [0, 0, 128], 5: [128, 0, 128]}
    known |= {8: [64, 0, 0], 15: [192, 128, 128], 20: [0, 64, 128], 255: [224, 224, 192]}
    assert {index: colours[index] for index in known} == known
    assert len({tuple(colour) for colour in colours}) == 256


@settings(deadline=None, max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(hnp.arrays(np.uint8, hnp.array_shapes(min_dims=2, max_dims=2, max_side=20)))
def test_label_png_round_trip(tmp_path: Path, labels: np.ndarray) -> None:
    path = tmp_path / "labels.png"
    write_label_png(path, labels)
    read = read_label_png(path)
    assert read.dtype == np.uint8
    np.testing.assert_array_equal(read, labels)
    with Image.open(path) as image:
        assert image.mode == "P"
        assert list(image.getpalette() or []) == davis_palette()


def test_a_transposed_map_is_written_as_it_looks(tmp_path: Path) -> None:
    labels = np.arange(12, dtype=np.uint8).reshape(3, 4).T
    write_label_png(tmp_path / "a.png", labels)
    np.testing.assert_array_equal(read_label_png(tmp_path / "a.png"), labels)


def test_greyscale_and_black_and_white(tmp_path: Path) -> None:
    labels = np.arange(12, dtype=np.uint8).reshape(3, 4)
    Image.fromarray(labels).save(tmp_path / "grey.png")
    np.testing.assert_array_equal(read_label_png(tmp_path / "grey.png"), labels)
    Image.fromarray(labels > 5).save(tmp_path / "bw.png")
    np.testing.assert_array_equal(read_label_png(tmp_path / "bw.png"), (labels > 5).astype(np.uint8))


def test_palette_of_few_bits_keeps_its_indices(tmp_path: Path) -> None:
    image = Image.fromarray(np.array([[0, 1, 2, 3]], np.uint8))
    image.putpalette(davis_palette()[:12])
    image.save(tmp_path / "a.png", bits=2)
    assert (tmp_path / "a.png").read_bytes()[24] == 2
    np.testing.assert_array_equal(read_label_png(tmp_path / "a.png"), [[0, 1, 2, 3]])


@pytest.mark.parametrize("mode", ["RGB", "RGBA", "LA"])
def test_colour_is_refused(tmp_path: Path, mode: str) -> None:
    Image.new(mode, (4, 4)).save(tmp_path / "a.png")
    with pytest.raises(PromptError, match=rf"a\.png: a {mode} picture.*save it as an 8-bit palette or greyscale PNG"):
        read_label_png(tmp_path / "a.png")


def test_16_bit_is_refused(tmp_path: Path) -> None:
    Image.fromarray(np.full((4, 4), 1000, np.uint16)).save(tmp_path / "a.png")
    with pytest.raises(PromptError, match=r"a\.png: a 16-bit greyscale PNG, expected 8 bits per pixel"):
        read_label_png(tmp_path / "a.png")


def test_greyscale_of_few_bits_is_refused(tmp_path: Path) -> None:
    import struct
    import zlib

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", 2, 1, 4, 0, 0, 0, 0)
    data = (
        b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(b"\0\x12")) + chunk(b"IEND", b"")
    )
    (tmp_path / "a.png").write_bytes(data)
    with pytest.raises(PromptError, match=r"a\.png: a 4-bit greyscale PNG, expected 8 bits per pixel"):
        read_label_png(tmp_path / "a.png")


def test_a_jpeg_is_refused(tmp_path: Path) -> None:
    Image.new("L", (8, 8)).save(tmp_path / "a.png", format="JPEG")
    with pytest.raises(PromptError, match=r"a\.png: a JPEG picture, whose values are not exact labels"):
        read_label_png(tmp_path / "a.png")


def test_missing_and_damaged(tmp_path: Path) -> None:
    path = tmp_path / "a.png"
    with pytest.raises(PromptError, match=r"a\.png: no such file, expected a label PNG"):
        read_label_png(path)
    path.write_bytes(b"not a picture")
    with pytest.raises(PromptError, match=r"a\.png: the file cannot be read .*expected a whole label PNG"):
        read_label_png(path)
    write_label_png(path, np.random.default_rng(0).integers(0, 256, (64, 64), dtype=np.uint8))
    path.write_bytes(path.read_bytes()[:2000])
    with pytest.raises(PromptError, match=r"a\.png: the file cannot be read"):
        read_label_png(path)


@pytest.mark.parametrize(
    "labels", [np.zeros((4, 4), np.int64), np.zeros((4, 4, 3), np.uint8), np.zeros((0, 4), np.uint8)]
)
def test_labels_that_cannot_be_written(tmp_path: Path, labels: np.ndarray) -> None:
    with pytest.raises(PromptError, match=r"expected a \(height, width\) uint8 label map"):
        write_label_png(tmp_path / "a.png", labels)


def test_places_that_cannot_be_written(tmp_path: Path) -> None:
    labels = np.zeros((2, 2), np.uint8)
    with pytest.raises(VideoError, match=r"cannot write labels as \.jpg, expected \.png"):
        write_label_png(tmp_path / "a.jpg", labels)
    with pytest.raises(VideoError, match=r"a\.png: the labels cannot be written"):
        write_label_png(tmp_path / "nowhere" / "a.png", labels)


def test_the_highest_logit_wins() -> None:
    one = np.array([[2.0, -1.0, 0.0, 5.0, 1.0]], np.float32)
    two = np.array([[3.0, -2.0, 0.0, -np.inf, 1.0]], np.float16)
    labels = labels_from_logits({200: two, 1: one})
    assert labels.dtype == np.uint8
    np.testing.assert_array_equal(labels, [[200, 0, 0, 1, 1]])


@given(hnp.arrays(np.float32, (3, 4, 5), elements=st.floats(-10, 10, width=32)))
def test_logits_are_the_argmax(stack: np.ndarray) -> None:
    labels = labels_from_logits({index + 1: stack[index] for index in range(3)})
    expected = np.where(stack.max(0) > 0, stack.argmax(0) + 1, 0)
    np.testing.assert_array_equal(labels, expected)


@pytest.mark.parametrize("obj_id", [0, 256, -1, 1.5, True, "1"])
def test_ids_a_label_png_cannot_hold(obj_id: int) -> None:
    with pytest.raises(PromptError, match=r"object id .*, expected an integer 1\.\.255"):
        labels_from_logits({obj_id: np.ones((2, 2))})


def test_logits_that_do_not_fit() -> None:
    good = np.ones((2, 2), np.float32)
    with pytest.raises(PromptError, match="no logits, expected those of at least one object"):
        labels_from_logits({})
    with pytest.raises(PromptError, match=r"object 1 of shape \(2, 2, 1\), expected \(height, width\)"):
        labels_from_logits({1: good[..., None]})
    with pytest.raises(PromptError, match=r"object 2 of shape \(3, 2\), expected .* of one size"):
        labels_from_logits({1: good, 2: np.ones((3, 2), np.float32)})
    with pytest.raises(PromptError, match="object 1 with NaN"):
        labels_from_logits({1: np.array([[np.nan]])})


def test_an_interrupt_while_labels_are_written_leaves_what_was_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "a.png"
    old, new = np.ones((8, 8), np.uint8), np.zeros((8, 8), np.uint8)
    write_label_png(path, old)
    save = Image.Image.save

    def interrupted(self: Image.Image, *args: object, **kwargs: object) -> None:
        save(self, *args, **kwargs)  # type: ignore[arg-type]
        raise KeyboardInterrupt

    monkeypatch.setattr(Image.Image, "save", interrupted)
    with pytest.raises(KeyboardInterrupt):
        write_label_png(path, new)
    assert [one.name for one in tmp_path.iterdir()] == ["a.png"]
    np.testing.assert_array_equal(read_label_png(path), old)

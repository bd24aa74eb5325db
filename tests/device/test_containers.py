"""Files of every kind that is read: whole, upright and of the right colors, or refused by name."""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from cxr_compress.device.containers import upright
from cxr_compress.device.decode import IMAGE_SUFFIXES, decode_bytes, decode_image, read_bytes
from cxr_compress.device.preprocess import PreprocessSpec, prepare
from cxr_compress.errors import DataError
from tests.device.images import chunk, color_photo, draw_image, encoded, exif, jpeg, png, tiff, with_exif

IMAGE = draw_image(1)
IMAGE16 = (draw_image(2).astype(np.uint16) << 8) + draw_image(3)
PHOTO = color_photo(20, 30)

# How a camera stores a picture that is to be seen as IMAGE with each orientation, written out by hand.
STORED = {
    1: IMAGE,
    2: IMAGE[:, ::-1],
    3: IMAGE[::-1, ::-1],
    4: IMAGE[::-1],
    5: IMAGE.T,
    6: IMAGE.T[::-1],
    7: IMAGE[::-1, ::-1].T,
    8: IMAGE.T[:, ::-1],
}


@pytest.mark.parametrize("orientation", range(1, 9))
def test_orientation_is_applied_in_every_format(orientation: int) -> None:
    stored = np.ascontiguousarray(STORED[orientation])
    for order in "<>":
        mark = exif(orientation, order)
        np.testing.assert_array_equal(decode_bytes(with_exif(png(stored), mark)), IMAGE)
        webp = decode_bytes(with_exif(encoded(stored, ".webp"), mark))
        np.testing.assert_array_equal(webp[..., 0], IMAGE)
        np.testing.assert_array_equal(decode_bytes(tiff(stored, order=order, t274=orientation)), IMAGE)
        data = with_exif(jpeg(stored, 100), mark)
        # What OpenCV makes of the same file when it is left to act on the orientation itself.
        theirs = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_GRAYSCALE)
        np.testing.assert_array_equal(decode_bytes(data), theirs)


@pytest.mark.parametrize("orientation", range(2, 9))
def test_orientation_control_stored_pixels_differ(orientation: int) -> None:
    stored = STORED[orientation]
    assert stored.shape != IMAGE.shape or not np.array_equal(stored, IMAGE)
    np.testing.assert_array_equal(upright(stored, orientation), IMAGE)


@pytest.mark.parametrize("mark", [exif(0), exif(9), exif(6)[:-8], b"", b"II*\0\xff\xff\xff\xff", b"no tiff at all"])
def test_orientation_that_does_not_exist_leaves_the_image(mark: bytes) -> None:
    np.testing.assert_array_equal(decode_bytes(with_exif(png(IMAGE), mark)), IMAGE)
    np.testing.assert_array_equal(decode_bytes(with_exif(jpeg(IMAGE), mark)), decode_bytes(jpeg(IMAGE)))


@given(mark=st.binary(max_size=60))
def test_orientation_in_any_bytes_is_an_answer(mark: bytes) -> None:
    assert decode_bytes(with_exif(png(IMAGE), b"II*\0" + mark)).size == IMAGE.size


def test_orientation_of_real_files_gives_one_picture(cxr_data: Path) -> None:
    spec = PreprocessSpec(64, 64, color="rgb")
    paths = sorted((cxr_data / "ood" / "exif_orientation").glob("*.jpg"))
    pictures = [prepare(path, spec).pixels.astype(int) for path in paths]
    assert len(pictures) == 8
    # Each shows its own number, and the first is cropped a little differently: means over all pixels.
    assert max(np.abs(picture - pictures[1]).mean() for picture in pictures[1:]) < 3
    assert np.abs(pictures[0] - pictures[1]).mean() < 20
    turned = cv2.imread(str(paths[5]), cv2.IMREAD_UNCHANGED)
    control = cv2.resize(turned[..., ::-1], (64, 64), interpolation=cv2.INTER_AREA)
    assert np.abs(control - pictures[1]).mean() > 30


@pytest.mark.parametrize("name", [f"a{suffix}" for suffix in IMAGE_SUFFIXES[:10]] + ["a.JFIF", "a"])
def test_content_decides_under_any_name(tmp_path: Path, name: str) -> None:
    for data in (png(IMAGE), encoded(IMAGE, ".bmp"), tiff(IMAGE)):
        (tmp_path / name).write_bytes(data)
        np.testing.assert_array_equal(decode_image(tmp_path / name), IMAGE)


@pytest.mark.parametrize("order", ["<", ">"])
@pytest.mark.parametrize("image", [IMAGE, IMAGE16, PHOTO], ids=["8", "16", "rgb"])
def test_tiff_gives_the_stored_pixels(image: np.ndarray, order: str) -> None:
    np.testing.assert_array_equal(decode_bytes(tiff(image, order=order)), image)
    if image.ndim == 2:
        white_is_zero = tiff(np.iinfo(image.dtype).max - image, order=order, t262=0)
        np.testing.assert_array_equal(decode_bytes(white_is_zero), image)


@pytest.mark.parametrize("suffix", [".bmp", ".webp", ".tif"])
def test_colors_are_in_the_order_rgb(suffix: str) -> None:
    np.testing.assert_array_equal(decode_bytes(encoded(PHOTO, suffix)), PHOTO)
    assert not np.array_equal(decode_bytes(encoded(PHOTO, suffix)), PHOTO[..., ::-1])


@pytest.mark.parametrize(
    ("data", "text"),
    [
        (tiff(np.dstack([PHOTO, PHOTO[..., :1]]), t262=5), "photometric interpretation 5"),
        (tiff(IMAGE.astype(np.int16), t339=2), "is a TIFF of 16-bit signed pixels"),
        (tiff(IMAGE.astype(np.float32), t339=3), "is a TIFF of 32-bit floating-point pixels"),
        (tiff(IMAGE16, bits=12), "is a TIFF of 12-bit unsigned pixels"),
        (tiff(IMAGE, pages=3), "holds 3 pages, expected one image"),
        (tiff(PHOTO, t284=2), "colors in separate planes"),
        (b"II+\0" + bytes(60), "is a BigTIFF file"),
        (b"RIFF" + (60).to_bytes(4, "little") + b"WAVE" + bytes(60), "is a RIFF file but no WebP"),
        (png(IMAGE)[:33] + chunk(b"acTL", b"\0\0\0\2\0\0\0\0") + png(IMAGE)[33:], "is an animation of 2 images"),
        (b"\xff\xd8\xff\xc1\0\x0b\x0c\0\x08\0\x08\1\1\x11\0\xff\xd9", "is a 12-bit JPEG, which no installed"),
        (b"\xff\xd8\xff\xc3\0\x0b\x08\0\x08\0\x08\1\1\x11\0\xff\xd9", "is a lossless JPEG, which no installed"),
    ],
    ids=["cmyk", "signed", "float", "12", "pages", "planes", "big", "wave", "apng", "jpeg12", "jpeg_lossless"],
)
def test_what_would_be_shown_wrongly_is_refused_by_name(data: bytes, text: str) -> None:
    with pytest.raises(DataError, match=text):
        decode_bytes(data)


def test_tiff_with_a_thumbnail_is_one_image() -> None:
    # The second page says that it is a smaller copy (bit 0 of tag 254); the first says nothing of that.
    data = tiff(IMAGE, pages=2, t254=0)
    with pytest.raises(DataError, match="holds 2 pages"):
        decode_bytes(data)
    at = data.rindex((254).to_bytes(2, "little") + b"\3\0\1\0\0\0")
    np.testing.assert_array_equal(decode_bytes(data[: at + 8] + b"\1" + data[at + 9 :]), IMAGE)


@pytest.mark.parametrize(
    "data", [encoded(IMAGE, ".bmp"), encoded(IMAGE, ".webp"), tiff(IMAGE16)], ids=["bmp", "webp", "tif"]
)
def test_file_cut_anywhere_is_refused(data: bytes) -> None:
    for length in [*range(2, 60), *range(60, len(data), 53), len(data) - 5]:  # a TIFF's last 4: no page follows
        with pytest.raises(DataError, match=r"is cut short|is damaged|is not a PNG|is a RIFF file"):
            decode_bytes(data[:length])


@given(data=st.data())
def test_tiff_with_a_flipped_byte_is_a_picture_or_a_data_error(data: st.DataObject) -> None:
    content = bytearray(tiff(IMAGE16))
    content[data.draw(st.integers(IMAGE16.nbytes, len(content) - 1))] ^= data.draw(st.integers(1, 255))
    try:
        outcome = decode_bytes(bytes(content)).dtype.name
    except DataError as error:
        outcome = str(error)
    assert outcome in ("uint8", "uint16") or "\n" not in outcome


def test_bmp_of_four_channels_is_not_transparent() -> None:
    rgba = np.concatenate([PHOTO, np.zeros((20, 30, 1), np.uint8)], axis=2)
    picture = read_bytes(encoded(rgba, ".bmp"))
    np.testing.assert_array_equal(picture.pixels, PHOTO)
    assert picture.notes == ()


@pytest.mark.parametrize("opaque", [True, False])
def test_transparency_that_shows_is_said(opaque: bool) -> None:
    alpha = np.full((20, 30, 1), 255, np.uint8)
    alpha[:5] = 255 if opaque else 0
    picture = read_bytes(png(np.concatenate([PHOTO, alpha], axis=2)))
    np.testing.assert_array_equal(picture.pixels, PHOTO)
    assert [note[:36] for note in picture.notes] == ([] if opaque else ["has transparent pixels (25.0%, shown"])

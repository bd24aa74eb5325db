from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np
import pytest

from cxr_compress.device.decode import decode_bytes, decode_image
from cxr_compress.errors import DataError
from tests.device.images import chunk, color_photo, draw_image, handmade_png, jpeg, png

IMAGE = draw_image(1)
IMAGE16 = (draw_image(2).astype(np.uint16) << 8) + draw_image(3)
PHOTO = color_photo(20, 30)


@pytest.mark.parametrize(
    "image", [IMAGE, IMAGE16, PHOTO, PHOTO.astype(np.uint16) * 257], ids=["8", "16", "rgb8", "rgb16"]
)
def test_decode_lossless_png_gives_the_stored_pixels_in_rgb_order(image: np.ndarray) -> None:
    decoded = decode_bytes(png(image))
    assert decoded.dtype == image.dtype
    np.testing.assert_array_equal(decoded, image)


def test_decode_color_order_control_bgr_would_differ() -> None:
    assert not np.array_equal(decode_bytes(png(PHOTO)), PHOTO[..., ::-1])


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
def test_decode_png_with_alpha_drops_alpha(dtype: type) -> None:
    top = np.iinfo(dtype).max
    rgba = np.concatenate([PHOTO.astype(dtype), np.full((20, 30, 1), top // 3, dtype)], axis=2)
    np.testing.assert_array_equal(decode_bytes(png(rgba)), PHOTO)


def test_decode_gray_alpha_png_gives_equal_channels_of_gray() -> None:
    pairs = np.stack([IMAGE, 255 - IMAGE], axis=-1)
    decoded = decode_bytes(handmade_png(pairs.reshape(len(IMAGE), -1), 4, width=IMAGE.shape[1]))
    np.testing.assert_array_equal(decoded, np.repeat(IMAGE[..., np.newaxis], 3, axis=2))


@pytest.mark.parametrize("transparency", [b"", chunk(b"tRNS", b"\x80\x00")], ids=["plain", "with_transparency"])
def test_decode_palette_png_resolves_the_palette(transparency: bytes) -> None:
    palette = np.arange(24 * 3, dtype=np.uint8).reshape(24, 3) * 3
    codes = np.arange(24, dtype=np.uint8).reshape(4, 6)
    data = handmade_png(codes, 3, width=6, extra=chunk(b"PLTE", palette.tobytes()) + transparency)
    np.testing.assert_array_equal(decode_bytes(data), palette[codes])


def test_decode_one_bit_png_gives_black_and_white() -> None:
    rows = np.array([[0b10101010], [0b11110000]], np.uint8)
    expected = [[255, 0, 255, 0, 255, 0, 255, 0], [255, 255, 255, 255, 0, 0, 0, 0]]
    np.testing.assert_array_equal(decode_bytes(handmade_png(rows, 0, 1, width=8)), expected)


@pytest.mark.parametrize("options", [(), (cv2.IMWRITE_JPEG_PROGRESSIVE, 1), (cv2.IMWRITE_JPEG_RST_INTERVAL, 1)])
@pytest.mark.parametrize("image", [IMAGE, np.repeat(IMAGE[..., None], 3, axis=2)], ids=["gray", "color"])
def test_decode_jpeg_of_every_layout_is_close_to_the_pixels(image: np.ndarray, options: tuple[int, ...]) -> None:
    decoded = decode_bytes(jpeg(image, 100, *options))
    assert decoded.shape == image.shape
    # At quality 100 every coefficient is rounded by up to 0.5; the inverse transform of 64 such errors stays below 3.
    assert np.abs(decoded.astype(int) - image).max() <= 3


def test_decode_flat_blocks_jpeg_is_exact() -> None:
    # Blocks of one value have a DC coefficient of 8 * (value - 128), a whole number, and no other: no loss at all.
    blocks = np.kron(np.arange(0, 240, 10, dtype=np.uint8).reshape(4, 6), np.ones((8, 8), np.uint8))
    np.testing.assert_array_equal(decode_bytes(jpeg(blocks, 100)), blocks)


def test_decode_png_cut_at_every_byte_is_refused() -> None:
    data = png(IMAGE)
    for length in range(len(data)):
        with pytest.raises(DataError, match=r"is cut short|is empty|is not a PNG"):
            decode_bytes(data[:length])


def test_decode_png_any_flipped_byte_is_refused() -> None:
    data = png(IMAGE)
    for position in range(len(data)):
        broken = bytearray(data)
        broken[position] ^= 0x41
        with pytest.raises(DataError, match=r"is damaged|is cut short|is not a PNG"):
            decode_bytes(bytes(broken))


@pytest.mark.parametrize("options", [(), (cv2.IMWRITE_JPEG_PROGRESSIVE, 1), (cv2.IMWRITE_JPEG_RST_INTERVAL, 1)])
def test_decode_jpeg_cut_at_every_byte_is_refused(options: tuple[int, ...]) -> None:
    data = jpeg(IMAGE, 90, *options)
    for length in range(len(data)):
        with pytest.raises(DataError, match=r"is cut short|is empty|is not a PNG"):
            decode_bytes(data[:length])


def test_decode_cut_jpeg_control_opencv_alone_fills_the_rest() -> None:
    # Why the container is walked: for OpenCV half an image is an image, its lower rows one flat gray.
    data = jpeg(draw_image(1, 256, 256), 90)
    ended = data[: len(data) // 2] + b"\xff\xd9"
    decoded = cv2.imdecode(np.frombuffer(ended, np.uint8), cv2.IMREAD_UNCHANGED)
    assert decoded.shape == (256, 256)
    assert len(np.unique(decoded[-8:])) == 1


def _with_exif(main: bytes, exif: bytes) -> bytes:
    """Put an APP1 segment into a JPEG, as cameras do."""
    segment = b"Exif\0\0" + exif
    return main[:2] + b"\xff\xe1" + (len(segment) + 2).to_bytes(2, "big") + segment + main[2:]


def test_decode_jpeg_with_thumbnail_reads_the_main_image() -> None:
    data = _with_exif(jpeg(IMAGE), jpeg(IMAGE[::4, ::4]))
    np.testing.assert_array_equal(decode_bytes(data), decode_bytes(jpeg(IMAGE)))


def test_decode_cut_jpeg_with_whole_thumbnail_is_refused() -> None:
    data = _with_exif(jpeg(IMAGE), jpeg(IMAGE[::4, ::4]))
    assert b"\xff\xd9" in data[:-200]  # a search for the end mark alone would be content
    with pytest.raises(DataError, match="without its end mark"):
        decode_bytes(data[:-200])


@pytest.mark.parametrize("padding", [b"\0", b"\0" * 512, b"\xff" * 7, b"\r\n", b"second picture"])
@pytest.mark.parametrize("data", [jpeg(IMAGE), png(IMAGE)], ids=["jpeg", "png"])
def test_decode_padding_after_the_end_is_ignored(data: bytes, padding: bytes) -> None:
    np.testing.assert_array_equal(decode_bytes(data + padding), decode_bytes(data))


def test_decode_missing_file_names_the_path(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"nowhere\.png: not found; check the path"):
        decode_image(tmp_path / "nowhere.png")


def test_decode_empty_file_says_empty(tmp_path: Path) -> None:
    (tmp_path / "a.png").write_bytes(b"")
    with pytest.raises(DataError, match=r"a\.png: is empty; copy or export it again"):
        decode_image(tmp_path / "a.png")


def test_decode_folder_says_folder(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="is a folder, expected an image file"):
        decode_image(tmp_path)


def test_decode_path_with_nul_is_one_clear_error() -> None:
    with pytest.raises(DataError, match="is not a path"):
        decode_image("a\0b.png")


def test_decode_dicom_mark_without_a_image_is_one_clear_error() -> None:
    # Where pydicom is missing it says so; where it is there, that there is no image.
    with pytest.raises(DataError, match=r"needs pydicom: pip install 'cxr-compress\[dicom\]'|holds no image"):
        decode_bytes(bytes(128) + b"DICM" + bytes(20))


@pytest.mark.parametrize("data", [b"GIF89a" + bytes(60), b"hello", b"\x89PNG\r\n\x1a"])
def test_decode_other_formats_are_refused_by_their_first_bytes(data: bytes) -> None:
    with pytest.raises(DataError, match="is not a PNG, JPEG, BMP, TIFF, WebP or DICOM file"):
        decode_bytes(data)


def test_decode_png_whole_but_undecodable_is_refused(capfd: pytest.CaptureFixture[str]) -> None:
    # Right checksums around data that is no zlib stream.
    header = png(IMAGE)[8:33]
    data = b"\x89PNG\r\n\x1a\n" + header + chunk(b"IDAT", b"not a stream") + chunk(b"IEND", b"")
    with pytest.raises(DataError, match="is damaged: its pixels cannot be decoded"):
        decode_bytes(data)
    capfd.readouterr()  # what libpng itself writes to stderr is not the point here


def test_decode_path_that_is_not_ascii_works(tmp_path: Path) -> None:
    path = tmp_path / "radiografía ü 胸.png"
    path.write_bytes(png(IMAGE))
    np.testing.assert_array_equal(decode_image(str(path)), IMAGE)


def test_decode_real_images_are_all_whole(cxr_data: Path) -> None:
    images = sorted((cxr_data / "kermany_fullres_sample").glob("*.jpeg"))
    assert images
    for image in images:
        assert decode_image(image).ndim == 2

"""Whatever an image comes as, the model sees the same pixels, or one line says what was expected."""

from __future__ import annotations

import io
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from cxr_compress.device.classifier import Classifier
from cxr_compress.device.dicom import DicomView
from cxr_compress.device.preprocess import PreprocessSpec, prepare, preprocess
from cxr_compress.device.sources import read_source
from cxr_compress.errors import DataError
from tests.device.images import color_photo, draw_image, encoded, exif, jpeg, png, with_exif
from tests.device.reference import INT8_MODEL

IMAGE = draw_image(1)
IMAGE12 = draw_image(2).astype(np.uint16) * 16 + draw_image(3) % 16  # 0 to 4095
SPEC = PreprocessSpec(20, 16)


def ways(data: bytes, folder: Path) -> dict[str, Any]:
    """The same file in every form but decoded."""
    (folder / "image").write_bytes(data)
    return {
        "path": folder / "image",
        "text": str(folder / "image"),
        "bytes": data,
        "bytearray": bytearray(data),
        "memoryview": memoryview(data),
        "file object": io.BytesIO(data),
    }


@pytest.mark.parametrize(
    "data",
    [png(IMAGE), png(IMAGE12), jpeg(IMAGE), encoded(IMAGE, ".bmp"), with_exif(jpeg(IMAGE), exif(6))],
    ids=["png", "12_of_16_bits", "jpeg", "bmp", "turned"],
)
def test_every_form_of_a_file_gives_the_same(tmp_path: Path, data: bytes) -> None:
    prepared = {name: prepare(source, SPEC) for name, source in ways(data, tmp_path).items()}
    with (tmp_path / "image").open("rb") as file:
        prepared["open file"] = prepare(file, SPEC)
    expected = prepared["path"]
    for other in prepared.values():
        np.testing.assert_array_equal(other.pixels, expected.pixels)
        np.testing.assert_array_equal(other.image, expected.image)
        assert other.notes == expected.notes


def test_classifier_takes_every_form(tmp_path: Path) -> None:
    classifier = Classifier(INT8_MODEL)
    expected = classifier.predict(IMAGE).logits
    for source in (*ways(png(IMAGE), tmp_path).values(), IMAGE[..., np.newaxis], np.dstack([IMAGE] * 3)):
        np.testing.assert_array_equal(classifier.predict(source).logits, expected)
    assert not np.array_equal(classifier.predict(draw_image(3)).logits, expected)  # control


@pytest.mark.parametrize("orientation", [1, 3, 6, 8])
@pytest.mark.parametrize(
    ("image", "mode"),
    [
        (IMAGE, "L"),
        (IMAGE, "LA"),
        (IMAGE, "RGB"),
        (IMAGE, "RGBA"),
        (IMAGE, "P"),
        (IMAGE, "1"),
        (IMAGE12, "I;16"),
        (IMAGE12, "I"),
        (color_photo(20, 30), "RGB"),
    ],
)
def test_pillow_images_equal_their_files(image: np.ndarray, mode: str, orientation: int, tmp_path: Path) -> None:
    pil = pytest.importorskip("PIL.Image")
    spec = PreprocessSpec(20, 16, color="rgb" if image.ndim > 2 else "gray")
    opened = pil.fromarray(image) if image is IMAGE12 else pil.fromarray(image).convert(mode)
    mark = pil.Exif()
    mark[0x0112] = orientation
    opened.save(tmp_path / "image.png", exif=mark)
    expected = prepare(tmp_path / "image.png", spec)
    if mode == "I":  # what other versions of Pillow make of the same file
        opened = pil.fromarray(image.astype(np.int32))
    for picture in (pil.open(tmp_path / "image.png"), opened):
        if picture is opened:
            picture.info["exif"] = mark.tobytes()
        found = prepare(picture, spec)
        np.testing.assert_array_equal(found.image, expected.image)
        assert found.notes == expected.notes


def test_pillow_modes_that_are_no_gray_or_rgb_are_refused_by_name() -> None:
    pil = pytest.importorskip("PIL.Image")
    for mode in ("F", "CMYK", "YCbCr", "LAB", "HSV"):
        with pytest.raises(DataError, match=f"expected a Pillow image of mode L, .*; got {mode}: give image.convert"):
            read_source(pil.new(mode, (40, 40)))
    with pytest.raises(DataError, match=r"got mode I with values from -5 to 70000"):
        read_source(pil.fromarray(np.array([[-5, 70000]], np.int32)))
    with pytest.raises(DataError, match="Pillow cannot read it"):
        read_source(pil.open(io.BytesIO(png(draw_image(1, 200, 200))[:-4000])))


def test_pillow_is_never_imported() -> None:

    code = "import sys, cxr_compress.device.classifier; sys.exit('PIL' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


@pytest.mark.parametrize(
    ("source", "text"),
    [
        (None, "got NoneType"),
        (7, "got int"),
        ([[1, 2], [3, 4]], "got list"),
        (io.StringIO("text"), "opened in binary mode"),
        (io.BytesIO(b""), "is empty; a file object is read from where it stands"),
        (b"", "the image: is empty"),
        (b"hello", "the image: is not a PNG"),
        (png(IMAGE)[:-20], "the image: is cut short"),
        (IMAGE / 255.0, r"got float64 from 0 to 1; do not normalize beforehand, or give \(255"),
        (IMAGE.astype(np.float32), "got float32; do not normalize"),
        (np.where(IMAGE > 100, np.nan, 0.5), "got float64 with NaN or infinity"),
        (np.array([None, 1], object), "got object; do not normalize beforehand, and give numbers"),
        (IMAGE > 100, "got bool; do not normalize beforehand: give 0 and 255"),
        (IMAGE.astype(np.int64), "got int64"),
        (np.stack([IMAGE] * 3), r"got \(3, 48, 40\); channels come last"),
        (IMAGE[np.newaxis, ..., np.newaxis], "give one image at a time"),
        (np.dstack([IMAGE] * 4), "leave the transparency out"),
        (IMAGE[0], r"expected an image of shape \(H, W\)"),
        (np.zeros((0, 4), np.uint8), "expected an image with pixels"),
    ],
    ids=lambda value: value if isinstance(value, str) else type(value).__name__,  # an address differs by process
)  # fmt: skip
def test_what_is_no_image_is_one_line(source: Any, text: str) -> None:
    with pytest.raises(DataError, match=text) as caught:
        preprocess(source, SPEC)
    assert "\n" not in str(caught.value)


def test_file_object_that_fails_is_one_line() -> None:
    closed = io.BytesIO(png(IMAGE))
    closed.close()
    with pytest.raises(DataError, match="expected a file object that can be read: I/O operation on closed file"):
        read_source(closed)

    class Response:
        def read(self) -> bytes:
            raise RuntimeError("who asked: a name")

    with pytest.raises(DataError, match=r"it raised RuntimeError$"):
        read_source(Response())


def test_array_in_the_other_order_of_bytes_is_the_same_image() -> None:
    image = np.arange(12, dtype=np.uint16).reshape(3, 4) * 5000
    swapped = read_source(image.astype(">u2")).pixels
    assert swapped.dtype == np.uint16
    np.testing.assert_array_equal(swapped, image)


def test_array_of_another_library_is_an_array() -> None:
    class Tensor:
        def __array__(self, dtype: Any = None, copy: Any = None) -> np.ndarray:
            return IMAGE

    np.testing.assert_array_equal(read_source(Tensor()).pixels, IMAGE)


# --- 12 bits of data in 16 --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("highest", "depth"), [(255, 8), (256, 10), (1023, 10), (2000, 12), (4095, 12), (9000, 14), (16383, 14)]
)
def test_16_bits_that_use_fewer_are_read_as_those(highest: int, depth: int) -> None:
    image = (IMAGE.astype(np.int64) * highest // IMAGE.max()).astype(np.uint16)
    prepared = prepare(png(image), SPEC)
    np.testing.assert_array_equal(prepared.image, np.rint(image * 255.0 / (2**depth - 1)))
    (note,) = prepared.notes
    assert note.startswith(f"uses {depth} of 16 bits (its highest value is {highest}) and was read so; --bit_depth=16")
    as_stored = prepare(png(image), SPEC, view=DicomView(bit_depth=16))
    assert as_stored.notes == ()
    assert as_stored.image.max() <= 64  # control: dark


@pytest.mark.parametrize("highest", [20000, 32767, 32768, 65535])
def test_16_bits_that_may_be_all_used_are_left_as_stored(highest: int) -> None:
    image = (IMAGE.astype(np.int64) * highest // IMAGE.max()).astype(np.uint16)
    prepared = prepare(image, SPEC)
    np.testing.assert_array_equal(prepared.image, np.rint(image / 257))
    dark = f"may be too dark (it stores 16 bits, its highest value is {highest}); set --bit_depth=15 if it has 15"
    assert prepared.notes == ((dark,) if highest < 32768 else ())


def test_bit_depth_of_the_spec_and_of_the_call_come_before_the_guess() -> None:
    twelve = PreprocessSpec(20, 16, bit_depth=12)
    dark = np.where(IMAGE12 > 900, 900, IMAGE12).astype(np.uint16)
    assert prepare(dark, twelve).notes == ()
    np.testing.assert_array_equal(prepare(dark, twelve).image, np.rint(dark * 255.0 / 4095))
    np.testing.assert_array_equal(
        prepare(dark, twelve, view=DicomView(bit_depth=14)).image, np.rint(dark * 255.0 / 16383)
    )
    (note,) = prepare((IMAGE12 * 4).astype(np.uint16), twelve).notes
    assert note.startswith("uses more than 12 bits (its highest value is ")
    assert "of the pixels are cut to white" in note
    with pytest.raises(DataError, match="expected a bit_depth from 8 to 16, got 7"):
        DicomView(bit_depth=7)


def test_pillow_image_of_several_frames_refused_its_copy_read() -> None:
    pillow = pytest.importorskip("PIL.Image")
    image, content = pillow.fromarray(IMAGE), io.BytesIO()
    image.save(content, "TIFF", save_all=True, append_images=[pillow.fromarray(IMAGE[::-1])])
    opened = pillow.open(content)
    with pytest.raises(DataError, match="holds 2 images, expected one"):
        read_source(opened)
    np.testing.assert_array_equal(read_source(opened.copy()).pixels, IMAGE)

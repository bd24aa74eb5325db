"""Harmless defects of DICOM files are read, with a warning where it matters; real ones are named rightly."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pydicom = pytest.importorskip("pydicom")

from cxr_compress.device.decode import read_image  # noqa: E402
from cxr_compress.device.dicom import DicomView, read_dicom  # noqa: E402
from cxr_compress.errors import DataError  # noqa: E402
from tests.device.dicoms import (  # noqa: E402
    JPEG_2000,
    JPEG_LOSSLESS,
    JPEG_LS,
    RLE,
    compress,
    decode_dicom,
    lut_item,
    make_dataset,
    make_dicom,
    to_bytes,
)
from tests.device.images import color_photo, draw_image  # noqa: E402

IMAGE = draw_image(1)
IMAGE12 = draw_image(2).astype(np.uint16) * 16 + draw_image(3) % 16  # 0 to 4095
AS_12 = np.rint(IMAGE12 * 255.0 / 4095)


def without(name: str, *, empty: bool = False, pixels: np.ndarray = IMAGE, **fields: Any) -> bytes:
    """A file that lacks an element, or has it without a value."""
    dataset = make_dataset(pixels, **fields)
    if empty:
        setattr(dataset, name, None)
    else:
        delattr(dataset, name)
    return to_bytes(dataset)


# --- what is missing or too much --------------------------------------------------------------------------------------


@pytest.mark.parametrize("empty", [False, True], ids=["missing", "empty"])
@pytest.mark.parametrize("name", ["SamplesPerPixel", "PixelRepresentation", "HighBit", "BitsStored"])
def test_dicom_without_an_element_that_tells_nothing_new_is_read(name: str, empty: bool) -> None:
    picture = read_dicom(without(name, empty=empty, pixels=IMAGE // 2))
    np.testing.assert_array_equal(picture.pixels, IMAGE // 2)
    assert picture.notes == ()


def test_dicom_without_a_sign_is_said_where_it_matters() -> None:
    (note,) = read_dicom(without("PixelRepresentation")).notes  # levels above 127 would be negative
    assert note.startswith("does not say whether its values are signed (PixelRepresentation), read as unsigned")


def test_dicom_without_bits_stored_is_read_by_its_values() -> None:
    picture = read_dicom(without("BitsStored", pixels=IMAGE12))
    np.testing.assert_array_equal(picture.pixels, AS_12)
    assert "uses 12 of the 16" in picture.notes[0]


def test_dicom_color_without_an_order_is_read_with_a_warning() -> None:
    photo = color_photo(20, 30)
    picture = read_dicom(without("PlanarConfiguration", pixels=photo, photometric="RGB"))
    np.testing.assert_array_equal(picture.pixels, photo)
    assert "PlanarConfiguration" in picture.notes[0]


@pytest.mark.parametrize("frames", [0, None, 1])
def test_dicom_number_of_frames_that_is_none_is_one(frames: int | None) -> None:
    dataset = make_dataset(IMAGE)
    dataset.NumberOfFrames = frames
    np.testing.assert_array_equal(decode_dicom(to_bytes(dataset)), IMAGE)


@pytest.mark.parametrize(
    ("tail", "told"), [(bytes(2), False), (bytes(512), False), (bytes(4096), False), (b"\1\2" * 50, True)], ids=str
)
def test_dicom_bytes_behind_the_pixels_are_not_looked_at(tail: bytes, told: bool) -> None:
    dataset = make_dataset(IMAGE)
    dataset.PixelData = dataset.PixelData + tail
    picture = read_dicom(to_bytes(dataset))
    np.testing.assert_array_equal(picture.pixels, IMAGE)
    assert [f"behind its pixels ({len(tail)}," in note for note in picture.notes] == [True] * told


@pytest.mark.parametrize(
    "tail", [b"\0", bytes(512), b"\xff" * 512, b"\xfc\xff\xfc\xffOB\0\0\4\0\0\0abcd", b"junk" * 99]
)
@pytest.mark.parametrize("syntax", [None, RLE], ids=["plain", "rle"])
def test_dicom_bytes_behind_the_last_element_are_not_looked_at(tmp_path: Path, tail: bytes, syntax: Any) -> None:
    data = make_dicom(IMAGE) if syntax is None else compress(make_dicom(IMAGE), syntax, tmp_path)
    np.testing.assert_array_equal(decode_dicom(data + tail), IMAGE)


@pytest.mark.parametrize("syntax", [RLE, JPEG_2000, JPEG_LS, JPEG_LOSSLESS], ids=["rle", "2000", "ls", "lossless"])
@pytest.mark.parametrize("zeros", [100, 5000])
def test_dicom_zeros_behind_a_compressed_image_are_read(tmp_path: Path, syntax: Any, zeros: int) -> None:
    pytest.importorskip("gdcm")
    pytest.importorskip("openjpeg")
    dataset = pydicom.dcmread(io.BytesIO(compress(make_dicom(IMAGE12, bits=12), syntax, tmp_path)))
    (frame,) = pydicom.encaps.generate_frames(dataset.PixelData, number_of_frames=1)
    dataset.PixelData = pydicom.encaps.encapsulate([frame + bytes(zeros)])
    np.testing.assert_array_equal(decode_dicom(to_bytes(dataset)), AS_12)
    if syntax == RLE:
        return  # which has no end mark, and in which zeros are an image
    dataset.PixelData = pydicom.encaps.encapsulate([frame[: len(frame) // 2] + bytes(zeros)])  # control: cut short
    with pytest.raises(DataError, match=r"cut short|damaged"):
        decode_dicom(to_bytes(dataset))


def test_dicom_12_bit_jpeg_says_that_no_decoder_knows_it(cxr_data: Path) -> None:
    pytest.importorskip("gdcm")
    with pytest.raises(
        DataError, match=r"JPEG Extended .* with 12 bits a pixel, which no installed decoder knows"
    ) as told:
        read_image(cxr_data / "dicom" / "wg04_RG3_JPLY.dcm")
    assert "pip install" not in str(told.value)


def test_dicom_damaged_jpeg_does_not_ask_for_an_extra_that_is_there(tmp_path: Path) -> None:
    pytest.importorskip("gdcm")
    dataset = pydicom.dcmread(io.BytesIO(compress(make_dicom(IMAGE), JPEG_LS, tmp_path)))
    dataset.PixelData = pydicom.encaps.encapsulate([b"\xff\xd8" + bytes(range(1, 200)) + b"\xff\xd9"])
    with pytest.raises(DataError, match=r"they are damaged; copy or export it again, or uncompressed$") as told:
        read_dicom(to_bytes(dataset))
    assert "pip" not in str(told.value)


@pytest.mark.parametrize("value", ["monochrome2", "MONOCHROME2\0", " MONOCHROME2 "])
def test_dicom_photometric_interpretation_is_known_however_it_is_written(value: str) -> None:
    data = make_dicom(IMAGE, photometric="MONOCHROME2  ")
    assert data.count(b"MONOCHROME2 ") == 1
    at = data.index(b"MONOCHROME2 ")
    written = value.encode().ljust(12)
    np.testing.assert_array_equal(decode_dicom(data[:at] + written[:12] + data[at + 12 :]), IMAGE)


# --- bits -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("signed", [False, True])
def test_dicom_12_bits_declared_as_16_are_read_as_12(signed: bool) -> None:
    picture = read_dicom(make_dicom(IMAGE12.astype(np.int16) if signed else IMAGE12))
    np.testing.assert_array_equal(picture.pixels, AS_12)
    assert picture.notes[0].startswith("uses 12 of the 16 bits it declares (values from 0 to")
    assert "--bit_depth=16 shows it as declared" in picture.notes[0]
    as_declared = read_dicom(make_dicom(IMAGE12), DicomView(bit_depth=16))
    assert as_declared.notes == ()
    assert as_declared.pixels.max() <= 16


def test_dicom_negative_values_declared_as_16_are_read_as_they_are() -> None:
    picture = read_dicom(make_dicom((IMAGE12.astype(np.int16) - 2048).astype(np.int16)))
    np.testing.assert_array_equal(picture.pixels, AS_12)
    assert "uses 12 of the 16 bits it declares (values from -2048" in picture.notes[0]


def test_dicom_color_of_12_bits_declared_as_16_is_read_as_12() -> None:
    photo = color_photo(20, 30)
    picture = read_dicom(make_dicom(photo.astype(np.uint16) * 16, "RGB"))
    np.testing.assert_array_equal(picture.pixels, np.rint(photo * (16 * 255 / 4095)))
    assert picture.notes[0].startswith("uses 12 of the 16 bits it declares (values up to")
    assert read_dicom(make_dicom(photo.astype(np.uint16) * 16, "RGB"), DicomView(bit_depth=16)).pixels.max() <= 16
    assert read_dicom(make_dicom(photo, "RGB")).notes == ()


@pytest.mark.parametrize("photometric", ["MONOCHROME1", "MONOCHROME2"])
def test_dicom_that_uses_its_bits_is_left_alone(photometric: str) -> None:
    for bits in (11, 12, 13):
        picture = read_dicom(make_dicom((IMAGE12 >> (12 - bits) if bits < 12 else IMAGE12), photometric, bits))
        assert picture.notes == ()


@pytest.mark.parametrize(
    ("stored", "high", "shift", "notes"), [(16, 11, 0, 1), (12, 15, 4, 0), (12, 15, 0, 1), (12, 13, 0, 1)]
)
def test_dicom_bits_that_contradict_one_another_are_settled_by_the_values(
    stored: int, high: int, shift: int, notes: int
) -> None:
    picture = read_dicom(make_dicom(IMAGE12 << shift, bits=stored, HighBit=high))
    np.testing.assert_array_equal(picture.pixels, AS_12)
    assert len(picture.notes) == notes


def test_dicom_of_16_bits_that_may_have_15_is_shown_as_declared_and_said() -> None:
    picture = read_dicom(make_dicom(IMAGE12 * 8))  # up to 18536
    np.testing.assert_array_equal(picture.pixels, np.floor(IMAGE12 * (8 * 255 / 65535) + 0.5))
    assert picture.notes[0].startswith("may be too dark (it stores 16 bits, its highest value is 18")
    assert read_dicom(make_dicom(IMAGE12 * 16)).notes == ()


def test_dicom_bits_that_contradict_values_and_one_another_are_refused() -> None:
    with pytest.raises(DataError, match="stores 12 of 16 bits a sample up to bit 15"):
        read_dicom(make_dicom((IMAGE12 << 4) + 3, bits=12, HighBit=15))


def test_dicom_values_above_the_declared_bits_are_said() -> None:
    (note,) = read_dicom(make_dicom(IMAGE12, bits=10, WindowCenter=512, WindowWidth=1024)).notes
    assert note.startswith("has higher bits than it declares (10 declared, ")


# --- look-up tables ---------------------------------------------------------------------------------------------------


def test_dicom_voi_lut_of_12_bits_declared_as_16_is_scaled_by_its_entries() -> None:
    entries = [int(value) for value in np.linspace(0, 4095, 256)]
    picture = read_dicom(make_dicom(IMAGE, VOILUTSequence=[lut_item(0, 16, entries)]))
    np.testing.assert_allclose(picture.pixels, IMAGE, atol=1)
    assert picture.notes[0].startswith(
        "has a VOI LUT of other bits than it declares (16 declared, highest entry 4095, read as 12)"
    )
    right = read_dicom(make_dicom(IMAGE, VOILUTSequence=[lut_item(0, 12, entries)]))  # control: nothing to say
    np.testing.assert_array_equal(right.pixels, picture.pixels)
    assert right.notes == ()


def test_dicom_lut_with_entries_above_its_bits_is_scaled_by_its_entries() -> None:
    entries = [int(value) for value in np.linspace(0, 4095, 256)]
    picture = read_dicom(make_dicom(IMAGE, ModalityLUTSequence=[lut_item(0, 8, entries)]))
    np.testing.assert_allclose(picture.pixels, IMAGE, atol=1)
    assert picture.notes[0].startswith("has a modality LUT of other bits than it declares (8 declared")


def test_dicom_modality_lut_of_a_tiny_range_is_spread_and_said() -> None:
    entries = [251 + value // 52 for value in range(256)]  # 251 to 255
    picture = read_dicom(make_dicom(IMAGE, ModalityLUTSequence=[lut_item(0, 8, entries)]))
    np.testing.assert_array_equal(picture.pixels, np.floor((IMAGE // 52) * 255.0 / 4 + 0.5))
    assert picture.notes[0].startswith("has a modality LUT of a small range (251 to 255")


# --- padding ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("photometric", ["MONOCHROME1", "MONOCHROME2"])
@pytest.mark.parametrize(
    ("fields", "padded"),
    [
        ({"PixelPaddingValue": 4000}, [4000]),
        ({"PixelPaddingValue": 4000, "PixelPaddingRangeLimit": 4095}, [4000, 4050, 4095]),
        ({"PixelPaddingValue": 4095, "PixelPaddingRangeLimit": 4000}, [4000, 4050, 4095]),
        ({}, []),
    ],
)
def test_dicom_padding_is_black(photometric: str, fields: dict[str, int], padded: list[int]) -> None:
    pixels = np.where(IMAGE12 >= 3900, 3900, IMAGE12).astype(np.uint16)
    expected = read_dicom(make_dicom(pixels, photometric, 12)).pixels
    pixels[:5, :3] = (4000, 4050, 4095)
    picture = read_dicom(make_dicom(pixels, photometric, 12, **fields))
    np.testing.assert_array_equal(picture.pixels[5:], expected[5:])
    for place, value in enumerate((4000, 4050, 4095)):
        shown = round(value * 255 / 4095)
        shown = 255 - shown if photometric == "MONOCHROME1" else shown
        assert set(picture.pixels[:5, place]) == {0 if value in padded else shown}


def test_dicom_padding_takes_no_part_in_the_range_of_values() -> None:
    pixels = IMAGE12.copy()
    pixels[:5] = 65535
    picture = read_dicom(make_dicom(pixels, PixelPaddingValue=65535))
    np.testing.assert_array_equal(picture.pixels[5:], AS_12[5:])
    assert not picture.pixels[:5].any()
    assert "values from" in picture.notes[0]
    unpadded = read_dicom(make_dicom(pixels))  # control: the padding alone makes it nearly black
    assert unpadded.notes == ()
    assert unpadded.pixels[5:].max() <= 16


@pytest.mark.parametrize("value", [-2000, 63536, 2096])
@pytest.mark.parametrize("implicit", [False, True])
def test_dicom_padding_of_signed_values_is_found_however_it_is_written(value: int, implicit: bool) -> None:
    pixels = (IMAGE12.astype(np.int16) - 2048).astype(np.int16)
    pixels[pixels < -1900] = -1900
    pixels[:5] = -2000
    dataset = make_dataset(pixels, bits=12)
    dataset.add_new("PixelPaddingValue", "SS" if value < 0 else "US", value)
    if implicit:
        dataset.file_meta.TransferSyntaxUID = pydicom.uid.ImplicitVRLittleEndian
    picture = read_dicom(to_bytes(dataset))
    assert not picture.pixels[:5].any()
    np.testing.assert_array_equal(picture.pixels[5:], np.floor((pixels[5:] + 2048.0) * 255 / 4095 + 0.5))

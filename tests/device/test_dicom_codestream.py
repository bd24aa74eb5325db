"""Compressed DICOM pixels that are damaged or contradict the header are refused; sound ones are read."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest

pydicom = pytest.importorskip("pydicom")

from pydicom.encaps import encapsulate  # noqa: E402
from pydicom.uid import JPEGBaseline8Bit  # noqa: E402

from cxr_compress.device.dicom import DicomView, read_dicom  # noqa: E402
from cxr_compress.errors import DataError  # noqa: E402
from tests.device.dicoms import (  # noqa: E402
    JPEG_2000,
    JPEG_LOSSLESS,
    JPEG_LS,
    compress,
    decode_dicom,
    lut_item,
    make_dataset,
    make_dicom,
    to_bytes,
)
from tests.device.images import (  # noqa: E402
    draw_image,
    jpeg,
)

IMAGE = cv2.resize(draw_image(1), (160, 160), interpolation=cv2.INTER_CUBIC)
IMAGE12 = IMAGE.astype(np.uint16) * 16
GOOD = jpeg(IMAGE)
MIDDLE = len(GOOD) * 2 // 3
EOI = b"\xff\xd9"


def baseline(*frames: bytes, **fields: Any) -> bytes:
    """IMAGE's header with these compressed images."""
    dataset = make_dataset(IMAGE, **fields)
    dataset.file_meta.TransferSyntaxUID = JPEGBaseline8Bit
    dataset.PixelData = encapsulate(list(frames))
    dataset["PixelData"].is_undefined_length = True
    return to_bytes(dataset)


def changed(content: bytes, **fields: Any) -> bytes:
    dataset = pydicom.dcmread(io.BytesIO(content))
    for name, value in fields.items():
        setattr(dataset, name, value)
    return to_bytes(dataset)


def test_dicom_jpeg_that_is_whole_is_read() -> None:
    np.testing.assert_allclose(decode_dicom(baseline(GOOD)), IMAGE, atol=30)


@pytest.mark.parametrize(
    "frame",
    [GOOD[:MIDDLE] + EOI, GOOD[:MIDDLE] + bytes(200) + GOOD[MIDDLE + 200 :], GOOD[:MIDDLE] + GOOD[MIDDLE + 300 :]],
    ids=["half", "zeros", "hole"],
)
def test_dicom_jpeg_damaged_scan_refused(frame: bytes, capfd: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(DataError, match=r"^is damaged: only a part of its pixels[^\n]*again$"):
        read_dicom(baseline(frame))
    assert capfd.readouterr().err == ""


def test_dicom_jpeg_of_three_components_for_one_sample_refused() -> None:
    with pytest.raises(DataError, match=r"SamplesPerPixel is 1, its compressed image has 3 components"):
        read_dicom(baseline(jpeg(np.dstack([IMAGE] * 3))))


def test_dicom_more_images_than_frames_refused() -> None:
    with pytest.raises(DataError, match="NumberOfFrames is 1, it holds 2 images"):
        read_dicom(baseline(GOOD, GOOD))
    np.testing.assert_array_equal(
        decode_dicom(baseline(GOOD, GOOD, NumberOfFrames=2), DicomView(frame=2)), decode_dicom(baseline(GOOD))
    )


def test_dicom_jpeg_2000_unlike_its_header_refused(tmp_path: Path) -> None:
    content = compress(make_dicom(IMAGE12, bits=12), JPEG_2000, tmp_path)
    read_dicom(content)
    with pytest.raises(DataError, match="BitsStored is 10, its compressed image has 12 bits"):
        read_dicom(changed(content, BitsStored=10, HighBit=9))
    with pytest.raises(DataError, match="PixelRepresentation says signed, its image unsigned values"):
        read_dicom(changed(content, PixelRepresentation=1))


@pytest.mark.parametrize("syntax", [JPEG_LOSSLESS, JPEG_LS])
def test_dicom_compressed_values_above_the_declared_bits_refused(syntax: Any, tmp_path: Path) -> None:
    content = compress(make_dicom(IMAGE12, bits=12), syntax, tmp_path)
    read_dicom(content)
    with pytest.raises(DataError, match="BitsStored is 10, its highest value is"):
        read_dicom(changed(content, BitsStored=10, HighBit=9))


@pytest.mark.parametrize("syntax", [JPEG_LOSSLESS, JPEG_LS])
def test_dicom_compressed_in_more_bits_than_are_used_is_read(syntax: Any, tmp_path: Path) -> None:
    content = changed(compress(make_dicom(IMAGE12), syntax, tmp_path), BitsStored=12, HighBit=11)
    np.testing.assert_array_equal(decode_dicom(content), decode_dicom(make_dicom(IMAGE12, bits=12)))


def test_dicom_voi_lut_of_more_entries_than_declared_refused() -> None:
    item = lut_item(0, 12, list(range(256)))
    item.LUTDescriptor = [128, 0, 12]
    item.add_new("LUTData", "OW", np.arange(256, dtype="<u2").tobytes())
    with pytest.raises(DataError, match="has a LUT of 256 entries of 12 bits, expected 128"):
        read_dicom(make_dicom(IMAGE, VOILUTSequence=[item]))


@pytest.mark.parametrize("count", [255, 256])
def test_dicom_voi_lut_of_bytes_is_read_without_its_padding(count: int) -> None:
    item = lut_item(0, 8, list(range(count)))
    item.add_new("LUTData", "OW", bytes(range(count)) + bytes(count % 2))
    image = np.minimum(IMAGE, count - 1)
    np.testing.assert_array_equal(decode_dicom(make_dicom(image, VOILUTSequence=[item])), image)


@pytest.mark.parametrize("word", ["inverse", "INVERSE", "Inverse "])
@pytest.mark.filterwarnings("ignore:Invalid value for VR")
def test_dicom_presentation_lut_shape_is_known_however_it_is_written(word: str) -> None:
    np.testing.assert_array_equal(decode_dicom(make_dicom(IMAGE, PresentationLUTShape=word)), 255 - IMAGE)


def test_dicom_presentation_lut_shape_that_is_unknown_refused() -> None:
    with pytest.raises(DataError, match="PresentationLUTShape that is not read, expected IDENTITY or INVERSE"):
        read_dicom(make_dicom(IMAGE, PresentationLUTShape="SECRET"))


def test_dicom_modality_lut_beside_a_rescale_refused_unless_it_changes_nothing() -> None:
    luts = [lut_item(0, 8, list(range(256)))]
    plain = make_dicom(IMAGE, ModalityLUTSequence=luts, RescaleSlope=1, RescaleIntercept=0)
    np.testing.assert_array_equal(decode_dicom(plain), IMAGE)
    for fields in ({"RescaleSlope": -1, "RescaleIntercept": 0}, {"RescaleSlope": 1, "RescaleIntercept": 5}):
        with pytest.raises(DataError, match="a modality LUT and a RescaleSlope, which exclude one another"):
            read_dicom(make_dicom(IMAGE, ModalityLUTSequence=luts, **fields))


UNUSABLE: list[dict[str, Any]] = [
    {"WindowCenter": 128, "WindowWidth": 0},
    {"WindowCenter": [128, 100], "WindowWidth": 256},
    {"WindowCenter": 128, "WindowWidth": 256, "VOILUTFunction": "OTHER"},
    {"VOILUTSequence": [pydicom.Dataset()]},
]


@pytest.mark.parametrize("fields", UNUSABLE)
def test_dicom_own_window_works_where_those_of_the_file_cannot(fields: dict[str, Any]) -> None:
    content = make_dicom(IMAGE, **fields)
    with pytest.raises(DataError):
        read_dicom(content)
    expected = decode_dicom(make_dicom(IMAGE, WindowCenter=100, WindowWidth=50))
    np.testing.assert_array_equal(decode_dicom(content, DicomView(window=(100.0, 50.0))), expected)


@pytest.mark.filterwarnings("ignore:Invalid value for VR")
def test_dicom_window_function_is_known_however_it_is_written() -> None:
    window = {"WindowCenter": 100, "WindowWidth": 50}
    expected = decode_dicom(make_dicom(IMAGE, VOILUTFunction="SIGMOID", **window))
    np.testing.assert_array_equal(decode_dicom(make_dicom(IMAGE, VOILUTFunction="sigmoid", **window)), expected)

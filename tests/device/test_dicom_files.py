"""DICOM as files, in folders, in threads, and as a command line asks for them."""

from __future__ import annotations

import io
import warnings
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

pydicom = pytest.importorskip("pydicom")

from cxr_compress.device.decode import decode_image, is_dicom  # noqa: E402
from cxr_compress.device.dicom import DicomView  # noqa: E402
from cxr_compress.device.sources import look_into  # noqa: E402
from cxr_compress.errors import DataError  # noqa: E402
from tests.device.dicoms import decode_dicom, make_dataset, make_dicom  # noqa: E402
from tests.device.images import (  # noqa: E402
    draw_image,
    png,
)

IMAGE = draw_image(1)
IMAGE12 = draw_image(2).astype(np.uint16) * 16 + draw_image(3) % 16  # 0 to 4095
FULL12 = {"WindowCenter": 2048, "WindowWidth": 4096}


def bare(dataset: Any, *, implicit: bool, little: bool = True) -> bytes:
    """A file without preamble, mark and file meta information."""
    buffer = io.BytesIO()
    del dataset.file_meta
    dataset.preamble = None
    pydicom.dcmwrite(buffer, dataset, implicit_vr=implicit, little_endian=little, enforce_file_format=False)
    return buffer.getvalue()


@pytest.mark.parametrize("implicit", [True, False], ids=["implicit", "explicit"])
def test_dicom_without_preamble_is_known_under_any_name(tmp_path: Path, implicit: bool) -> None:
    data = bare(make_dataset(IMAGE), implicit=implicit)
    assert data[128:132] != b"DICM"
    for name in ("image.dcm", "image.IMA", "image", "image.png", "image.txt"):
        (tmp_path / name).write_bytes(data)
        np.testing.assert_array_equal(decode_image(tmp_path / name), IMAGE)
    assert len(look_into(tmp_path).images) == 5


@pytest.mark.parametrize(
    "text", [b"", b"\x08\x00", b"hello", b"\x08\0\0\0" * 64, bytes(600), b"\x02\0\x10\0UI" + b"\xff" * 200]
)
def test_dicom_mark_is_not_seen_where_it_is_not(text: bytes) -> None:
    assert not is_dicom(text)


@given(data=st.binary(max_size=300))
def test_dicom_mark_of_any_bytes_is_an_answer(data: bytes) -> None:
    assert is_dicom(data.ljust(128, b"\0")[:128] + b"DICM")
    assert is_dicom(data) in (True, False)


def test_dicom_suffix_on_other_content_is_judged_by_the_content(tmp_path: Path) -> None:
    (tmp_path / "image.dcm").write_bytes(png(IMAGE))
    np.testing.assert_array_equal(decode_image(tmp_path / "image.dcm"), IMAGE)
    (tmp_path / "text.dcm").write_text("Patient: ... " * 20)
    with pytest.raises(DataError, match=r"holds no image|is no DICOM file"):
        decode_image(tmp_path / "text.dcm")


def test_look_into_finds_dicom_with_and_without_suffix(tmp_path: Path) -> None:
    data = make_dicom(IMAGE)
    for name in ("a.dcm", "b.DICOM", "IM0001", "1.2.840.113", ".hidden", "DICOMDIR", "sub/IM2"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(data)
    (tmp_path / "c.png").write_bytes(png(IMAGE))
    (tmp_path / "README").write_text("not an image")
    (tmp_path / "notes.txt").write_bytes(data)
    found = [path.relative_to(tmp_path).as_posix() for path in look_into(tmp_path).images]
    assert found == ["1.2.840.113", "IM0001", "a.dcm", "b.DICOM", "c.png", "notes.txt", "sub/IM2"]
    with pytest.raises(DataError, match="is no folder"):
        look_into(tmp_path / "c.png")


def test_dicom_in_many_threads_gives_the_same_and_leaves_the_filters(tmp_path: Path) -> None:
    data = make_dicom(IMAGE12, bits=12, **FULL12)
    expected, before = decode_dicom(data), list(warnings.filters)
    with ThreadPoolExecutor(8) as pool:
        for decoded in pool.map(decode_dicom, [data] * 64):
            np.testing.assert_array_equal(decoded, expected)
    assert warnings.filters == before


@pytest.mark.parametrize(
    ("frame", "window", "expected"),
    [
        (None, None, DicomView()),
        (2, None, DicomView(2)),
        (None, "3", DicomView(None, 3)),
        (None, "-100.5,2e3", DicomView(None, (-100.5, 2000.0))),
    ],
)
def test_view_parse_reads_flags(frame: int | None, window: str | None, expected: DicomView) -> None:
    assert DicomView.parse(frame, window) == expected


@pytest.mark.parametrize("window", ["", "0", "1.5", "a,b", "1,2,3", "-1", "nan"])
def test_view_parse_of_no_window_says_what_was_expected(window: str) -> None:
    with pytest.raises(DataError, match="expected a window as its number in the file"):
        DicomView.parse(None, window)


def test_view_parse_of_impossible_numbers_is_refused() -> None:
    with pytest.raises(DataError, match="that no image can be seen through"):
        DicomView.parse(None, "5,0")
    with pytest.raises(DataError, match="expected a frame number from 1 on, got 0"):
        DicomView.parse(0, None)

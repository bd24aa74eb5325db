"""Decode PNG, JPEG and DICOM files, and refuse what is damaged instead of guessing the missing pixels.

OpenCV fills what a cut-off JPEG lacks with gray and says nothing: a clinic would get a finding for half a film. So the
container is walked before its pixels are decoded: every PNG chunk and its checksum, every JPEG segment to the end mark.
DICOM is read by dicom.py. Other formats are refused, because nothing here could tell whether such a file is whole.
"""

from __future__ import annotations

import re
import zlib
from pathlib import Path
from typing import Literal

import cv2
import numpy as np

from cxr_compress.device.dicom import FIRST_VIEW, DicomView, decode_dicom
from cxr_compress.errors import DataError

# What one file is: by its suffix an image, or by its first DICOM_HEAD_BYTES a DICOM file whatever it is called.
DICOM_SUFFIXES = (".dcm", ".dicom", ".dic", ".ima")
IMAGE_SUFFIXES = (
    *(".png", ".jpg", ".jpeg", ".jpe", ".jfif", ".bmp", ".dib", ".tif", ".tiff", ".webp"),
    *DICOM_SUFFIXES,
)
DICOM_HEAD_BYTES = 1024

_PNG_SIGNATURE = b"\x89PNG\r\n\x1a\n"
_JPEG_START = b"\xff\xd8"
_DICOM_PREAMBLE = 128
_DICOM_MAGIC = b"DICM"
# What a file without preamble starts with: file meta information or the group that identifies the image. The value
# representations, and which of them have a length of 32 bits behind two spare bytes (PS3.5, table 7.1-1).
_FIRST_GROUPS = (0x0002, 0x0008)
_SHORT_VRS = frozenset(b"AE AS AT CS DA DS DT FD FL IS LO LT PN SH SL SS ST TM UI UL US".split())
_LONG_VRS = frozenset(b"OB OD OF OL OV OW SQ SV UC UN UR UT UV".split())
_MOST_BYTES = 2**16  # of one of the first elements, which are short texts and numbers
_AGAIN = "copy or export it again"
# A mark that ends entropy-coded data: not a stuffed zero, not a restart mark, not a fill byte (ITU-T T.81, B.1.1.5).
_NEXT_MARK = re.compile(rb"\xff[^\x00\xd0-\xd7\xff]", re.DOTALL)
_EOI = 0xD9
# Marks without a length field: TEM, RST0 to RST7, SOI (ITU-T T.81, table B.1).
_BARE_MARKS = frozenset({0x01, *range(0xD0, 0xD9)})


def decode_image(path: str | Path, view: DicomView = FIRST_VIEW) -> np.ndarray:
    """Read a PNG or JPEG file as it stores its pixels, a DICOM file as a reader would see it, in 8 bits.

    Palettes are resolved, an alpha channel is dropped, the EXIF orientation is not applied (scanners do not write it).
    16-bit PNG stays 16-bit. DICOM is known by its mark at byte 128, or by its suffix where it has none.

    Args:
        path: the file.
        view: which frame and window of a DICOM file.

    Returns:
        uint8 or uint16, (H, W) for gray files, (H, W, 3) in RGB order for the others.

    Raises:
        DataError: the file is missing, empty, cut short, damaged or of another kind; the message starts with the path.
    """
    try:
        data = Path(path).read_bytes()
    except FileNotFoundError as error:
        raise DataError(f"{path}: not found; check the path") from error
    except IsADirectoryError as error:
        raise DataError(f"{path}: is a folder, expected an image file") from error
    except OSError as error:
        raise DataError(f"{path}: could not be read: {error.strerror or error}") from error
    except ValueError as error:  # a path with a NUL character
        raise DataError(f"{str(path)!r}: is not a path: {error}") from error
    try:
        return decode_bytes(data, view, bare_dicom=Path(path).suffix.lower() in DICOM_SUFFIXES)
    except DataError as error:
        raise DataError(f"{path}: {error}") from error


def decode_bytes(data: bytes, view: DicomView = FIRST_VIEW, *, bare_dicom: bool = False) -> np.ndarray:
    """Decode the content of a file as `decode_image` does.

    Args:
        data: the content.
        view: which frame and window of a DICOM file.
        bare_dicom: what is neither PNG nor JPEG is DICOM, with or without its mark.

    Raises:
        DataError: as `decode_image`, without a path.
    """
    if not data:
        raise DataError(f"is empty; {_AGAIN}")
    plain = data.startswith((_PNG_SIGNATURE, _JPEG_START))
    if not plain and (bare_dicom or is_dicom(data)):
        return decode_dicom(data, view)
    _check_container(data)
    try:
        image = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_UNCHANGED)
    except cv2.error as error:  # for instance above OpenCV's limit of 2**30 pixels
        raise DataError(f"OpenCV refuses it: {' '.join(str(error).split())}") from error
    if image is None:
        raise DataError(f"is damaged: its pixels cannot be decoded; {_AGAIN}")
    return _drop_alpha(np.asarray(image))


def is_image_file(path: Path) -> bool:
    """Whether a file counts as an image in a folder: by its suffix, or because it is DICOM under any other name."""
    suffix = path.suffix.lower()
    if suffix in IMAGE_SUFFIXES:
        return path.is_file()
    if path.name == "DICOMDIR" or not path.is_file():
        return False
    try:
        with path.open("rb") as file:
            return is_dicom(file.read(DICOM_HEAD_BYTES))
    except OSError:
        return False


def is_dicom(head: bytes) -> bool:
    """Whether a file is DICOM, told by its first `DICOM_HEAD_BYTES` or more: its mark, or elements without a preamble.

    Without preamble and mark the first two elements have to be written as DICOM writes them, in ascending order.
    """
    if head[_DICOM_PREAMBLE : _DICOM_PREAMBLE + len(_DICOM_MAGIC)] == _DICOM_MAGIC:
        return True
    kinds: tuple[tuple[Literal["little", "big"], bool], ...] = (("little", True), ("little", False), ("big", True))
    return any(_starts_with_elements(head, order, explicit=explicit) for order, explicit in kinds)


def _starts_with_elements(head: bytes, order: Literal["little", "big"], *, explicit: bool) -> bool:
    """Whether the bytes start with two elements of a DICOM data set (PS3.5, section 7.1)."""
    first = _element(head, order, explicit=explicit)
    if first is None or first[0][0] not in _FIRST_GROUPS:
        return False
    second = _element(head[first[1] :], order, explicit=explicit)
    return second is not None and second[0] > first[0]


def _element(data: bytes, order: Literal["little", "big"], *, explicit: bool) -> tuple[tuple[int, int], int] | None:
    """Tag and whole length in bytes of the element that the bytes start with; None where they start with none."""
    tag = int.from_bytes(data[:2], order), int.from_bytes(data[2:4], order)
    if not explicit:
        start, length = 8, int.from_bytes(data[4:8], order)
    elif data[4:6] in _SHORT_VRS:
        start, length = 8, int.from_bytes(data[6:8], order)
    elif data[4:6] in _LONG_VRS:
        start, length = 12, int.from_bytes(data[8:12], order)
    else:
        return None
    sound = len(data) >= start and length % 2 == 0 and length <= _MOST_BYTES
    return (tag, start + length) if sound else None


def _drop_alpha(image: np.ndarray) -> np.ndarray:
    """From OpenCV's (H, W), BGR or BGRA to (H, W) or RGB; 8- or 16-bit only."""
    if image.dtype not in (np.uint8, np.uint16):
        raise DataError(f"expected 8 or 16 bits a pixel, got {image.dtype}")
    if image.ndim == 2:  # noqa: PLR2004
        return image
    if image.shape[2] < 3:  # noqa: PLR2004 - gray, or gray and alpha
        return np.ascontiguousarray(image[..., 0])
    return np.ascontiguousarray(image[..., 2::-1])


def _check_container(data: bytes) -> None:
    """Raise a DataError unless the bytes are one whole PNG or JPEG file."""
    if data.startswith(_PNG_SIGNATURE):
        _check_png(data)
    elif data.startswith(_JPEG_START):
        _check_jpeg(data)
    else:
        raise DataError(
            f"is not a PNG, JPEG or DICOM file (it starts with {data[:4].hex(' ')}); export it as PNG first"
        )


def _check_png(data: bytes) -> None:
    """Walk the chunks of a PNG to its IEND and verify each checksum.

    Source: W3C PNG specification, section 5.3 (length, type, data, CRC over type and data).
    """
    position = len(_PNG_SIGNATURE)
    view = memoryview(data)
    while position + 12 <= len(data):
        length = int.from_bytes(view[position : position + 4], "big")
        kind = data[position + 4 : position + 8]
        end = position + 8 + length
        if end + 4 > len(data):
            break
        if zlib.crc32(view[position + 4 : end]) != int.from_bytes(view[end : end + 4], "big"):
            raise DataError(f"is damaged: the checksum of PNG chunk {_printable(kind)} is wrong; {_AGAIN}")
        if kind == b"IEND":
            return
        position = end + 4
    raise DataError(f"is cut short: the PNG ends after {len(data)} bytes without its end mark (IEND); {_AGAIN}")


def _check_jpeg(data: bytes) -> None:
    """Walk the segments of a JPEG to its end mark; bytes after it (padding, a second picture) do not matter.

    A search for the end mark alone would be fooled by the thumbnail inside an EXIF segment, which has its own.
    Source: ITU-T T.81, annex B.
    """
    position = len(_JPEG_START)
    while True:
        found = _NEXT_MARK.search(data, position)
        if found is None:
            break
        mark, position = data[found.start() + 1], found.end()
        if mark == _EOI:
            return
        if mark in _BARE_MARKS:
            continue
        # A segment says how long it is; entropy-coded data after a scan header does not, and is searched through.
        position += int.from_bytes(data[position : position + 2], "big")
    raise DataError(f"is cut short: the JPEG ends after {len(data)} bytes without its end mark (EOI); {_AGAIN}")


def _printable(kind: bytes) -> str:
    """Give a chunk type as text that is safe in a message."""
    return kind.decode("ascii", "replace") if kind.isalpha() else kind.hex(" ")

"""Decode PNG, JPEG, BMP, TIFF, WebP and DICOM files, and refuse what is damaged instead of guessing missing pixels.

containers.py tells whether a file is whole and which way up it is; dicom.py reads DICOM. Other formats are refused,
because nothing here could tell whether such a file is whole.
"""

from __future__ import annotations

import stat
from pathlib import Path
from typing import Literal

import numpy as np

from cxr_compress.device.containers import JPEG_START, PNG_SIGNATURE, decode_checked, read_container, upright
from cxr_compress.device.dicom import FIRST_VIEW, DicomView, Picture, read_dicom
from cxr_compress.errors import DataError

# What one file is: by its suffix an image, or by its first DICOM_HEAD_BYTES a DICOM file whatever it is called.
DICOM_SUFFIXES = (".dcm", ".dicom", ".dic", ".ima")
IMAGE_SUFFIXES = (
    *(".png", ".jpg", ".jpeg", ".jpe", ".jfif", ".bmp", ".dib", ".tif", ".tiff", ".webp"),
    *DICOM_SUFFIXES,
)
DICOM_HEAD_BYTES = 1024

_MOST_FILE_BYTES = 1 << 30
_DICOM_PREAMBLE = 128
_DICOM_MAGIC = b"DICM"
# What a file without preamble starts with: file meta information or the group that identifies the image. The value
# representations, and which of them have a length of 32 bits behind two spare bytes (PS3.5, table 7.1-1).
_FIRST_GROUPS = (0x0002, 0x0008)
_SHORT_VRS = frozenset(b"AE AS AT CS DA DS DT FD FL IS LO LT PN SH SL SS ST TM UI UL US".split())
_LONG_VRS = frozenset(b"OB OD OF OL OV OW SQ SV UC UN UR UT UV".split())
_MOST_BYTES = 2**16  # of one of the first elements, which are short texts and numbers
_BMP = b"BM"
_TIFF = (b"II*\0", b"MM\0*")
_PLAIN = (PNG_SIGNATURE, JPEG_START, _BMP, b"RIFF", *_TIFF)
_AGAIN = "copy or export it again"


def decode_image(path: str | Path, view: DicomView = FIRST_VIEW) -> np.ndarray:
    """The pixels of `read_image`, without what is to be said about them."""
    return read_image(path, view).pixels


def decode_bytes(data: bytes, view: DicomView = FIRST_VIEW, *, bare_dicom: bool = False) -> np.ndarray:
    """The pixels of `read_bytes`, without what is to be said about them."""
    return read_bytes(data, view, bare_dicom=bare_dicom).pixels


def read_image(path: str | Path, view: DicomView = FIRST_VIEW) -> Picture:
    """Read an image file as a viewer shows it, a DICOM file in 8 bits.

    The orientation that a camera or phone writes (EXIF, TIFF) is applied, palettes are resolved, transparency is
    dropped (and said). Files of 16 bits stay so. DICOM is known by `is_dicom`, or by its suffix.

    Args:
        path: the file.
        view: which frame and window of a DICOM file.

    Returns:
        uint8 or uint16, (H, W) for gray files, (H, W, 3) in RGB order for the others.

    Raises:
        DataError: the file is missing, empty, cut short, damaged or of another kind; the message starts with the path.
    """
    try:
        status = Path(path).stat()
        if not stat.S_ISREG(status.st_mode) and not stat.S_ISDIR(status.st_mode):  # it could keep waiting forever
            raise DataError(
                f"{path}: is a pipe, socket or device, expected a file; copy what it gives into a file first"
            )
        if status.st_size > _MOST_FILE_BYTES:
            raise DataError(f"{path}: has {status.st_size:,} bytes, expected an image of at most 1 GiB; check the path")
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
        return read_bytes(data, view, bare_dicom=Path(path).suffix.lower() in DICOM_SUFFIXES)
    except DataError as error:
        raise DataError(f"{path}: {error}") from error


def read_bytes(data: bytes, view: DicomView = FIRST_VIEW, *, bare_dicom: bool = False) -> Picture:
    """Decode the content of a file as `read_image` does.

    Args:
        data: the content.
        view: which frame and window of a DICOM file.
        bare_dicom: what is no other image is DICOM, with or without its mark.

    Raises:
        DataError: as `read_image`, without a path.
    """
    if not data:
        raise DataError(f"is empty; {_AGAIN}")
    plain = data.startswith((PNG_SIGNATURE, JPEG_START))
    if not plain and (is_dicom(data) or (bare_dicom and not data.startswith(_PLAIN))):
        return read_dicom(data, view)
    container = read_container(data)
    picture = without_alpha(decode_checked(data), bgr=True)
    if picture.notes and data.startswith(_TIFF):  # OpenCV has multiplied colors by it, and they are too dark
        raise DataError(
            f"is a TIFF that {picture.notes[0].split(',')[0]}), expected none; save it without transparency"
        )
    if data.startswith(_BMP):  # whose fourth channel nobody fills in
        picture = Picture(picture.pixels)
    pixels = np.iinfo(picture.pixels.dtype).max - picture.pixels if container.inverted else picture.pixels
    return Picture(upright(pixels, container.orientation), picture.notes)


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


def without_alpha(image: np.ndarray, *, bgr: bool = False) -> Picture:
    """Drop the last channel of gray or color with transparency; says so where something shows through.

    Args:
        image: uint8 or uint16, (H, W), or (H, W, 1 to 4).
        bgr: the colors are in the order of OpenCV.

    Raises:
        DataError: another dtype.
    """
    if image.dtype not in (np.uint8, np.uint16):
        raise DataError(f"expected 8 or 16 bits a pixel, got {image.dtype}; export it as 8- or 16-bit PNG")
    if image.ndim == 2:  # noqa: PLR2004
        return Picture(image)
    channels = image.shape[2]
    notes: tuple[str, ...] = ()
    if channels in (2, 4) and (share := float((image[..., -1] < np.iinfo(image.dtype).max).mean())):
        notes = (f"has transparent pixels ({share:.1%}, shown as if they were not); export it without transparency",)
    if channels < 3:  # noqa: PLR2004
        return Picture(np.ascontiguousarray(image[..., 0]), notes)
    return Picture(np.ascontiguousarray(image[..., 2::-1] if bgr else image[..., :3]), notes)

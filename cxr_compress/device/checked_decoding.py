"""Decode with OpenCV and refuse what its libraries only complain about.

libjpeg and libtiff fill what they cannot decode with gray or with what came before, write one line to stderr, and
OpenCV gives the image as if nothing had been: a finding for half an image. OpenCV hands that line to nobody, so it is
read where it is written.
"""

from __future__ import annotations

import contextlib
import re
import struct
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import cv2
import numpy as np

from cxr_compress.device.containers import JPEG_START, jpeg_frame, read_container
from cxr_compress.device.native import stderr_lines
from cxr_compress.errors import DataError

_COMPLAINED_OF = (b"\xff\xd8", b"II*\0", b"MM\0*")  # JPEG and TIFF
_AGAIN = "copy or export it again"
# What libjpeg, libtiff behind OpenCV's log, and the JPEG decoders of DICOM write.
_COMPLAINT = re.compile(
    rb"Corrupt JPEG|Premature end of|Inconsistent progression|Invalid SOS param|Unsupported (marker|JPEG)|"
    rb"Unknown Adobe color|Warning: unknown JFIF|Tile part length|Expected a SOC|\[ (WARN|INFO)|\[(ERROR|FATAL|DEBUG)|"
    rb"\[ *(WARN|ERROR|FATAL|INFO|DEBUG):|OpenCV TIFF: "
)
# libjpeg prints the first complaint of an image alone, so one about its header may hide one about its pixels.
_DAMAGE = re.compile(
    r"Corrupt JPEG|Premature end of|Inconsistent progression|Invalid SOS param|Unsupported marker|Unknown Adobe color|"
    r"Warning: unknown JFIF|.*(\bTIFF_(Error|Warning)\b|OpenCV TIFF: ).*(ecode|ncorrect|orrupt|[Rr]ead error|scanline|"
    r"strip|tile|end of|Bad code|[Nn]ot enough|Discarding)"
)
_LIBRARY_LINE = re.compile(r"^(\[.*?TIFF_\w+ |OpenCV TIFF: )")
# OpenCV 5 gives libtiff's complaints as warnings and errors, OpenCV 4 at its level of debugging.
_LOG, _HEARD = (cv2, 5) if hasattr(cv2, "setLogLevel") else (cv2.utils.logging, 3)


@contextlib.contextmanager
def complaints_refused() -> Iterator[None]:
    """While inside, decoders that complain about damaged data on stderr raise a DataError, and are not heard.

    Raises:
        DataError: says what the decoder wrote.
    """
    with stderr_lines(_COMPLAINT) as lines, _opencv_heard():
        yield
    for line in lines:
        if _DAMAGE.match(line):
            said = _LIBRARY_LINE.sub("", line).strip(" :.")[:120]
            raise DataError(f"is damaged: only a part of its pixels can be decoded ({said}); {_AGAIN}")


def decode_checked(data: bytes) -> np.ndarray:
    """Decode an image with OpenCV, its channels and bits as they are, in OpenCV's order.

    Raises:
        DataError: it cannot be decoded, or not all of it.
    """
    try:
        # The others have checksums or decoders that fail, and can be decoded by several threads at a time.
        heard = complaints_refused() if data.startswith(_COMPLAINED_OF) else contextlib.nullcontext()
        with heard:
            image = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_UNCHANGED)
    except cv2.error as error:  # for instance above OpenCV's limit of 2**30 pixels
        raise DataError(f"OpenCV refuses it: {' '.join(str(error).split())}") from error
    if image is None:
        raise DataError(f"is damaged: its pixels cannot be decoded; {_AGAIN}")
    return np.asarray(image)


@contextlib.contextmanager
def _opencv_heard() -> Iterator[None]:
    """Have OpenCV log what libtiff complains of while inside, whatever OPENCV_LOG_LEVEL says."""
    log = _LOG
    before = log.getLogLevel()
    if before >= _HEARD:
        yield
        return
    log.setLogLevel(_HEARD)
    try:
        yield
    finally:
        log.setLogLevel(before)


_JPEG_2000_START = b"\xff\x4f\xff\x51"
_SIZE_LENGTH = 39  # of the SIZ segment up to the bits of the first component
_SIGNED, _BITS = 0x80, 0x7F
_BYTE = 8
_DCT = frozenset({0xC0, 0xC1, 0xC2})  # JPEG of the kinds that OpenCV reads


@dataclass(frozen=True)
class _Stated:
    """What a compressed image says about itself; `signed` is None where its format knows no sign."""

    components: int
    bits: int
    signed: bool | None = None
    mark: int = 0


def check_codestream(frame: bytes, *, samples: int, allocated: int, stored: int, signed: bool) -> None:
    """Refuse a compressed image that contradicts the DICOM header, or whose pixels are damaged as far as can be told.

    Args:
        frame: the compressed image; one that is no JPEG of any kind passes.
        samples: SamplesPerPixel.
        allocated: BitsAllocated.
        stored: BitsStored.
        signed: PixelRepresentation is 1.

    Raises:
        DataError: names what the header and what the image say.
    """
    stated = _stated(frame)
    if stated is None:
        return
    if stated.components != samples:
        raise DataError(
            f"contradicts itself: SamplesPerPixel is {samples}, its compressed image has {stated.components} "
            "components; export it again"
        )
    # Whole bytes are a common way to write fewer bits in formats without a sign; those that are used count then.
    most, name = (allocated, "BitsAllocated") if stated.signed is None else (stored, "BitsStored")
    if stated.bits > most:
        raise DataError(
            f"contradicts itself: {name} is {most}, its compressed image has {stated.bits} bits; export it again"
        )
    if stated.signed is not None and stated.signed != signed:
        kinds = ("unsigned", "signed")
        raise DataError(
            f"contradicts itself: PixelRepresentation says {kinds[signed]}, its image {kinds[stated.signed]} "
            "values; export it again"
        )
    if stated.mark in _DCT and stated.bits == _BYTE:
        # Not every decoder of DICOM says that data are damaged; libjpeg behind OpenCV does.
        read_container(frame)
        decode_checked(frame)


def stated_bits(frame: bytes) -> int:
    """Bits of a value that a compressed image says it has; 0 of one that is no JPEG of any kind."""
    stated = _stated(frame)
    return 0 if stated is None else stated.bits


def check_fragments(pixel_data: bytes, frames: int) -> None:
    """Refuse compressed pixels of more images than NumberOfFrames says: which one is meant nobody could tell.

    Raises:
        DataError: says how many.
    """
    from pydicom.encaps import generate_fragments, parse_basic_offsets
    from pydicom.filebase import DicomBytesIO

    buffer = DicomBytesIO(pixel_data)
    parse_basic_offsets(buffer)
    # An image may be cut into fragments; only its first starts as an image does.
    images = sum(fragment.startswith((JPEG_START, _JPEG_2000_START)) for fragment in generate_fragments(buffer))
    if images > frames:
        raise DataError(f"contradicts itself: NumberOfFrames is {frames}, it holds {images} images; export it again")


def _stated(frame: bytes) -> _Stated | None:
    if frame.startswith(JPEG_START):
        found: Any = jpeg_frame(frame)
        if found is None:
            return None
        mark, segment = found
        return _Stated(segment[5], segment[0], None, mark)
    start = frame.find(_JPEG_2000_START) + len(_JPEG_2000_START)
    size = frame[start : start + _SIZE_LENGTH]
    if start < len(_JPEG_2000_START) or len(size) < _SIZE_LENGTH:
        return None
    # ISO/IEC 15444-1, A.5.1: length, capabilities, eight sizes, then the components and the bits of each, less one.
    (components,) = struct.unpack_from(">H", size, 36)
    return _Stated(components, (size[38] & _BITS) + 1, bool(size[38] & _SIGNED))

"""Whether compressed pixels of a DICOM file are what its header says: decoders follow the one, readers the other.

The headers of JPEG, JPEG-LS and JPEG 2000 have their own number of components, bits and sign. Where they differ from
those of DICOM, the bytes of three colors are taken for those of one gray image, or values wrap around.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass
from typing import Any

from cxr_compress.device.checked_decoding import decode_checked
from cxr_compress.device.containers import JPEG_START, jpeg_frame, read_container
from cxr_compress.errors import DataError

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

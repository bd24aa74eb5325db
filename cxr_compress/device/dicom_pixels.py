"""The stored pixels of a DICOM file, decoded by pydicom and its plug-ins, and refused where they contradict the header.

Decoders fill what is missing with gray and say nothing, and pydicom reads a header that is wrong about its pixels as it
stands. So lengths, fragments, end marks, and what a compressed image says about itself are compared with the header.
"""

from __future__ import annotations

import contextlib
import re
import struct
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TypeVar

import numpy as np

from cxr_compress.device import dicom_header as header
from cxr_compress.device.containers import JPEG_START, complaints_refused, decode_checked, jpeg_frame, read_container
from cxr_compress.errors import DataError

INSTALL_DICOM = "pip install 'cxr-compress[dicom]'"
_AGAIN = "copy or export it again"
_BITS, _BYTE = 16, 8
_END_OF_IMAGE = b"\xff\xd9"
_JPEG_END_REACH = 64  # an end mark may be followed by padding, and by any number of zeros
_EXTENDED = "1.2.840.10008.1.2.4.51"  # JPEG Extended, of 8 or 12 bits
_JPEG_BITS = re.compile(rb"\xff[\xc0\xc1\xc2]..(.)", re.DOTALL)  # a frame header: length, then bits a sample
_JPEG_2000_START = b"\xff\x4f\xff\x51"
_SIZE_LENGTH = 39  # of the SIZ segment up to the bits of the first component
_SIGN_BIT, _BITS_LESS_ONE = 0x80, 0x7F
_DCT = frozenset({0xC0, 0xC1, 0xC2})  # JPEG of the kinds that OpenCV reads

T = TypeVar("T")


def decode_pixels(dataset: Any, about: header.Header, index: int) -> tuple[np.ndarray, tuple[str, ...]]:
    """Decode one frame, and say what is odd about it.

    Integers, (H, W) or (H, W, 3) RGB; bits above `bits_stored` are cleared, the sign is extended.
    """
    from pydicom.pixels.utils import pixel_array

    syntax = guarded(lambda: header.transfer_syntax(dataset), f"has a DICOM header that is damaged; {_AGAIN}")
    name = header.describe(syntax)
    packed = guarded(
        lambda: syntax.is_encapsulated, f"is stored as {name}, which is not known here; export it uncompressed"
    )
    notes: tuple[str, ...] = ()
    if packed:
        frame = _checked_frame(dataset, about, index, syntax)
        failure = _decoding_failure(syntax, name, frame)
        if (bits := _stated_bits(frame)) > about.bits_stored and not about.scale.signed:
            # Else decoders cut off the higher bits, which may be in use.
            dataset.BitsStored, dataset.HighBit = bits, bits - 1
    else:
        notes = _drop_surplus(dataset, about) + _unread_bits(dataset, about, little=dataset.original_encoding[1])
        failure = f"has pixels that cannot be decoded ({name}): they are damaged; {_AGAIN}"
    argued = about.high_bit != about.bits_stored - 1
    if argued and packed:
        raise DataError(header.bits_text(_BITS, about.bits_stored, about.high_bit))
    if argued:
        dataset.BitsStored, dataset.HighBit = _BITS, _BITS - 1
    with complaints_refused() if packed else contextlib.nullcontext():
        pixels = np.asarray(guarded(lambda: pixel_array(dataset, index=index), failure))
    expected = (about.rows, about.columns) if about.samples == 1 else (about.rows, about.columns, about.samples)
    if pixels.shape != expected:
        raise DataError(f"holds pixels of shape {pixels.shape}, its header says {expected}; {_AGAIN}")
    if packed and not about.scale.signed and (highest := int(pixels.max())) >= 2**about.bits_stored:
        raise DataError(
            f"contradicts itself: BitsStored is {about.bits_stored}, its highest value is {highest}; export it again"
        )
    if argued:
        pixels, remarks = _settle_bits(pixels, about)
        notes += remarks
    return pixels, notes


def _decoding_failure(syntax: Any, name: str, frame: bytes) -> str:
    """What to say should the decoders that are there fail: that none knows the kind, that one is missing, or damage.

    Raises:
        DataError: there is no decoder for the syntax.
    """
    from pydicom.pixels.decoders.base import get_decoder

    unknown = f"is compressed as {name}, which pydicom does not decode; export it uncompressed"
    decoder = guarded(lambda: get_decoder(syntax), unknown)
    bits = _JPEG_BITS.search(frame)
    if str(syntax) == _EXTENDED and bits is not None and bits[1] != b"\x08":
        text = (
            f"is compressed as {name} with {bits[1][0]} bits a pixel, which no installed decoder knows; export it "
            "uncompressed or in JPEG Lossless"
        )
        if not decoder.is_available:  # what the extra would bring does not know it either
            raise DataError(text)
        return text
    if not decoder.is_available:
        package = "pylibjpeg-openjpeg" if "2000" in name else "python-gdcm"
        raise DataError(f"is compressed as {name}, whose decoder is missing: {INSTALL_DICOM}, or pip install {package}")
    text = f"has pixels that cannot be decoded ({name}): they are damaged"
    # The extra brings gdcm for every kind of JPEG.
    if "gdcm" in " ".join(decoder.missing_dependencies):
        return f"{text}, or a decoder is missing; {_AGAIN}, or {INSTALL_DICOM}"
    return f"{text}; {_AGAIN}, or uncompressed"


def _drop_surplus(dataset: Any, about: header.Header) -> tuple[str, ...]:
    """Compare the bytes of uncompressed pixels with the header: fewer give half an image, more may be anything.

    Bytes behind the pixels are allowed (PS3.5, section 8.1.1) and not looked at. As many as another image would take
    are no such padding unless they are zero: rows, columns, bits or frames are wrong then.
    """
    surplus = about.pixel_bytes - about.expected_bytes
    size = (
        f"holds {about.pixel_bytes} bytes of pixels, {about.frames} x {about.rows} x {about.columns} of them should "
        f"take {about.expected_bytes}"
    )
    if surplus < 0:
        raise DataError(f"is cut short: {size}; {_AGAIN}")
    if surplus == 0:
        return ()
    even = about.expected_bytes + about.expected_bytes % 2
    rest = dataset.PixelData[about.expected_bytes :]
    dataset.PixelData = dataset.PixelData[:even]
    if surplus == even - about.expected_bytes or not any(rest):
        return ()
    if surplus >= about.expected_bytes // about.frames:
        raise DataError(f"{size}; {_AGAIN}")
    return (f"has bytes behind its pixels ({surplus}, not looked at); make sure that the picture is not sheared",)


def _unread_bits(dataset: Any, about: header.Header, *, little: bool) -> tuple[str, ...]:
    """What to say of unsigned values with bits above those that are declared: overlays of old files, or an error."""
    whole = about.high_bit == about.bits_stored - 1 and about.bits_stored < _BITS
    if not whole or about.scale.signed or about.samples != 1 or dataset.BitsAllocated != _BITS:
        return ()
    raw = np.frombuffer(dataset.PixelData[: about.expected_bytes], "<u2" if little else ">u2")
    share = float((raw >> about.bits_stored != 0).mean())
    if not share:
        return ()
    return (
        f"has higher bits than it declares ({about.bits_stored} declared, {share:.1%} of the pixels have higher ones, "
        "which were not looked at); compare with a viewer",
    )


def _settle_bits(pixels: np.ndarray, about: header.Header) -> tuple[np.ndarray, tuple[str, ...]]:
    """Find the bits of values whose BitsStored and HighBit contradict one another, by looking at the values."""
    stored, high = about.bits_stored, about.high_bit
    highest, spare = int(pixels.max()), high + 1 - stored
    fewer = min(stored, high + 1)
    if highest < 2**fewer:
        what = f"{stored} bits up to bit {high}, highest value {highest}, read as the lowest {fewer}"
        return pixels, (f"contradicts itself about its bits ({what}); compare with a viewer",)
    if spare > 0 and highest < 2 ** (high + 1) and not (pixels & (2**spare - 1)).any():
        return pixels >> spare, ()
    raise DataError(header.bits_text(_BITS, stored, high))


def _checked_frame(dataset: Any, about: header.Header, index: int, syntax: Any) -> bytes:
    """The compressed frame, whose end mark is there: decoders fill what is missing with gray and say nothing."""
    from pydicom.encaps import get_frame

    failure = f"is cut short or damaged: its compressed pixels are incomplete; {_AGAIN}"
    frame: bytes = guarded(lambda: get_frame(dataset.PixelData, index, number_of_frames=about.frames), failure)
    # Every syntax but RLE is of the JPEG family: JPEG, JPEG-LS and JPEG 2000 all end with the same two bytes.
    if "JPEG" in syntax.name and _END_OF_IMAGE not in frame.rstrip(b"\0")[-_JPEG_END_REACH:]:
        raise DataError(failure)
    guarded(lambda: _check_fragments(dataset.PixelData, about.frames), failure)
    _check_codestream(
        frame,
        samples=about.samples,
        allocated=int(dataset.BitsAllocated),
        stored=about.bits_stored,
        signed=dataset.PixelRepresentation == 1,
    )
    return frame


@dataclass(frozen=True)
class _Stated:
    """What a compressed image says about itself; `signed` is None where its format knows no sign."""

    components: int
    bits: int
    signed: bool | None = None
    mark: int = 0


def _check_codestream(frame: bytes, *, samples: int, allocated: int, stored: int, signed: bool) -> None:
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


def _stated_bits(frame: bytes) -> int:
    """Bits of a value that a compressed image says it has; 0 of one that is no JPEG of any kind."""
    stated = _stated(frame)
    return 0 if stated is None else stated.bits


def _check_fragments(pixel_data: bytes, frames: int) -> None:
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
        frame_header: Any = jpeg_frame(frame)
        if frame_header is None:
            return None
        mark, segment = frame_header
        return _Stated(segment[5], segment[0], None, mark)
    start = frame.find(_JPEG_2000_START) + len(_JPEG_2000_START)
    size = frame[start : start + _SIZE_LENGTH]
    if start < len(_JPEG_2000_START) or len(size) < _SIZE_LENGTH:
        return None
    # ISO/IEC 15444-1, A.5.1: length, capabilities, eight sizes, then the components and the bits of each, less one.
    (components,) = struct.unpack_from(">H", size, 36)
    return _Stated(components, (size[38] & _BITS_LESS_ONE) + 1, bool(size[38] & _SIGN_BIT))


def guarded(step: Callable[[], T], failure: str) -> T:
    """Run a step of pydicom's; whatever it raises becomes a DataError that keeps no trace of the original."""
    try:
        return step()
    except (DataError, MemoryError):
        raise
    except Exception:  # pydicom raises anything from AttributeError to struct.error on damaged files
        pass
    # Outside of the except clause: else the original, whose text quotes the header, would hang on as __context__.
    raise DataError(failure)

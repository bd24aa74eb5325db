"""What a DICOM header says about its pixels, checked, as plain data; the patient in it is never looked at."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any

import numpy as np

from cxr_compress.device.grayscale import GrayScale, Lut, Window
from cxr_compress.errors import DataError

# All that is read; pydicom skips the rest of a header without looking into it.
TAGS = (
    "SamplesPerPixel",
    "PhotometricInterpretation",
    "PlanarConfiguration",
    "NumberOfFrames",
    "Rows",
    "Columns",
    "BitsAllocated",
    "BitsStored",
    "HighBit",
    "PixelRepresentation",
    "PixelPaddingValue",
    "PixelPaddingRangeLimit",
    "WindowCenter",
    "WindowWidth",
    "VOILUTFunction",
    "VOILUTSequence",
    "RescaleIntercept",
    "RescaleSlope",
    "ModalityLUTSequence",
    "PresentationLUTShape",
    "RedPaletteColorLookupTableDescriptor",
    "GreenPaletteColorLookupTableDescriptor",
    "BluePaletteColorLookupTableDescriptor",
    "RedPaletteColorLookupTableData",
    "GreenPaletteColorLookupTableData",
    "BluePaletteColorLookupTableData",
    "SegmentedRedPaletteColorLookupTableData",
    "SegmentedGreenPaletteColorLookupTableData",
    "SegmentedBluePaletteColorLookupTableData",
    "ExtendedOffsetTable",
    "ExtendedOffsetTableLengths",
    "FloatPixelData",
    "DoubleFloatPixelData",
    "PixelData",
)
_GRAY = ("MONOCHROME1", "MONOCHROME2")
_ONE_SAMPLE = (*_GRAY, "PALETTE COLOR")
_COLOR = ("RGB", "YBR_FULL", "YBR_FULL_422", "YBR_PARTIAL_420", "YBR_ICT", "YBR_RCT")
_MAX_BITS = 16
_BYTE = 8
_SIGN = 2**15
_RGB = 3
_DESCRIPTOR = 3
_SHAPES = ("IDENTITY", "INVERSE")
_PADDING = ("PixelPaddingValue", "PixelPaddingRangeLimit")


@dataclass(frozen=True)
class Header:
    """Geometry and gray scale of one image.

    Attributes:
        rows: pixels.
        columns: pixels.
        samples: 1 (gray, palette) or 3.
        frames: at least 1.
        photometric: the photometric interpretation.
        bits_stored: meaningful bits of a sample, up to 16.
        expected_bytes: what the pixels take uncompressed.
        pixel_bytes: what they take in the file.
        scale: the gray-scale steps; without meaning for color.
        high_bit: where the highest meaningful bit of a sample lies; `bits_stored` - 1 but in files that contradict
            themselves.
        unsigned_by_default: the file does not say whether its values are signed.
        notes: what was missing or wrong and read all the same.
    """

    rows: int
    columns: int
    samples: int
    frames: int
    photometric: str
    bits_stored: int
    expected_bytes: int
    pixel_bytes: int
    scale: GrayScale
    high_bit: int
    unsigned_by_default: bool = False
    notes: tuple[str, ...] = ()


def read_header(dataset: Any, *, own_window: bool = False) -> Header:
    """Read and check what a dataset of pydicom says about its pixels; fills in what pydicom needs and a file left out.

    Args:
        dataset: of pydicom.
        own_window: the windows and VOI LUTs of the file are not wanted, and need not be sound.

    Raises:
        DataError: no image, or one of a kind no image has; names tags, not what they hold.
    """
    _check_is_image(dataset)
    photometric = _photometric(dataset)
    samples = _integer(dataset, "SamplesPerPixel", 1, default=1 if photometric in _ONE_SAMPLE else _RGB)
    if samples != (1 if photometric in _ONE_SAMPLE else _RGB):
        raise DataError(f"contradicts itself: {photometric} with {samples} samples a pixel; export it again")
    rows, columns = _integer(dataset, "Rows", 1), _integer(dataset, "Columns", 1)
    frames = _integer(dataset, "NumberOfFrames", 0, default=1) or 1
    allocated, stored, high = _bits(dataset)
    unsigned = _is_missing(dataset, "PixelRepresentation")
    _fill(dataset, SamplesPerPixel=samples, BitsStored=stored, HighBit=high, PixelRepresentation=0)
    dataset.NumberOfFrames = frames
    notes: tuple[str, ...] = ()
    if samples == _RGB and _is_missing(dataset, "PlanarConfiguration"):
        dataset.PlanarConfiguration = 0
        notes = ("does not say how its colors are ordered (PlanarConfiguration), read pixel by pixel; look at it",)
    values = rows * columns * frames * samples
    if photometric == "YBR_FULL_422":
        values = values * 2 // 3  # two pixels share their color
    return Header(
        rows=rows,
        columns=columns,
        samples=samples,
        frames=frames,
        photometric=photometric,
        bits_stored=stored,
        expected_bytes=values * allocated // _BYTE,
        pixel_bytes=len(dataset.PixelData),
        scale=_gray_scale(dataset, photometric, stored, views=not own_window)
        if photometric in _GRAY
        else GrayScale(stored),
        high_bit=high,
        unsigned_by_default=unsigned,
        notes=notes,
    )


def transfer_syntax(dataset: Any) -> Any:
    """Give the transfer syntax as pydicom's UID; a file without preamble names none, and pydicom has guessed it."""
    from pydicom.uid import UID, ExplicitVRBigEndian, ExplicitVRLittleEndian, ImplicitVRLittleEndian

    named = dataset.file_meta.get("TransferSyntaxUID")
    if named:
        return UID(named)
    implicit, little = dataset.original_encoding
    guessed = ImplicitVRLittleEndian if implicit else ExplicitVRLittleEndian if little else ExplicitVRBigEndian
    dataset.file_meta.TransferSyntaxUID = guessed
    return guessed


def describe(syntax: Any) -> str:
    """Name a transfer syntax for a message: name and UID; anything that is no UID is not repeated."""
    if not re.fullmatch(r"[0-9.]{1,64}", str(syntax)):
        return "an unknown transfer syntax"
    return f"{syntax.name} ({syntax})" if syntax.name != syntax else f"transfer syntax {syntax}"


def _check_is_image(dataset: Any) -> None:
    """Raise a DataError unless there are integer pixels."""
    if "FloatPixelData" in dataset or "DoubleFloatPixelData" in dataset:
        raise DataError("holds floating-point pixels, expected the integers of an image; export it as an image")
    if "PixelData" not in dataset:
        raise DataError(
            "is cut short: its pixels are missing or incomplete; copy or export it again"
            if "Rows" in dataset
            else "holds no image: it is a report, a directory or another DICOM object, cut short, or no DICOM at all"
        )


def _photometric(dataset: Any) -> str:
    """The photometric interpretation; one that is not known is not repeated, it could be anything."""
    value = _term(dataset, "PhotometricInterpretation")
    if value not in (*_ONE_SAMPLE, *_COLOR):
        raise DataError(
            f"has a PhotometricInterpretation that is not read, expected one of {', '.join((*_ONE_SAMPLE, *_COLOR))}"
        )
    dataset.PhotometricInterpretation = value  # as pydicom expects it
    return value


def _term(dataset: Any, name: str, default: str = "") -> str:
    """A word of the standard, however a file writes it."""
    return str(dataset.get(name) or "").strip(" \0").upper() or default


def _bits(dataset: Any) -> tuple[int, int, int]:
    """(BitsAllocated, BitsStored, HighBit), checked; a contradiction of the last two is left to the pixels."""
    allocated = _integer(dataset, "BitsAllocated", 1)
    stored = _integer(dataset, "BitsStored", 1, default=allocated)
    high = _integer(dataset, "HighBit", 0, default=stored - 1)
    # Values that fill 16 bits can tell where their own bits lie; signed ones cannot.
    arguable = allocated == _MAX_BITS and high < allocated and dataset.get("PixelRepresentation") in (0, None)
    if allocated not in (_BYTE, _MAX_BITS) or stored > allocated or (high != stored - 1 and not arguable):
        raise DataError(bits_text(allocated, stored, high))
    return allocated, stored, high


def bits_text(allocated: int, stored: int, high: int) -> str:
    """What is said of bits that cannot be read."""
    return (
        f"stores {stored} of {allocated} bits a sample up to bit {high}, expected at most 16 in 8 or 16 with the "
        "highest one below them; export it as a plain 8- or 16-bit image"
    )


def _is_missing(dataset: Any, name: str) -> bool:
    return dataset.get(name) in (None, "")


def _fill(dataset: Any, **values: int) -> None:
    """Give the elements that are missing or empty a value: pydicom decodes no pixels without them."""
    for name, value in values.items():
        if _is_missing(dataset, name):
            setattr(dataset, name, value)


def _gray_scale(dataset: Any, photometric: str, stored: int, *, views: bool) -> GrayScale:
    signed = _integer(dataset, "PixelRepresentation", 0, default=0) == 1
    sequence = dataset.get("ModalityLUTSequence")
    modality = _lut(sequence[0], signed=signed) if sequence else None
    slope, intercept = (_numbers(dataset, name) for name in ("RescaleSlope", "RescaleIntercept"))
    if slope and slope[0] == 0:
        raise DataError("has a RescaleSlope of 0, which makes every pixel the same; export it again")
    if modality is not None and (slope[:1] not in ([], [1.0]) or intercept[:1] not in ([], [0.0])):
        raise DataError("has a modality LUT and a RescaleSlope, which exclude one another; export it again")
    shape = _term(dataset, "PresentationLUTShape", "IDENTITY")
    if shape not in _SHAPES:
        raise DataError(
            f"has a PresentationLUTShape that is not read, expected {' or '.join(_SHAPES)}; export it again"
        )
    return GrayScale(
        bits=stored,
        signed=signed,
        slope=slope[0] if slope else 1.0,
        intercept=intercept[0] if intercept else 0.0,
        modality=modality,
        # What the VOI step looks up is signed where the rescale can have made it negative.
        views=_views(dataset, signed=modality is None and (signed or bool(intercept and intercept[0] < 0)))
        if views
        else (),
        inverted=photometric == "MONOCHROME1" or shape == "INVERSE",
        padding=_padding(dataset, stored, signed=signed),
    )


def _padding(dataset: Any, stored: int, *, signed: bool) -> tuple[int, int] | None:
    """The stored values that are no part of the image, first and last; None where there are none.

    Source: DICOM PS3.3 C.7.5.1.1.2. Values outside of what the stored bits can hold match no pixel.
    """
    ends = [_stored_value(dataset.get(name), stored, signed=signed) for name in _PADDING]
    if ends[0] is None:
        return None
    return (ends[0], ends[0]) if ends[1] is None else (min(ends[0], ends[1]), max(ends[0], ends[1]))


def _stored_value(value: Any, stored: int, *, signed: bool) -> int | None:
    """A stored value of the header, which pydicom gives as bytes or as an unsigned number where a file is vague."""
    if isinstance(value, bytes):
        value = int.from_bytes(value[:2], "little")
    if isinstance(value, bool) or not isinstance(value, int):
        return None
    if not signed or value < 0:
        return int(value)
    # -2000 written as an unsigned number of all 16 bits, or of those that are stored.
    full = 2 * _SIGN if value >= _SIGN else 2**stored
    return int(value) - full if value >= full // 2 else int(value)


def _views(dataset: Any, *, signed: bool) -> tuple[Window | Lut, ...]:
    """VOI LUTs, then windows: where a file has both, the standard lets a reader choose, and LUTs say more."""
    luts = [_lut(item, signed=signed) for item in dataset.get("VOILUTSequence") or ()]
    centers, widths = _numbers(dataset, "WindowCenter"), _numbers(dataset, "WindowWidth")
    if len(centers) != len(widths):
        raise DataError(f"has {len(centers)} WindowCenter but {len(widths)} WindowWidth; choose --window=CENTER,WIDTH")
    function = _term(dataset, "VOILUTFunction", "LINEAR")
    return (*luts, *(Window(center, width, function) for center, width in zip(centers, widths, strict=True)))


def _lut(item: Any, *, signed: bool) -> Lut:
    """A look-up table of a sequence item.

    Source: DICOM PS3.3 C.11.1.1 and C.11.2.1.1: number of entries (0 stands for 65536), first value mapped, bits.
    """
    descriptor = [int(value) for value in item.LUTDescriptor]
    if len(descriptor) != _DESCRIPTOR:
        raise DataError(f"has a LUTDescriptor of {len(descriptor)} numbers, expected {_DESCRIPTOR}; export it again")
    count, first, bits = descriptor[0] % 65536 or 65536, descriptor[1], descriptor[2]
    if signed and first >= _SIGN:
        first -= 2 * _SIGN
    entries = _entries(item.LUTData, count)
    if len(entries) != count or not 1 <= bits <= _MAX_BITS:
        raise DataError(f"has a LUT of {len(entries)} entries of {bits} bits, expected {count} of at most 16")
    return Lut(first, bits, entries)


def _entries(data: Any, count: int) -> np.ndarray:
    """LUT data as integers: a list, or bytes of 8 or 16 bits each."""
    if isinstance(data, bytes):
        if len(data) < 2 * count:  # bytes, padded to an even number
            return np.frombuffer(data[:-1] if len(data) == count + count % 2 > count else data, np.uint8).astype(
                np.int64
            )
        return np.frombuffer(data[: len(data) // 2 * 2], "<u2").astype(np.int64)
    return np.atleast_1d(np.asarray(data, np.int64)) & 0xFFFF


def _numbers(dataset: Any, name: str) -> list[float]:
    """The numbers of an element; empty where it is missing or empty."""
    value = dataset.get(name)
    if value is None or value == "":
        return []
    many = [value] if isinstance(value, (int, float, str)) or not hasattr(value, "__iter__") else list(value)
    try:
        numbers = [float(one) for one in many]
    except (TypeError, ValueError):
        numbers = [float("nan")]
    if not np.isfinite(numbers).all():
        raise DataError(f"has a {name} that is no number; export it again")
    return numbers


def _integer(dataset: Any, name: str, least: int, default: int | None = None) -> int:
    """A whole number of the header; any other value is not repeated in the error, because it could be anything."""
    value = dataset.get(name)
    if value in (None, "") and default is not None:
        return default
    if isinstance(value, bool) or not isinstance(value, int) or value < least:
        raise DataError(f"has no usable {name}, expected a whole number from {least} on; export it again")
    return int(value)

"""Decode DICOM files into the 8-bit picture a reader would see; needs the extra `dicom`, which loads on first use.

The chain of the standard, in its order: decode, modality LUT or rescale, VOI LUT or window, inverted once where low
values are bright, 8 bits. Overlays and burned-in text are left as they are.

A header names a patient. Only the tags listed below are read, pydicom is kept silent (dicom_silence.py), and what it
says in an exception never gets into one of ours, because it quotes values: errors here name tags, never what they hold,
but for transfer syntax, photometric interpretation and geometry.
"""

from __future__ import annotations

import contextlib
import importlib
import io
import re
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, TypeVar

import numpy as np

from cxr_compress.device import dicom_header as header
from cxr_compress.device.checked_decoding import check_codestream, check_fragments, complaints_refused, stated_bits
from cxr_compress.device.dicom_header import silenced
from cxr_compress.device.grayscale import (
    GrayScale,
    Lut,
    Window,
    gray_table,
    narrow_span,
    stored_range,
    too_dark,
    used_depth,
    used_range,
)
from cxr_compress.errors import DataError

_PALETTE = "PALETTE COLOR"
_INSTALL = "pip install 'cxr-compress[dicom]'"
_AGAIN = "copy or export it again"
_WINDOW_PARTS = 2
_MAX_PIXELS = 2**28
_BITS, _BYTE = 16, 8
_END_OF_IMAGE = b"\xff\xd9"
_JPEG_END_REACH = 64  # an end mark may be followed by padding, and by any number of zeros
_PIXEL_DATA = 0x7FE00010
_EXTENDED = "1.2.840.10008.1.2.4.51"  # JPEG Extended, of 8 or 12 bits
_JPEG_BITS = re.compile(rb"\xff[\xc0\xc1\xc2]..(.)", re.DOTALL)  # a frame header: length, then bits a sample

T = TypeVar("T")


@dataclass(frozen=True, eq=False)
class Picture:
    """A decoded image.

    Attributes:
        pixels: uint8 or uint16, (H, W) for gray, (H, W, 3) RGB.
        notes: what a person should know about how it was read; quotes nothing personal.
    """

    pixels: np.ndarray
    notes: tuple[str, ...] = ()


@dataclass(frozen=True)
class DicomView:
    """What to look at in a DICOM file that offers a choice.

    Attributes:
        frame: of a file with several, counted from 1; None refuses such a file.
        window: which of the file's VOI LUTs and windows (in this order, counted from 1), or (center, width) in
            modality values, applied as LINEAR; None takes the first, or the whole range where the file has none.
        bit_depth: meaningful bits of values that are stored in 16, in a DICOM file without window or in any other
            file; None decides by the highest value, and says so where it is not what the file declares.
    """

    frame: int | None = None
    window: int | tuple[float, float] | None = None
    bit_depth: int | None = None

    def __post_init__(self) -> None:
        if self.bit_depth is not None and not 8 <= self.bit_depth <= 16:  # noqa: PLR2004 - of what 16 bits hold
            raise DataError(f"expected a bit_depth from 8 to 16, got {self.bit_depth}")

    @classmethod
    def parse(cls, frame: int | None, window: str | None, bit_depth: int | None = None) -> DicomView:
        """Build a view from what a command line gives: `window` is "2" or "CENTER,WIDTH".

        Raises:
            DataError: neither, a number below 1, a window nothing can be seen through, or a bit depth not in 8 to 16.
        """
        if frame is not None and frame < 1:
            raise DataError(f"expected a frame number from 1 on, got {frame}")
        if window is None:
            return cls(frame, bit_depth=bit_depth)
        try:
            numbers = [float(part) for part in window.split(",")]
        except ValueError:
            numbers = []
        if len(numbers) == _WINDOW_PARTS:
            center, width = numbers
            Window(center, width)  # refuses what nothing can be seen through
            return cls(frame, (center, width), bit_depth)
        if len(numbers) != 1 or not numbers[0].is_integer() or numbers[0] < 1:
            raise DataError(f"expected a window as its number in the file (from 1 on) or CENTER,WIDTH, got {window!r}")
        return cls(frame, int(numbers[0]), bit_depth)


FIRST_VIEW = DicomView()


def decode_dicom(data: bytes, view: DicomView = FIRST_VIEW) -> np.ndarray:
    """The pixels of `read_dicom`, without what is to be said about them."""
    return read_dicom(data, view).pixels


def read_dicom(data: bytes, view: DicomView = FIRST_VIEW) -> Picture:
    """Read the content of a DICOM file, with or without preamble, as the 8-bit picture a reader would see.

    Args:
        data: the file.
        view: which frame and window.

    Returns:
        uint8, (H, W) for gray, (H, W, 3) RGB for color and palette images.

    Raises:
        DataError: pydicom or a decoder is missing (names the transfer syntax and what to install), no image, cut short,
            damaged, several frames and none chosen, or a kind that no radiograph has. Quotes nothing personal.
    """
    try:
        # With its decoders: their loggers have to be there before they can be silenced.
        importlib.import_module("pydicom.pixels")
    except ImportError as error:
        raise DataError(f"is a DICOM file, which needs pydicom: {_INSTALL}") from error
    with silenced():
        dataset = _guarded(lambda: _read(data), f"is no DICOM file, or its header is damaged; {_AGAIN}")
        own = isinstance(view.window, tuple)  # what the file offers is not looked at then, and may be unusable
        about = _guarded(
            lambda: header.read_header(dataset, own_window=own), f"has a DICOM header that is damaged; {_AGAIN}"
        )
        _check_size(about)
        index = _frame_index(about, view)
        pixels, notes = _decode_pixels(dataset, about, index)
        if about.photometric == _PALETTE:
            failure = f"has a palette that is damaged; {_AGAIN}"
            resolved = _guarded(lambda: _resolve_palette(dataset, pixels, view), failure)
            return Picture(resolved.pixels, about.notes + notes + resolved.notes)
    color = pixels.ndim != 2  # noqa: PLR2004
    shown = _color_to_8_bits(pixels, about.bits_stored, view) if color else _display(pixels, about, view)
    return Picture(shown.pixels, about.notes + notes + shown.notes)


def _read(data: bytes) -> Any:
    """Parse the header's listed tags and the pixels as they are stored."""
    from pydicom.filereader import read_partial
    from pydicom.tag import Tag

    tags: list[Any] = [Tag(name) for name in header.TAGS]

    def read(last: int) -> Any:
        # Nothing behind the pixels is looked at: some writers leave bytes there that are no DICOM.
        return read_partial(io.BytesIO(data), lambda tag, _, __: tag > last, force=True, specific_tags=tags)

    dataset = read(_PIXEL_DATA)
    # Where compressed pixels end early pydicom forgets the header too, and with it that there should be an image.
    return dataset if "Rows" in dataset else read(_PIXEL_DATA - 1)


def _guarded(step: Callable[[], T], failure: str) -> T:
    """Run a step of pydicom's; whatever it raises becomes a DataError that keeps no trace of the original."""
    try:
        return step()
    except (DataError, MemoryError):
        raise
    except Exception:  # pydicom raises anything from AttributeError to struct.error on damaged files
        pass
    # Outside of the except clause: else the original, whose text quotes the header, would hang on as __context__.
    raise DataError(failure)


def _frame_index(about: header.Header, view: DicomView) -> int:
    """Which frame to decode, counted from 0."""
    if about.frames == 1 and view.frame is None:
        return 0
    if view.frame is None:
        raise DataError(f"holds {about.frames} frames, expected one image; choose one with --frame=1 to {about.frames}")
    if view.frame > about.frames:
        raise DataError(f"holds {about.frames} frames, frame {view.frame} is none of them")
    return view.frame - 1


def _check_size(about: header.Header) -> None:
    """Refuse sizes no image has before memory is asked for: a header of 20 bytes may claim gigabytes."""
    if about.rows * about.columns * about.samples > _MAX_PIXELS:
        raise DataError(f"claims {about.rows} x {about.columns} pixels, at most {_MAX_PIXELS} are read")


def _decode_pixels(dataset: Any, about: header.Header, index: int) -> tuple[np.ndarray, tuple[str, ...]]:
    """Decode one frame, and say what is odd about it.

    Integers, (H, W) or (H, W, 3) RGB; bits above `bits_stored` are cleared, the sign is extended.
    """
    from pydicom.pixels.utils import pixel_array

    syntax = _guarded(lambda: header.transfer_syntax(dataset), f"has a DICOM header that is damaged; {_AGAIN}")
    name = header.describe(syntax)
    packed = _guarded(
        lambda: syntax.is_encapsulated, f"is stored as {name}, which is not known here; export it uncompressed"
    )
    notes: tuple[str, ...] = ()
    if packed:
        frame = _check_fragments(dataset, about, index, syntax)
        failure = _decoding_failure(syntax, name, frame)
        if (bits := stated_bits(frame)) > about.bits_stored and not about.scale.signed:
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
        pixels = np.asarray(_guarded(lambda: pixel_array(dataset, index=index), failure))
    expected = (about.rows, about.columns) if about.samples == 1 else (about.rows, about.columns, about.samples)
    if pixels.shape != expected:
        raise DataError(f"holds pixels of shape {pixels.shape}, its header says {expected}; {_AGAIN}")
    if packed and not about.scale.signed and (highest := int(pixels.max())) >= 2**about.bits_stored:
        raise DataError(
            f"contradicts itself: BitsStored is {about.bits_stored}, its highest value is {highest}; export it again"
        )
    if argued:
        pixels, said = _settle_bits(pixels, about)
        notes += said
    return pixels, notes


def _decoding_failure(syntax: Any, name: str, frame: bytes) -> str:
    """What to say should the decoders that are there fail: that none knows the kind, that one is missing, or damage.

    Raises:
        DataError: there is no decoder for the syntax.
    """
    from pydicom.pixels.decoders.base import get_decoder

    unknown = f"is compressed as {name}, which pydicom does not decode; export it uncompressed"
    decoder = _guarded(lambda: get_decoder(syntax), unknown)
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
        raise DataError(f"is compressed as {name}, whose decoder is missing: {_INSTALL}, or pip install {package}")
    text = f"has pixels that cannot be decoded ({name}): they are damaged"
    # The extra brings gdcm for every kind of JPEG.
    if "gdcm" in " ".join(decoder.missing_dependencies):
        return f"{text}, or a decoder is missing; {_AGAIN}, or {_INSTALL}"
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


def _check_fragments(dataset: Any, about: header.Header, index: int, syntax: Any) -> bytes:
    """The compressed frame, whose end mark is there: decoders fill what is missing with gray and say nothing."""
    from pydicom.encaps import get_frame

    failure = f"is cut short or damaged: its compressed pixels are incomplete; {_AGAIN}"
    frame: bytes = _guarded(lambda: get_frame(dataset.PixelData, index, number_of_frames=about.frames), failure)
    # Every syntax but RLE is of the JPEG family: JPEG, JPEG-LS and JPEG 2000 all end with the same two bytes.
    if "JPEG" in syntax.name and _END_OF_IMAGE not in frame.rstrip(b"\0")[-_JPEG_END_REACH:]:
        raise DataError(failure)
    _guarded(lambda: check_fragments(dataset.PixelData, about.frames), failure)
    check_codestream(
        frame,
        samples=about.samples,
        allocated=int(dataset.BitsAllocated),
        stored=about.bits_stored,
        signed=dataset.PixelRepresentation == 1,
    )
    return frame


def _display(pixels: np.ndarray, about: header.Header, view: DicomView) -> Picture:
    """From stored values (H, W) to what a reader sees, uint8."""
    scale, notes = about.scale, []
    if about.high_bit < about.bits_stored - 1:
        scale = replace(scale, bits=about.high_bit + 1)
    values = pixels.astype(np.int64)
    low, high = stored_range(scale)
    if about.unsigned_by_default and scale.bits > 1 and int(values.max()) > high // 2:
        notes.append("does not say whether its values are signed (PixelRepresentation), read as unsigned; look at it")
    chosen = _chosen(scale.views, view.window)
    if isinstance(chosen, Lut):
        chosen, said = chosen.fitted("VOI LUT")
        notes += said
    used = span = None
    if scale.modality is not None:
        modality, said = scale.modality.fitted("modality LUT")
        scale = replace(scale, modality=modality)
        notes += said
        if chosen is None and (span := narrow_span(modality)) is not None:
            notes.append(
                f"has a modality LUT of a small range ({span[0]:g} to {span[1]:g}, shown from black to white); compare "
                "with a viewer"
            )
    elif chosen is None:
        used, said = _used(values, scale, view.bit_depth)
        notes += said
    table = gray_table(scale, chosen, used, span)
    # Clipping never acts on a sound file; it keeps a decoder's slip from reaching outside of the table.
    return Picture(np.asarray(table[np.clip(values, low, high) - low]), tuple(notes))


def _used(values: np.ndarray, scale: GrayScale, bit_depth: int | None) -> tuple[tuple[int, int], tuple[str, ...]]:
    """The range of stored values to show of a file without a window, told by the values that are no padding."""
    inside = values if scale.padding is None else values[(values < scale.padding[0]) | (values > scale.padding[1])]
    if not inside.size:
        return stored_range(scale), ()
    low, high = int(inside.min()), int(inside.max())
    used, bits = used_range(scale, low, high, bit_depth)
    if bit_depth is not None:
        return used, ()
    if bits == scale.bits:
        return used, too_dark(high) if bits == _BITS and not scale.signed else ()
    return used, (
        f"uses {bits} of the {scale.bits} bits it declares (values from {low} to {high}) and was read so; "
        f"--bit_depth={scale.bits} shows it as declared, --window=CENTER,WIDTH as you choose",
    )


def _chosen(views: tuple[Window | Lut, ...], wanted: int | tuple[float, float] | None) -> Window | Lut | None:
    """The window or VOI LUT to apply, or None where the file has none and none is asked for."""
    if isinstance(wanted, tuple):
        return Window(*wanted)
    if wanted is None:
        return views[0] if views else None
    if wanted > len(views):
        raise DataError(f"offers {len(views)} windows, --window={wanted} is none of them; give CENTER,WIDTH instead")
    return views[wanted - 1]


def _resolve_palette(dataset: Any, pixels: np.ndarray, view: DicomView) -> Picture:
    """Replace palette indices (H, W) by their colors, uint8 (H, W, 3)."""
    from pydicom.pixels.processing import apply_color_lut

    if not dataset.original_encoding[1]:
        raise DataError("has a palette in the retired big-endian encoding; export it again")
    colored = np.asarray(apply_color_lut(pixels, dataset))
    return _color_to_8_bits(colored, colored.dtype.itemsize * 8, view)


def _color_to_8_bits(pixels: np.ndarray, bits: int, view: DicomView) -> Picture:
    """Scale RGB of `bits` bits, or of those that it uses, to uint8, rounded."""
    highest = int(pixels.max())
    depth = used_depth(highest, bits)
    notes: tuple[str, ...] = ()
    if bits > _BYTE and view.bit_depth is not None:
        depth = view.bit_depth
    elif depth != bits:
        notes = (
            f"uses {depth} of the {bits} bits it declares (values up to {highest}) and was read so; --bit_depth={bits} "
            "shows it as declared",
        )
    top = 2**depth - 1
    return Picture(((np.clip(pixels.astype(np.int64), 0, top) * 255 + top // 2) // top).astype(np.uint8), notes)

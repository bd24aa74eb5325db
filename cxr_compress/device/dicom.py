"""Decode DICOM files into the 8-bit picture a reader would see; needs the extra `dicom`, which loads on first use.

The chain of the standard, in its order: decode, modality LUT or rescale, VOI LUT or window, inverted once where low
values are bright, 8 bits. Overlays and burned-in text are left as they are.

A header names a patient. Only the tags of `dicom_header.TAGS` are read, pydicom is kept silent, and what it
says in an exception never gets into one of ours, because it quotes values: errors here name tags, never what they hold,
but for transfer syntax, photometric interpretation and geometry.
"""

from __future__ import annotations

import contextlib
import importlib
import io
import logging
import threading
import warnings
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from cxr_compress.device import dicom_header as header
from cxr_compress.device.dicom_pixels import INSTALL_DICOM, decode_pixels, guarded
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
_AGAIN = "copy or export it again"
_WINDOW_PARTS = 2
_MAX_PIXELS = 2**28
_BITS, _BYTE = 16, 8
_PIXEL_DATA = 0x7FE00010


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
        raise DataError(f"is a DICOM file, which needs pydicom: {INSTALL_DICOM}") from error
    with silenced():
        dataset = guarded(lambda: _read(data), f"is no DICOM file, or its header is damaged; {_AGAIN}")
        own = isinstance(view.window, tuple)  # what the file offers is not looked at then, and may be unusable
        about = guarded(
            lambda: header.read_header(dataset, own_window=own), f"has a DICOM header that is damaged; {_AGAIN}"
        )
        _check_size(about)
        index = _frame_index(about, view)
        pixels, notes = decode_pixels(dataset, about, index)
        if about.photometric == _PALETTE:
            failure = f"has a palette that is damaged; {_AGAIN}"
            resolved = guarded(lambda: _resolve_palette(dataset, pixels, view), failure)
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
        chosen, remarks = chosen.fitted("VOI LUT")
        notes += remarks
    used = span = None
    if scale.modality is not None:
        modality, remarks = scale.modality.fitted("modality LUT")
        scale = replace(scale, modality=modality)
        notes += remarks
        if chosen is None and (span := narrow_span(modality)) is not None:
            notes.append(
                f"has a modality LUT of a small range ({span[0]:g} to {span[1]:g}, shown from black to white); compare "
                "with a viewer"
            )
    elif chosen is None:
        used, remarks = _used(values, scale, view.bit_depth)
        notes += remarks
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


# The reader and the decoders it calls; the last ones are ours, where a warning may be laid at the caller's door.
_OURS = tuple(f"cxr_compress.device.{name}" for name in ("dicom", "dicom_header", "dicom_pixels"))
_SPEAKERS = ("pydicom", "pylibjpeg", "openjpeg", "rle", "gdcm", *_OURS)

_reading = threading.local()
_lock = threading.Lock()
_readers = 0
_undo = contextlib.ExitStack()


class _DropWhileReading(logging.Filter):
    """Drops what a thread logs while it reads an image; what pydicom logs for anybody else passes."""

    def filter(self, record: logging.LogRecord) -> bool:
        return not getattr(_reading, "active", False)


_DROP = _DropWhileReading()


@contextlib.contextmanager
def silenced() -> Iterator[None]:
    """While inside, pydicom and its decoders neither warn nor log, at any level, pydicom's own debug mode included.

    Log lines are dropped for the calling thread alone; warnings, which Python filters per process, for all threads, and
    only those that come from the modules named above. May be entered by several threads at a time.
    """
    _filter_loggers()
    _enter()
    before = getattr(_reading, "active", False)
    _reading.active = True
    try:
        yield
    finally:
        _reading.active = before
        _leave()


def _filter_loggers() -> None:
    """Put the filter on every logger of the speakers; again each time, because modules make loggers when they load."""
    for name in list(logging.root.manager.loggerDict):
        if name.partition(".")[0] in _SPEAKERS:
            logging.getLogger(name).addFilter(_DROP)  # a second time has no effect


def _enter() -> None:
    """The first reader changes the warning filters; they are one list for all threads."""
    global _readers  # noqa: PLW0603
    with _lock:
        if _readers == 0:
            _undo.enter_context(warnings.catch_warnings())
            for speaker in _SPEAKERS:
                warnings.filterwarnings("ignore", module=rf"{speaker}($|\.)".replace(".device.", r"\.device\."))
        _readers += 1


def _leave() -> None:
    """The last reader puts the warning filters back."""
    global _readers  # noqa: PLW0603
    with _lock:
        _readers -= 1
        if _readers == 0:
            _undo.close()

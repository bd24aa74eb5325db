"""Decode DICOM files into the 8-bit picture a reader would see; needs the extra `dicom`, which loads on first use.

The chain of the standard, in its order: decode, modality LUT or rescale, VOI LUT or window, inverted once where low
values are bright, 8 bits. Overlays and burned-in text are left as they are.

A header names a patient. Only the tags listed below are read, pydicom is kept silent (dicom_silence.py), and what it
says in an exception never gets into one of ours, because it quotes values: errors here name tags, never what they hold,
but for transfer syntax, photometric interpretation and geometry.
"""

from __future__ import annotations

import importlib
import io
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TypeVar

import numpy as np

from cxr_compress.device import dicom_header as header
from cxr_compress.device.dicom_silence import silenced
from cxr_compress.device.grayscale import Lut, Window, gray_table, stored_range
from cxr_compress.errors import DataError

_PALETTE = "PALETTE COLOR"
_INSTALL = "pip install 'cxr-compress[dicom]'"
_AGAIN = "copy or export it again"
_WINDOW_PARTS = 2
_MAX_PIXELS = 2**28
_END_OF_IMAGE = b"\xff\xd9"
_JPEG_END_REACH = 64  # an end mark may be followed by padding

T = TypeVar("T")


@dataclass(frozen=True)
class DicomView:
    """What to look at in a DICOM file that offers a choice.

    Attributes:
        frame: of a file with several, counted from 1; None refuses such a file.
        window: which of the file's VOI LUTs and windows (in this order, counted from 1), or (center, width) in
            modality values, applied as LINEAR; None takes the first, or the whole range where the file has none.
    """

    frame: int | None = None
    window: int | tuple[float, float] | None = None

    @classmethod
    def parse(cls, frame: int | None, window: str | None) -> DicomView:
        """Build a view from what a command line gives: `window` is "2" or "CENTER,WIDTH".

        Raises:
            DataError: neither, a number below 1, or a window nothing can be seen through.
        """
        if frame is not None and frame < 1:
            raise DataError(f"expected a frame number from 1 on, got {frame}")
        if window is None:
            return cls(frame)
        try:
            numbers = [float(part) for part in window.split(",")]
        except ValueError:
            numbers = []
        if len(numbers) == _WINDOW_PARTS:
            center, width = numbers
            Window(center, width)  # refuses what nothing can be seen through
            return cls(frame, (center, width))
        if len(numbers) != 1 or not numbers[0].is_integer() or numbers[0] < 1:
            raise DataError(f"expected a window as its number in the file (from 1 on) or CENTER,WIDTH, got {window!r}")
        return cls(frame, int(numbers[0]))


FIRST_VIEW = DicomView()


def decode_dicom(data: bytes, view: DicomView = FIRST_VIEW) -> np.ndarray:
    """Read the content of a DICOM file, with or without preamble, as the 8-bit picture a reader would see.

    Args:
        data: the file.
        view: which frame and window.

    Returns:
        uint8, (H, W) for gray, (H, W, 3) RGB for colour and palette images.

    Raises:
        DataError: pydicom or a decoder is missing (names the transfer syntax and what to install), no image, cut short,
            damaged, several frames and none chosen, or a kind that no film has. Quotes nothing personal.
    """
    try:
        # With its decoders: their loggers have to be there before they can be silenced.
        importlib.import_module("pydicom.pixels")
    except ImportError as error:
        raise DataError(f"is a DICOM file, which needs pydicom: {_INSTALL}") from error
    with silenced():
        dataset = _guarded(lambda: _read(data), f"is no DICOM file, or its header is damaged; {_AGAIN}")
        about = _guarded(lambda: header.read_header(dataset), f"has a DICOM header that is damaged; {_AGAIN}")
        _check_size(about)
        index = _frame_index(about, view)
        pixels = _decode_pixels(dataset, about, index)
        if about.photometric == _PALETTE:
            return _guarded(lambda: _resolve_palette(dataset, pixels), f"has a palette that is damaged; {_AGAIN}")
    if pixels.ndim == 2:  # noqa: PLR2004
        return _display(pixels, about, view)
    return _colour_to_8_bits(pixels, about.bits_stored)


def _read(data: bytes) -> Any:
    """Parse the header's listed tags and the pixels as they are stored."""
    import pydicom

    def read(*, without_pixels: bool) -> Any:
        tags = list(header.TAGS)
        return pydicom.dcmread(io.BytesIO(data), force=True, specific_tags=tags, stop_before_pixels=without_pixels)

    dataset = read(without_pixels=False)
    # Where compressed pixels end early pydicom forgets the header too, and with it that there should be an image.
    return dataset if "Rows" in dataset else read(without_pixels=True)


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
        raise DataError(f"holds {about.frames} frames, expected one film; choose one with --frame=1 to {about.frames}")
    if view.frame > about.frames:
        raise DataError(f"holds {about.frames} frames, frame {view.frame} is none of them")
    return view.frame - 1


def _check_size(about: header.Header) -> None:
    """Refuse sizes no film has before memory is asked for: a header of 20 bytes may claim gigabytes."""
    if about.rows * about.columns * about.samples > _MAX_PIXELS:
        raise DataError(f"claims {about.rows} x {about.columns} pixels, at most {_MAX_PIXELS} are read")


def _decode_pixels(dataset: Any, about: header.Header, index: int) -> np.ndarray:
    """Decode one frame: integers (H, W) or (H, W, 3) RGB, bits above `bits_stored` cleared, sign extended."""
    from pydicom.pixels.utils import pixel_array

    syntax = _guarded(lambda: header.transfer_syntax(dataset), f"has a DICOM header that is damaged; {_AGAIN}")
    name = header.describe(syntax)
    if _guarded(
        lambda: syntax.is_encapsulated, f"is stored as {name}, which is not known here; export it uncompressed"
    ):
        _require_decoder(syntax, name)
        _check_fragments(dataset, about, index, syntax)
    else:
        _check_length(about)
    failure = (
        f"has pixels that cannot be decoded ({name}): they are damaged, or the installed decoders do not know this "
        f"kind; {_AGAIN}, or {_INSTALL}"
    )
    pixels = np.asarray(_guarded(lambda: pixel_array(dataset, index=index), failure))
    expected = (about.rows, about.columns) if about.samples == 1 else (about.rows, about.columns, about.samples)
    if pixels.shape != expected:
        raise DataError(f"holds pixels of shape {pixels.shape}, its header says {expected}; {_AGAIN}")
    return pixels


def _require_decoder(syntax: Any, name: str) -> None:
    """Raise a DataError that says what to install unless a decoder for the syntax is there."""
    from pydicom.pixels.decoders.base import get_decoder

    unknown = f"is compressed as {name}, which pydicom does not decode; export it uncompressed"
    if not _guarded(lambda: get_decoder(syntax), unknown).is_available:
        package = "pylibjpeg-openjpeg" if "2000" in name else "python-gdcm"
        raise DataError(f"is compressed as {name}, whose decoder is missing: {_INSTALL}, or pip install {package}")


def _check_length(about: header.Header) -> None:
    """Compare the bytes of uncompressed pixels with the header: more or fewer would give a sheared or half film."""
    if about.pixel_bytes - about.expected_bytes not in (0, about.expected_bytes % 2):
        what = "is cut short: " if about.pixel_bytes < about.expected_bytes else ""
        raise DataError(
            f"{what}holds {about.pixel_bytes} bytes of pixels, {about.frames} x {about.rows} x {about.columns} of them "
            f"should take {about.expected_bytes}; {_AGAIN}"
        )


def _check_fragments(dataset: Any, about: header.Header, index: int, syntax: Any) -> None:
    """Find the end mark of a JPEG: decoders fill what is missing with gray and say nothing."""
    from pydicom.encaps import get_frame

    failure = f"is cut short or damaged: its compressed pixels are incomplete; {_AGAIN}"
    frame = _guarded(lambda: get_frame(dataset.PixelData, index, number_of_frames=about.frames), failure)
    # Every syntax but RLE is of the JPEG family: JPEG, JPEG-LS and JPEG 2000 all end with the same two bytes.
    if "JPEG" in syntax.name and _END_OF_IMAGE not in frame[-_JPEG_END_REACH:]:
        raise DataError(failure)


def _display(pixels: np.ndarray, about: header.Header, view: DicomView) -> np.ndarray:
    """From stored values (H, W) to what a reader sees, uint8."""
    scale = about.scale
    table = gray_table(scale, _chosen(scale.views, view.window))
    low, high = stored_range(scale)
    # Clipping never acts on a sound file; it keeps a decoder's slip from reaching outside of the table.
    return np.asarray(table[np.clip(pixels.astype(np.int64), low, high) - low])


def _chosen(views: tuple[Window | Lut, ...], wanted: int | tuple[float, float] | None) -> Window | Lut | None:
    """The window or VOI LUT to apply, or None where the file has none and none is asked for."""
    if isinstance(wanted, tuple):
        return Window(*wanted)
    if wanted is None:
        return views[0] if views else None
    if wanted > len(views):
        raise DataError(f"offers {len(views)} windows, --window={wanted} is none of them; give CENTER,WIDTH instead")
    return views[wanted - 1]


def _resolve_palette(dataset: Any, pixels: np.ndarray) -> np.ndarray:
    """Replace palette indices (H, W) by their colours, uint8 (H, W, 3)."""
    from pydicom.pixels.processing import apply_color_lut

    if not dataset.original_encoding[1]:
        raise DataError("has a palette in the retired big-endian encoding; export it again")
    coloured = np.asarray(apply_color_lut(pixels, dataset))
    return _colour_to_8_bits(coloured, coloured.dtype.itemsize * 8)


def _colour_to_8_bits(pixels: np.ndarray, bits: int) -> np.ndarray:
    """Scale RGB of `bits` bits to uint8, rounded."""
    top = 2**bits - 1
    return np.asarray((np.clip(pixels.astype(np.int64), 0, top) * 255 + top // 2) // top).astype(np.uint8)

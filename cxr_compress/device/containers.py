"""Whether an image file is whole, and which way up it is, read from its container; and its pixels, decoded by OpenCV.

OpenCV fills what a cut-off JPEG lacks with gray and says nothing: a clinic would get a finding for half an image. So
every PNG chunk and its checksum, every JPEG segment to the end mark, and the lengths that BMP, WebP and TIFF files
state are looked at. Files of several images and kinds of pixels that OpenCV would show wrongly (CMYK as color with
transparency, signed or floating-point numbers) are refused by name.

libjpeg and libtiff fill what they cannot decode with gray or with what came before, write one line to stderr, and
OpenCV gives the image as if nothing had been. It hands that line to nobody, so it is read where it is written.
"""

from __future__ import annotations

import contextlib
import re
import struct
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Literal

import cv2
import numpy as np

from cxr_compress.device.native import stderr_lines
from cxr_compress.errors import DataError

PNG_SIGNATURE = b"\x89PNG\r\n\x1a\n"
JPEG_START = b"\xff\xd8"
_TIFF_STARTS: dict[bytes, Literal["<", ">"]] = {b"II*\0": "<", b"MM\0*": ">"}
_BIG_TIFF_STARTS = (b"II+\0", b"MM\0+")
_AGAIN = "copy or export it again"
_ONE = "expected one image; export the one that is meant as PNG"
_EXIF = b"Exif\0\0"

# A mark that ends entropy-coded data: not a stuffed zero, not a restart mark, not a fill byte (ITU-T T.81, B.1.1.5).
_NEXT_MARK = re.compile(rb"\xff[^\x00\xd0-\xd7\xff]", re.DOTALL)
_EOI, _SOS, _APP1 = 0xD9, 0xDA, 0xE1
# The marks that start a frame: all but lossless (C3, C7, CB, CF; F7 is JPEG-LS) are of the kind that OpenCV reads.
_FRAMES = frozenset({*range(0xC0, 0xD0), 0xF7} - {0xC4, 0xC8, 0xCC})
_LOSSLESS = frozenset({0xC3, 0xC7, 0xCB, 0xCF, 0xF7})
_COMPONENTS = 5  # where a frame header, without its length, has their number
_PROGRESSIVE = frozenset({0xC2, 0xC6, 0xCA, 0xCE})
# Marks without a length field: TEM, RST0 to RST7, SOI (ITU-T T.81, table B.1).
_BARE_MARKS = frozenset({0x01, *range(0xD0, 0xD9)})

# Tags of TIFF 6.0 and of EXIF, which is a TIFF of its own.
_SUBFILE, _BITS, _COMPRESSION, _PHOTOMETRIC, _ORIENTATION, _PLANES, _FORMAT = 254, 258, 259, 262, 274, 284, 339
_STRIPS = ((273, 279), (324, 325))  # offsets and byte counts, of strips or of tiles
_TIFF_SIZES = {1: 1, 2: 1, 3: 2, 4: 4, 6: 1, 7: 1, 8: 2, 9: 4}  # bytes of a value; the types that these tags have
_DEFLATE = frozenset({8, 32946})
_WHITE_IS_ZERO, _BLACK_IS_ZERO = 0, 1
_TIFF_COLORS = {_WHITE_IS_ZERO, _BLACK_IS_ZERO, 2, 3, 6}  # gray, RGB, palette, YCbCr
_ORIENTATIONS = range(1, 9)
_EXTRA, _GRAY_AND_ALPHA = 338, 2
_OPAQUE = "save it without transparency"

_COMPLAINED_OF = (b"\xff\xd8", b"II*\0", b"MM\0*")  # JPEG and TIFF
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


@dataclass(frozen=True)
class Container:
    """What a container says about its pixels that OpenCV does not act on.

    Attributes:
        orientation: 1 to 8 as EXIF counts them, of the pixels that OpenCV gives; 1 is upright.
        inverted: high values are dark, and OpenCV leaves them so.
    """

    orientation: int = 1
    inverted: bool = False


def read_container(data: bytes) -> Container:
    """Look at the container of one whole image file.

    Raises:
        DataError: cut short, damaged, several images, a kind of pixels that is not read, or another format.
    """
    for known, read in _READERS.items():
        if data.startswith(known):
            return read(data)
    if data.startswith(_BIG_TIFF_STARTS):
        raise DataError("is a BigTIFF file, which is not read; export it as PNG or as TIFF below 4 GB")
    raise DataError(
        f"is not a PNG, JPEG, BMP, TIFF, WebP or DICOM file (it starts with {data[:4].hex(' ')}); export it as "
        "PNG first"
    )


def upright(image: np.ndarray, orientation: int) -> np.ndarray:
    """Turn pixels (H, W[, 3]) the way an EXIF orientation says they are to be seen; 1 leaves them.

    Source: EXIF 2.32 (CIPA DC-008), section 4.6.4, tag 274: where the first row and the first column are seen.
    """
    if orientation > 4:  # noqa: PLR2004 - rows and columns change places
        image = image.swapaxes(0, 1)
    # Which axes run backwards, for 1 to 4 and, after the exchange, for 5 to 8.
    rows, columns = ((1, 1), (1, -1), (-1, -1), (-1, 1), (1, 1), (1, -1), (-1, -1), (-1, 1))[orientation - 1]
    return np.ascontiguousarray(image[::rows, ::columns])


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
            complaint = _LIBRARY_LINE.sub("", line).strip(" :.")[:120]
            raise DataError(f"is damaged: only a part of its pixels can be decoded ({complaint}); {_AGAIN}")


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


def _read_png(data: bytes) -> Container:
    """Walk the chunks of a PNG to its IEND and verify each checksum.

    Source: W3C PNG specification, section 5.3 (length, type, data, CRC over type and data).
    """
    position = len(PNG_SIGNATURE)
    view = memoryview(data)
    orientation = 1
    while position + 12 <= len(data):
        length = int.from_bytes(view[position : position + 4], "big")
        kind = data[position + 4 : position + 8]
        end = position + 8 + length
        if end + 4 > len(data):
            break
        if zlib.crc32(view[position + 4 : end]) != int.from_bytes(view[end : end + 4], "big"):
            raise DataError(f"is damaged: the checksum of PNG chunk {_printable(kind)} is wrong; {_AGAIN}")
        if kind == b"acTL" and (frames := int.from_bytes(view[position + 8 : position + 12], "big")) > 1:
            raise DataError(f"is an animation of {frames} images, {_ONE}")
        if kind == b"eXIf":
            orientation = _exif_orientation(data[position + 8 : end])
        if kind == b"IEND":
            return Container(orientation)
        position = end + 4
    raise DataError(f"is cut short: the PNG ends after {len(data)} bytes without its end mark (IEND); {_AGAIN}")


def _read_jpeg(data: bytes) -> Container:
    """Walk the segments of a JPEG to its end mark; bytes after it (padding, a second picture) do not matter.

    A search for the end mark alone would be fooled by the thumbnail inside an EXIF segment, which has its own.
    Source: ITU-T T.81, annex B.
    """
    position = len(JPEG_START)
    orientation = 0
    scans = _Scans()
    while True:
        next_mark = _NEXT_MARK.search(data, position)
        if next_mark is None:
            break
        mark, position = data[next_mark.start() + 1], next_mark.end()
        if mark == _EOI:
            if scans.incomplete():
                raise DataError(f"is cut short: scans of the JPEG are missing; {_AGAIN}")
            return Container(orientation or 1)
        if mark in _BARE_MARKS:
            continue
        # A segment says how long it is; entropy-coded data after a scan header does not, and is searched through.
        end = position + int.from_bytes(data[position : position + 2], "big")
        if mark in _FRAMES and (mark in _LOSSLESS or data[position + 2 : position + 3] not in (b"", b"\x08")):
            kind = "lossless" if mark in _LOSSLESS else f"{data[position + 2]}-bit"
            raise DataError(f"is a {kind} JPEG, which no installed decoder knows; export it as PNG")
        scans.note(mark, data[position + 2 : end])
        # The first EXIF segment counts, as for every reader.
        if mark == _APP1 and not orientation and data[position + 2 : position + 8] == _EXIF:
            orientation = _exif_orientation(data[position + 8 : end])
        position = end
    raise DataError(f"is cut short: the JPEG ends after {len(data)} bytes without its end mark (EOI); {_AGAIN}")


def jpeg_frame(data: bytes) -> tuple[int, bytes] | None:
    """Mark and content of the frame header of a JPEG or JPEG-LS file, which holds bits, size and components.

    None where there is none. Source: ITU-T T.81, section B.2.2.
    """
    position = len(JPEG_START)
    while (next_mark := _NEXT_MARK.search(data, position)) is not None:
        mark, position = data[next_mark.start() + 1], next_mark.end()
        if mark in _BARE_MARKS:
            continue
        end = position + int.from_bytes(data[position : position + 2], "big")
        if mark in _FRAMES:
            segment = data[position + 2 : end]
            return (mark, segment) if len(segment) > _COMPONENTS else None
        if mark in (_SOS, _EOI):
            return None
        position = end
    return None


class _Scans:
    """Which coefficients of which components the scans of a JPEG bring: decoders take missing ones for zero.

    Source: ITU-T T.81, sections B.2.2 and B.2.3, and G.1.1.1 for progressive ones.
    """

    def __init__(self) -> None:
        self._missing: dict[int, set[int]] = {}
        self._progressive = False

    def note(self, mark: int, segment: bytes) -> None:
        """Look at a segment, without its length; of others than frame and scan headers nothing is kept."""
        if mark in _FRAMES and not self._missing and len(segment) > _COMPONENTS:
            self._progressive = mark in _PROGRESSIVE
            self._missing = {component: set(range(64)) for component in segment[6 : 6 + 3 * segment[5] : 3]}
        elif mark == _SOS and segment:
            count = segment[0]
            first, last, bits = (*segment[1 + 2 * count : 4 + 2 * count], 0, 0, 0)[:3]
            # Only the scan that brings the lowest bit ends a coefficient.
            brings = set(range(first, last + 1) if bits & 15 == 0 else ()) if self._progressive else set(range(64))
            for component in segment[1 : 1 + 2 * count : 2]:
                self._missing.get(component, set()).difference_update(brings)

    def incomplete(self) -> bool:
        """Whether a component or coefficient came in no scan."""
        return not self._missing or any(self._missing.values())


def _read_bmp(data: bytes) -> Container:
    """Compare the bytes of a BMP with those that its header asks for; that it states its own size is not relied on."""
    if len(data) < 30:  # noqa: PLR2004 - file header and the part of the image header that is needed
        raise DataError(f"is cut short: the BMP ends after {len(data)} bytes, inside its header; {_AGAIN}")
    offset, header = struct.unpack_from("<II", data, 10)
    if header == 12:  # noqa: PLR2004 - the OS/2 header, of 16-bit numbers
        (width, height, _, bits), compression = struct.unpack_from("<HHHH", data, 18), 0
    else:
        if len(data) < 38:  # noqa: PLR2004
            raise DataError(f"is cut short: the BMP ends after {len(data)} bytes, inside its header; {_AGAIN}")
        (width, height, _, bits, compression, size) = struct.unpack_from("<iiHHII", data, 18)
    # Rows are padded to 4 bytes. A run-length code (1, 2) has a length of its own.
    needed = size if compression in (1, 2) else (abs(width) * bits + 31) // 32 * 4 * abs(height)
    if offset + needed > len(data):
        raise DataError(f"is cut short: the BMP ends after {len(data)} bytes, expected {offset + needed}; {_AGAIN}")
    return Container()


def _read_webp(data: bytes) -> Container:
    """Walk the chunks of a WebP file (RFC 9649, section 2)."""
    end = 8 + int.from_bytes(data[4:8], "little")
    if data[8:12] != b"WEBP":
        raise DataError("is a RIFF file but no WebP image; export it as PNG first")
    if end > len(data):
        raise DataError(f"is cut short: the WebP ends after {len(data)} bytes, expected {end}; {_AGAIN}")
    position, orientation = 12, 1
    while position + 8 <= end:
        kind, length = data[position : position + 4], int.from_bytes(data[position + 4 : position + 8], "little")
        if kind in (b"ANIM", b"ANMF"):
            raise DataError(f"is an animation, {_ONE}")
        if kind == b"EXIF":
            orientation = _exif_orientation(data[position + 8 : position + 8 + length].removeprefix(_EXIF))
        position += 8 + length + length % 2
    return Container(orientation)


def _read_tiff(data: bytes) -> Container:
    """Look through the first directory of a TIFF file; its orientation is left out, because OpenCV acts on it."""
    tags, following = _directory(data, int.from_bytes(data[4:8], "little" if data[:2] == b"II" else "big"))
    if tags is None:
        raise DataError(f"is cut short or damaged: the TIFF ends before its list of tags; {_AGAIN}")
    pages = 1
    seen = set()
    while following and following not in seen:
        seen.add(following)
        more, after = _directory(data, following)
        # Bit 0 marks a smaller copy of another page: a thumbnail.
        pages += more is not None and not (more.get(_SUBFILE, [0])[0] & 1)
        following = after
    if pages > 1:
        raise DataError(f"holds {pages} pages, {_ONE}")
    _check_strips(data, tags)
    photometric, bits = tags.get(_PHOTOMETRIC, [-1])[0], tags.get(_BITS, [1])
    if photometric not in _TIFF_COLORS:
        raise DataError(f"is a TIFF with photometric interpretation {photometric} (5 is CMYK), expected gray or RGB")
    if any(kind != 1 for kind in tags.get(_FORMAT, [1])) or any(bit not in (1, 8, 16) for bit in bits):
        raise DataError(
            f"is a TIFF of {bits[0]}-bit {_FORMATS.get(tags.get(_FORMAT, [1])[0], 'unknown')} pixels, expected "
            "unsigned integers of 1, 8 or 16 bits; export it as 8- or 16-bit PNG"
        )
    if len(bits) == _GRAY_AND_ALPHA and 1 in tags.get(_EXTRA, []):
        raise DataError(f"is a gray TIFF that is darkened by its transparency; {_OPAQUE}")
    if tags.get(_PLANES, [1])[0] != 1 and len(bits) > 1:
        raise DataError("is a TIFF that keeps its colors in separate planes, which is not read; export it as PNG")
    # Of 8 bits and fewer OpenCV turns the gray scale itself, of 16 it does not.
    return Container(inverted=photometric == _WHITE_IS_ZERO and bits[0] > 8)  # noqa: PLR2004


def _check_strips(data: bytes, tags: dict[int, list[int]]) -> None:
    """Refuse a TIFF whose strips or tiles lie behind its end, or are compressed and damaged."""
    for offsets, counts in _STRIPS:
        # Without lengths only the starts are known.
        lengths = tags.get(counts) or [1] * len(tags.get(offsets, []))
        if any(start + length > len(data) for start, length in zip(tags.get(offsets, []), lengths, strict=False)):
            raise DataError(f"is cut short: the TIFF ends after {len(data)} bytes, inside its pixels; {_AGAIN}")
    if tags.get(_COMPRESSION, [1])[0] in _DEFLATE and not all(
        _inflates(data[start : start + length])
        for offsets, counts in _STRIPS
        for start, length in zip(tags.get(offsets, []), tags.get(counts, []), strict=False)
    ):
        raise DataError(f"is damaged: compressed pixels of the TIFF have a wrong checksum; {_AGAIN}")


def _inflates(data: bytes) -> bool:
    """Whether zlib data end where they should and have the checksum that they state; libtiff does not look at it."""
    stream = zlib.decompressobj()
    try:
        while data and not stream.eof:
            stream.decompress(data, _AT_ONCE)  # a few bytes may hold gigabytes
            data = stream.unconsumed_tail
    except zlib.error:
        return False
    return stream.eof


_AT_ONCE = 1 << 24
_FORMATS = {1: "unsigned", 2: "signed", 3: "floating-point"}

_READERS: dict[bytes, Callable[[bytes], Container]] = {
    PNG_SIGNATURE: _read_png,
    JPEG_START: _read_jpeg,
    b"BM": _read_bmp,
    b"RIFF": _read_webp,
    **dict.fromkeys(_TIFF_STARTS, _read_tiff),
}


def _exif_orientation(data: bytes) -> int:
    """The orientation in EXIF data, a TIFF without pixels; 1 where there is none or one that does not exist."""
    if data[:4] not in _TIFF_STARTS:
        return 1
    tags, _ = _directory(data, int.from_bytes(data[4:8], "little" if data[:2] == b"II" else "big"))
    value = (tags or {}).get(_ORIENTATION, [1])[0]
    return value if value in _ORIENTATIONS else 1


def _directory(data: bytes, offset: int) -> tuple[dict[int, list[int]] | None, int]:
    """Whole numbers of one directory of a TIFF by tag, and where the next directory starts (0: there is none).

    None in place of the tags where the file ends before them.
    """
    order = _TIFF_STARTS[data[:4]]
    if not 8 <= offset <= len(data) - 2:  # noqa: PLR2004 - behind the header
        return None, 0
    (count,) = struct.unpack_from(f"{order}H", data, offset)
    end = offset + 2 + 12 * count
    if end > len(data):
        return None, 0
    tags: dict[int, list[int]] = {}
    for place in range(offset + 2, end, 12):
        tag, kind, number = struct.unpack_from(f"{order}HHI", data, place)
        width = _TIFF_SIZES.get(kind, 0)
        start = place + 8 if width * number <= 4 else struct.unpack_from(f"{order}I", data, place + 8)[0]  # noqa: PLR2004
        if width and number and start + width * number <= len(data):
            letter = {1: "B", 2: "H", 4: "I"}[width]
            tags[tag] = list(struct.unpack_from(f"{order}{number}{letter}", data, start))
    following = struct.unpack_from(f"{order}I", data, end)[0] if end + 4 <= len(data) else 0
    return tags, following


def _printable(kind: bytes) -> str:
    """Give a chunk type as text that is safe in a message."""
    return kind.decode("ascii", "replace") if kind.isalpha() else kind.hex(" ")
